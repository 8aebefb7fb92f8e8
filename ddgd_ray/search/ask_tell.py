"""The configurations to try: the ask/tell protocol that the conductor speaks, the grid, and the file of proposals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ddgd_ray.plan.plan import arm_name
from ddgd_ray.run.objective import Worth
from ddgd_ray.spec.sweep import Sweep

Origin = Literal["first", "sampler", "random", "grid"]


@dataclass(frozen=True)
class Proposal:
    """Configuration number `number`: arm is its name, params {dotted path: value}."""

    number: int
    arm: str
    params: Mapping[str, Any]


class Search(Protocol):
    @property
    def note(self) -> str:
        """Why the search ends before all that was asked for; "" when it does not."""

    @property
    def exhausted(self) -> bool:
        """The search will propose nothing any more."""

    def ask(self) -> Proposal | None:
        """The next configuration, or None while it depends on results that are not in."""

    def tell(self, proposal: Proposal, score: Worth | None) -> None:
        """The score of a proposal, None when it failed. Each proposal is told once."""


class GridSearch:
    """A search that proposes every cell of `vary`, in order; results change nothing."""

    note = ""

    def __init__(self, sweep: Sweep) -> None:
        self._open = [Proposal(number, arm_name(params), params) for number, params in enumerate(sweep.spec.grid())]

    @property
    def exhausted(self) -> bool:
        return not self._open

    def ask(self) -> Proposal | None:
        return self._open.pop(0) if self._open else None

    def tell(self, proposal: Proposal, score: Worth | None) -> None:
        pass


@dataclass(frozen=True)
class Drawn:
    """A proposal and its origin. repeats: the point that the sampler proposed first, where that had been proposed before."""

    number: int
    params: Mapping[str, Any]
    origin: Origin
    repeats: Mapping[str, Any] = field(default_factory=dict)


class Proposals:
    """The file of all that a search proposed, one line a batch: the next start need not ask the sampler for it again.

    The file may be deleted: a deterministic search proposes the same once more, for as much time as that takes.
    """

    def __init__(self, path: Path | None) -> None:
        """path: None keeps nothing."""
        self._path = path

    def read(self) -> list[list[Drawn]]:
        """The batches in order; what follows a torn line is dropped from the file."""
        batches: list[list[Drawn]] = []
        sound = 0
        if self._path is None or not self._path.is_file():
            return batches
        raw = self._path.read_bytes()
        for line in raw.splitlines(keepends=True):
            try:
                batch = [Drawn(**drawn) for drawn in json.loads(line)] if line.endswith(b"\n") else []
            except (ValueError, TypeError):
                batch = []
            expected = sum(map(len, batches))
            if not batch or [drawn.number for drawn in batch] != list(range(expected, expected + len(batch))):
                break
            batches.append(batch)
            sound += len(line)
        if sound < len(raw):  # the next line must not be glued to half of another
            with self._path.open("r+b") as file:
                file.truncate(sound)
        return batches

    def add(self, batch: Sequence[Drawn]) -> None:
        if self._path is None:
            return
        lines = [{"number": d.number, "params": dict(d.params), "origin": d.origin, "repeats": dict(d.repeats)} for d in batch]
        with self._path.open("a") as file:
            file.write(json.dumps(lines) + "\n")


@dataclass(frozen=True)
class Known:
    """A finished configuration of another run, to learn from."""

    run: str
    arm: str
    params: Mapping[str, Any]
    score: Worth
