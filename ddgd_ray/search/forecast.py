"""The cost of a search. Its results decide which configurations it tries, so each counts as one at the preset's values."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ddgd_ray.plan.costs import Rates
from ddgd_ray.plan.forecast import Forecast, forecast
from ddgd_ray.plan.plan import Trial, arm_name, plan_arm
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.search.ask_tell import Proposal
from ddgd_ray.search.rungs import rung_trials
from ddgd_ray.spec.points import identity, size
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store


@dataclass
class SearchForecast:
    """The cost of a search of `configurations` configurations, of which `left` are still to come.

    certain: calls that no result changes, and those that all configurations have in common. one: a configuration by itself,
    published or not. total: all that is left.
    """

    configurations: int
    left: int
    certain: Forecast
    one: Forecast
    total: Forecast


def search_forecast(
    sweep: Sweep, controls: Sequence[Trial], store: Store, rates: Rates, num_tried: int, *, cores: float, gpus: float
) -> SearchForecast:
    """The forecast of a search that has tried `num_tried` configurations; `search.parallel` of them are under way at once."""
    search = sweep.spec.search
    assert search is not None

    def of(trials: Sequence[Trial], store: Store | None) -> Forecast:
        return forecast(trials, store, rates, sweep.spec.resources, cores=cores, gpus=gpus)

    steps = _typical(sweep)
    shared = [replace(trial, build=(), evaluators=(), measures=()) for trials, _ in steps for trial in trials]
    certain, before = of([*controls, *shared], store), of(shared, store)
    one, sooner = Forecast(), Forecast()
    own: list[Trial] = []
    for trials, weight in steps:
        alone = [replace(trial, prepare=()) for trial in trials]
        own += alone
        upto = of(own, None)  # equal stages of two rungs run once
        one.stages = upto.stages
        _add(one, upto, weight)
        _add(one, sooner, -weight)
        one.chain_s = _sum(one.chain_s, of(alone, None).chain_s)
        sooner = upto
    most = min(search.trials, size(sweep.space) or search.trials)
    left = max(0, most - num_tried)
    total = Forecast()
    _add(total, certain)
    _add(total, one, left)
    after_another = _sum(before.chain_s, one.chain_s, math.ceil(left / search.parallel))
    total.chain_s = [max(pair) for pair in zip(certain.chain_s, after_another, strict=True)]
    if left or certain.num_misses:
        total.set_wall()
    return SearchForecast(most, left, certain, one, total)


def _typical(sweep: Sweep) -> list[tuple[list[Trial], float]]:
    """The trials of a configuration, of each rung if there are some, and the share of configurations that come so far."""
    search, rungs = sweep.spec.search, sweep.spec.rungs
    assert search is not None
    if rungs is None:
        return [(plan_arm(sweep, "typical", {}), 1.0)]
    found, num = [], search.parallel  # of a batch
    for rung in range(len(rungs.settings)):
        found.append((rung_trials(sweep, rung, Proposal(0, "typical", {})), num / search.parallel))
        num = math.ceil(num / rungs.eta)
    return found


def _add(total: Forecast, more: Forecast, times: float = 1) -> None:
    total.core_s += times * more.core_s
    total.gpu_s += times * more.gpu_s
    total.size_bytes += times * more.size_bytes
    total.busy_s = _sum(total.busy_s, more.busy_s, times)


def _sum(one: Sequence[float], other: Sequence[float], times: float = 1) -> list[float]:
    return [a + times * b for a, b in zip(one, other, strict=True)]


def tried(sweep: Sweep, trials: Iterable[TrialRecord], store: Store) -> set[str]:
    """Identities of the points that are done by a run's records, and of the search's first points that are published."""
    states: dict[str, set[str]] = {}
    for trial in trials:
        if not trial.is_control and not trial.folder:
            states.setdefault(identity(trial.params), set()).add(trial.state)
    assert sweep.spec.search is not None
    published = {
        identity(point)
        for point in sweep.spec.search.first
        if all(store.has(*call.ref) for trial in plan_arm(sweep, arm_name(point), point) for call in trial.calls())
    }
    return published | {point for point, found in states.items() if found == {"done"}}
