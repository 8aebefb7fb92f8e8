"""Which configurations to try: the ask/tell protocol that the conductor speaks, and the grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ddgd_ray.engine.plan import arm_name, grid
from ddgd_ray.spec.sweep import Sweep


@dataclass(frozen=True)
class Proposal:
    """Configuration number `number`: arm is its name, params {dotted path: value}."""

    number: int
    arm: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """What a configuration is worth: one value for each objective, in the order of the spec."""

    values: tuple[float, ...]
    rung: int | None = None
    """Measured at a rung's cheaper setting, where the configuration went out; not comparable with values of the full one."""


class Search(Protocol):
    @property
    def exhausted(self) -> bool:
        """Nothing will be proposed any more."""

    def ask(self) -> Proposal | None:
        """The next configuration, or None while it depends on results that are not in."""

    def tell(self, proposal: Proposal, score: Score | None) -> None:
        """The score of a proposal, None when it failed. Each proposal is told once."""


class GridSearch:
    """Every cell of `vary`, in order; results change nothing."""

    def __init__(self, sweep: Sweep) -> None:
        self._open = [Proposal(number, arm_name(params), params) for number, params in enumerate(grid(sweep))]

    @property
    def exhausted(self) -> bool:
        return not self._open

    def ask(self) -> Proposal | None:
        return self._open.pop(0) if self._open else None

    def tell(self, proposal: Proposal, score: Score | None) -> None:
        pass
