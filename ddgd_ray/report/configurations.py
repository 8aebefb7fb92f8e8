"""The configurations of a search in the order proposed, and how much each searched field mattered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddgd_ray.report.sensitivity import is_number
from ddgd_ray.run.reading import Run
from ddgd_ray.spec.base import Value

NUM_BINS = 4


@dataclass(frozen=True)
class Configuration:
    """One configuration of a search, the `number`-th. value: of the first objective, mean over distillation seeds."""

    number: int
    arm: str
    params: Mapping[str, Value]
    value: float


@dataclass(frozen=True)
class Importance:
    """The importance of a field. share: of the variance of the objective's ranks, in [0, 1], above chance.

    trend: Spearman's rho where the field's values are numbers, else None.
    """

    field: str
    share: float
    trend: float | None


def configurations(run: Run) -> list[Configuration]:
    """The configurations that have a worth by the objective, in the order proposed, which is that of their arms' names."""
    params = {arm: trial.params for arm, trial in run.first_trials().items() if trial.params and not trial.is_control}
    worths = run.ranking.worths
    return [
        Configuration(number, arm, params[arm], worths[arm].values[0])
        for number, arm in enumerate(sorted(params))
        if arm in worths
    ]


def best_so_far(values: Sequence[float], sign: int) -> list[float]:
    """The best of the values up to each of them. sign: 1 where larger is better, -1 where smaller is."""
    best: list[float] = []
    for value in values:
        best.append(value if not best or sign * value > sign * best[-1] else best[-1])
    return best


def fields_of(found: Sequence[Configuration]) -> list[str]:
    """Searched fields that took more than one value."""
    names = dict.fromkeys(name for one in found for name in one.params)
    return [name for name in names if len({repr(one.params.get(name)) for one in found}) > 1]


def importances(found: Sequence[Configuration]) -> list[Importance]:
    """The importance of each field alone, the most important first; none below five configurations.

    Kruskal-Wallis' eta squared over its values, numbers in four bins of as many configurations each. Effects of two fields
    together are not seen.
    """
    result = []
    for field in fields_of(found) if len(found) >= 5 else ():
        mine = [one for one in found if field in one.params]
        targets = [one.value for one in mine]
        values = [one.params[field] for one in mine]
        numbers = [float(value) for value in values] if all(map(is_number, values)) else []
        groups = _binned(numbers) if numbers else [repr(value) for value in values]
        result.append(Importance(field, _eta_squared(groups, targets), _spearman(numbers, targets) if numbers else None))
    return sorted(result, key=lambda one: one.share, reverse=True)


def _binned(numbers: Sequence[float]) -> list[str]:
    """The name of each number's bin; equal numbers are in one bin."""
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
