"""Decisions of a seed policy, as a run folder keeps them: what a race, a race for verdicts or rungs decided, and when."""

from typing import Literal

from ddgd_ray.run.records import Record
from ddgd_ray.spec.claims_spec import ClaimsSpec
from ddgd_ray.spec.fidelity_spec import RaceSpec, RungsSpec
from ddgd_ray.spec.search_spec import Direction
from ddgd_ray.storage.manifest import Ref


class PlannedRecord(Record):
    """A trial that runs when every configuration gets everything: what a race or rungs are held against."""

    arm: str
    seed: int
    calls: tuple[Ref, ...]
    evaluators: tuple[Ref, ...]
    """Those of the main protocol."""


class DropRecord(Record):
    """A configuration that a race dropped. difference: to the incumbent `against`, in units of the metric."""

    arm: str
    against: str
    num_seeds: int
    difference: float
    bound: float
    statistic: float
    critical: float


class RaceRecord(Record):
    """The decisions of a race. Each start of a sweep writes them anew."""

    kind: Literal["race"] = "race"
    metric: str
    direction: Direction
    settings: RaceSpec
    alpha: float
    """Level of one test."""
    num_arms: int
    num_looks: int
    is_over: bool
    left: tuple[str, ...]
    failed: tuple[str, ...]
    drops: tuple[DropRecord, ...]
    full: tuple[PlannedRecord, ...]


class VerdictRecord(Record):
    """What a race for verdicts concluded of an arm. difference: to the reference, in units of the metric, as measured.

    low, high: ends of the interval that holds for all arms and all looks together; null while n is too small for one.
    """

    arm: str
    word: Literal["better", "worse", "equivalent", "undecided"]
    num_seeds: int
    difference: float
    low: float | None
    high: float | None


class VerdictsRecord(Record):
    """What a race for verdicts decided. Each start of a sweep writes it anew."""

    kind: Literal["verdicts"] = "verdicts"
    metric: str
    direction: Direction
    claims: ClaimsSpec
    reference: str
    alpha: float
    """Error rate of one pair."""
    limit: int
    """Seeds at which the race ends though pairs be undecided."""
    is_over: bool
    failed: tuple[str, ...]
    verdicts: tuple[VerdictRecord, ...]
    full: tuple[PlannedRecord, ...]


class RungDecision(Record):
    """The outcome of a configuration at a rung. place: 1 for the best of `of`, 0 without a value."""

    rung: int
    arm: str
    value: float | None = None
    place: int
    of: int
    outcome: str


class RungsRecord(Record):
    """The decisions of successive halving. Each start of a sweep writes them anew."""

    kind: Literal["rungs"] = "rungs"
    metric: str
    direction: Direction
    settings: RungsSpec
    decisions: tuple[RungDecision, ...]
    full: tuple[PlannedRecord, ...]
