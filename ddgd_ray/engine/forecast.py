"""What a planned sweep will take: by stage, in all, and on the clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ddgd_ray.engine.costs import Cost, Rates, cost_of
from ddgd_ray.engine.plan import Trial
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import StageCall
from ddgd_ray.store import Store

START_S = 20.0
"""Ray, and the imports of the first workers."""
JOB_S = 0.35
"""Handing a job to a worker and back."""


@dataclass
class StageForecast:
    """Of the calls of one stage: how many are published, how many will run, and what these take."""

    stage: str
    hits: int = 0
    misses: int = 0
    unknown: int = 0
    """Of the misses, those that nothing is known about."""
    seconds: float = 0.0
    low_s: float = 0.0
    high_s: float = 0.0
    size_bytes: float = 0.0
    is_known: bool = True


@dataclass
class Forecast:
    """Seconds of cores and GPUs over all that will run, and of the clock with `cores` and `gpus` to run it on."""

    stages: list[StageForecast] = field(default_factory=list)
    core_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0
    wall_low_s: float = 0.0
    wall_high_s: float = 0.0
    size_bytes: float = 0.0

    @property
    def num_misses(self) -> int:
        return sum(stage.misses for stage in self.stages)

    @property
    def num_unknown(self) -> int:
        return sum(stage.unknown for stage in self.stages)


def forecast(
    trials: Sequence[Trial], store: Store, rates: Rates, resources: ResourcesSpec, *, cores: float, gpus: float
) -> Forecast:
    """Equal calls count once. The clock: the scarcest resource kept busy, or the longest chain of a trial if that is more."""
    calls = {call.ref: call for trial in trials for call in trial.calls()}
    by_stage: dict[str, StageForecast] = {}
    costs: dict[tuple[str, str], Cost] = {}
    total = Forecast()
    bounds = [0.0, 0.0, 0.0]  # mean, low, high
    for ref, call in calls.items():
        line = by_stage.setdefault(call.stage, StageForecast(call.stage))
        if store.has(*ref):
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
        held = (amounts.cpus * amounts.workers, amounts.gpus * amounts.workers)
        total.core_s += held[0] * cost.seconds
        total.gpu_s += held[1] * cost.seconds
        share = max(held[0] / cores, held[1] / gpus if held[1] else 0.0)
        for place, seconds in enumerate((cost.seconds, cost.low_s, cost.high_s)):
            bounds[place] += share * (seconds + JOB_S)
    total.stages = list(by_stage.values())
    total.size_bytes = sum(line.size_bytes for line in total.stages)
    chains = [max((_chain(trial, costs, kind) for trial in trials), default=0.0) for kind in ("seconds", "low_s", "high_s")]
    if total.num_misses:
        walls = [START_S + max(bound, chain) for bound, chain in zip(bounds, chains, strict=True)]
        total.wall_s, total.wall_low_s, total.wall_high_s = walls
    return total


def _chain(trial: Trial, costs: dict[tuple[str, str], Cost], kind: str) -> float:
    """Seconds of what a trial must do one after another: what it is built from, its set, its longest evaluator."""

    def seconds(calls: Iterable[StageCall]) -> float:
        return sum(float(getattr(costs[call.ref], kind)) for call in calls if call.ref in costs)

    longest = max((seconds([evaluator.call]) for evaluator in trial.evaluators), default=0.0)
    return seconds(trial.prepare) + seconds(trial.build) + longest
