"""What a search tried, in order, and what came of it; and how much each field mattered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddgd_ray.report.compare import by_arm
from ddgd_ray.report.sensitivity import is_number
from ddgd_ray.report.tradeoffs import measured
from ddgd_ray.run.reading import Objective, Run
from ddgd_ray.run.results import over_seeds

NUM_BINS = 4


@dataclass(frozen=True)
class Configuration:
    """Number `number` of the search; values: of its objectives, as far as they were measured."""

    number: int
    arm: str
    params: Mapping[str, Any]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Importance:
    """share: of the variance of the objective's ranks, in [0, 1], above chance. trend: Spearman's rho, of numbers."""

    field: str
    share: float
    trend: float | None


def configurations(run: Run, objectives: Sequence[Objective]) -> list[Configuration]:
    """Those that have the first objective, in the order in which they were proposed: by the name of their arm."""
    found = []
    arms = {arm: rows for arm, rows in by_arm(run.main_rows).items() if not rows[0].is_control and rows[0].params}
    for number, arm in enumerate(sorted(arms)):
        values = {}
        for objective in objectives:
            stat = over_seeds(arms[arm], objective.metric)
            value = stat.mean if stat else measured(run, arm, objective.metric)
            if value is not None:
                values[objective.metric] = value
        if objectives[0].metric in values:
            found.append(Configuration(number, arm, arms[arm][0].params, values))
    return found


def best_so_far(values: Sequence[float], sign: int) -> list[float]:
    best: list[float] = []
    for value in values:
        best.append(value if not best or sign * value > sign * best[-1] else best[-1])
    return best


def fields_of(found: Sequence[Configuration]) -> list[str]:
    """Searched fields that took more than one value."""
    names = dict.fromkeys(name for one in found for name in one.params)
    return [name for name in names if len({repr(one.params.get(name)) for one in found}) > 1]


def importances(found: Sequence[Configuration], metric: str) -> list[Importance]:
    """Each field alone: Kruskal-Wallis' eta squared over its values, numbers in four bins of as many configurations each.

    The most important first; none below five configurations. Effects of two fields together are not seen.
    """
    result = []
    for field in fields_of(found) if len(found) >= 5 else ():
        mine = [one for one in found if field in one.params]
        targets = [one.values[metric] for one in mine]
        values = [one.params[field] for one in mine]
        numbers = [float(value) for value in values] if all(map(is_number, values)) else []
        groups = _binned(numbers) if numbers else [repr(value) for value in values]
        result.append(Importance(field, _eta_squared(groups, targets), _spearman(numbers, targets) if numbers else None))
    return sorted(result, key=lambda one: one.share, reverse=True)


def _binned(numbers: Sequence[float]) -> list[str]:
    """Equal numbers are in one bin."""
    distinct = sorted(set(numbers))
    if len(distinct) <= NUM_BINS:
        return [repr(number) for number in numbers]
    ordered = sorted(numbers)
    cuts = [ordered[len(ordered) * part // NUM_BINS] for part in range(1, NUM_BINS)]
    return [str(sum(number >= cut for cut in cuts)) for number in numbers]


def _eta_squared(groups: Sequence[str], targets: Sequence[float]) -> float:
    """(H - k + 1) / (n - k), not below 0: what remains of Kruskal-Wallis' H above what chance gives."""
    from scipy import stats

    by_group: dict[str, list[float]] = {}
    for group, target in zip(groups, targets, strict=True):
        by_group.setdefault(group, []).append(target)
    k, n = len(by_group), len(targets)
    if k < 2 or n <= k or len(set(targets)) < 2:
        return 0.0
    h = float(stats.kruskal(*by_group.values()).statistic)
    return min(1.0, max(0.0, (h - k + 1) / (n - k)))


def _spearman(numbers: Sequence[float], targets: Sequence[float]) -> float:
    from scipy import stats

    if len(set(numbers)) < 2 or len(set(targets)) < 2:
        return 0.0
    return float(stats.spearmanr(numbers, targets).statistic)


def pareto_front(points: Sequence[tuple[float, float]], signs: tuple[int, int]) -> list[int]:
    """Places of the points that no other point beats in one coordinate without losing in the other."""
    scaled = [(signs[0] * x, signs[1] * y) for x, y in points]
    front = []
    best = float("-inf")
    for place in sorted(range(len(scaled)), key=lambda place: scaled[place], reverse=True):
        if scaled[place][1] > best:
            front.append(place)
            best = scaled[place][1]
    return sorted(front)
