"""The cost of a planned sweep: by stage, in all, and on the clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ddgd_ray.plan.costs import Cost, Rates, cost_of
from ddgd_ray.plan.plan import Trial
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import StageCall
from ddgd_ray.storage.store import Store

START_S = 20.0
"""Seconds until Ray and the first workers have started."""
JOB_S = 0.35
"""Seconds to hand a job to a worker and to take its outcome."""
KINDS = ("seconds", "low_s", "high_s")


@dataclass
class StageForecast:
    """The calls of one stage: how many are published (hits), how many will run (misses), and what the latter take."""

    stage: str
    hits: int = 0
    misses: int = 0
    unknown: int = 0
    """The number of misses whose cost nothing is known about."""
    seconds: float = 0.0
    low_s: float = 0.0
    high_s: float = 0.0
    size_bytes: float = 0.0
    is_known: bool = True


@dataclass
class Forecast:
    """Core-seconds and GPU-seconds of all calls that will run, and seconds of the clock on given cores and GPUs."""

    stages: list[StageForecast] = field(default_factory=list)
    core_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0
    wall_low_s: float = 0.0
    wall_high_s: float = 0.0
    size_bytes: float = 0.0
    busy_s: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Seconds for which the scarcest resource is held: mean, low and high."""
    chain_s: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Seconds of the longest chain of calls of one trial: mean, low and high."""

    def set_wall(self) -> None:
        """Set the seconds of the clock: the scarcest resource kept busy, or the longest chain if that is more."""
        walls = [START_S + max(busy, chain) for busy, chain in zip(self.busy_s, self.chain_s, strict=True)]
        self.wall_s, self.wall_low_s, self.wall_high_s = walls

    @property
    def num_misses(self) -> int:
        return sum(stage.misses for stage in self.stages)

    @property
    def num_unknown(self) -> int:
        return sum(stage.unknown for stage in self.stages)


def forecast(
    trials: Sequence[Trial], store: Store | None, rates: Rates, resources: ResourcesSpec, *, cores: float, gpus: float
) -> Forecast:
    """The forecast of these trials; equal calls count once. store: None stands for an empty one."""
    calls = {call.ref: call for trial in trials for call in trial.calls()}
    by_stage: dict[str, StageForecast] = {}
    costs: dict[tuple[str, str], Cost] = {}
    total = Forecast()
    for ref, call in calls.items():
        line = by_stage.setdefault(call.stage, StageForecast(call.stage))
        if store is not None and store.has(*ref):
            line.hits += 1
            continue
        line.misses += 1
        cost = cost_of(call, rates)
        if cost is None:
            line.unknown += 1
            continue
        costs[ref] = cost
        line.seconds += cost.seconds
        line.low_s += cost.low_s
        line.high_s += cost.high_s
        line.size_bytes += cost.size_bytes
        line.is_known = line.is_known and cost.is_known
        amounts = resources.of(call.stage)
        held = tuple(amounts.held.values())
        total.core_s += held[0] * cost.seconds
        total.gpu_s += held[1] * cost.seconds
        share = max(held[0] / cores, held[1] / gpus if held[1] else 0.0)
        for place, kind in enumerate(KINDS):
            total.busy_s[place] += share * (getattr(cost, kind) + JOB_S)
    total.stages = list(by_stage.values())
    total.size_bytes = sum(line.size_bytes for line in total.stages)
    total.chain_s = [max((_chain(trial, costs, kind) for trial in trials), default=0.0) for kind in KINDS]
    if total.num_misses:
        total.set_wall()
    return total


def _chain(trial: Trial, costs: dict[tuple[str, str], Cost], kind: str) -> float:
    """Seconds of the calls that a trial must run one after another: common calls, its set, its longest evaluator."""

    def seconds(calls: Iterable[StageCall]) -> float:
        return sum(float(getattr(costs[call.ref], kind)) for call in calls if call.ref in costs)

    longest = max((seconds([evaluator.call]) for evaluator in trial.evaluators), default=0.0)
    return seconds(trial.prepare) + seconds(trial.build) + longest
