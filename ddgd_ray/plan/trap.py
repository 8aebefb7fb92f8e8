"""A trap: what a sweep file says that would end well and mean something else."""

from dataclasses import asdict, dataclass
from typing import Literal

from ddgd_ray.errors import SpecError

Level = Literal["refuse", "warn"]


@dataclass(frozen=True)
class Trap:
    """code: short and stable. where: `file:line field`. fix: one action. arms: configurations that are in it, "" for all."""

    code: str
    level: Level
    where: str
    what: str
    fix: str
    arms: str = ""

    def line(self) -> str:
        """The trap as the command line tells a warning."""
        return f"warning[{self.code}]: {self.where}: {self.what}{f' ({self.arms})' if self.arms else ''}\n  help: {self.fix}"

    def as_error(self) -> SpecError:
        return SpecError(f"{self.what}{f' ({self.arms})' if self.arms else ''}", code=self.code, where=self.where, fix=self.fix)

    def as_json(self) -> dict[str, str]:
        return asdict(self)
