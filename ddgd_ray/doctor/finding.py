"""Findings: what a check found, and the words in which a user is told."""

from dataclasses import asdict, dataclass
from typing import Literal

from ddgd_ray.errors import DdgdError

Level = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. WARN: a sweep may run, not as it should. FAIL: it cannot. fix: one action, empty for PASS."""

    check: str
    level: Level
    what: str
    fix: str = ""

    def line(self) -> str:
        text = f"{self.level}  {self.check:10} {self.what}"
        return f"{text}\n      help: {self.fix}" if self.fix else text

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def passed(check: str, what: str) -> Finding:
    return Finding(check, "PASS", what)


def from_error(check: str, err: DdgdError) -> Finding:
    """A FAIL made of the error that would stop the sweep."""
    place = f"{err.where}: " if err.where else ""
    return Finding(check, "FAIL", f"{place}{err.what}", err.fix or "see above")
