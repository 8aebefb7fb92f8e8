"""Arms against one of them on the seeds they share, and what may be said of the outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddgd_ray.report.statistics import ALPHA, MIN_SEEDS, Interval, holm, mean_interval, seeds_needed, sign_flip_p, smallest_p
from ddgd_ray.run.results import CEILING, Row, Stat, by_arm, paired_differences, seed_means, stat_of


@dataclass(frozen=True)
class Paired:
    """Differences of one arm to a reference over their shared seeds; p values are None where n carries none."""

    stat: Stat
    differences: tuple[float, ...]
    p: float | None
    p_holm: float | None

    @property
    def interval(self) -> Interval | None:
        return mean_interval(self.differences)

    @property
    def is_distinguishable(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA


def choose_control(rows: Sequence[Row]) -> str:
    """The arm that the others are held against: `plain` where it ran, else `random_real`, else the first one."""
    arms = [arm for arm in by_arm(rows) if arm != CEILING]
    return next((name for name in ("plain", "random_real") if name in arms), arms[0] if arms else "")


def compare(arms: Mapping[str, Sequence[Row]], reference: str, metric: str) -> dict[str, Paired]:
    """{arm: its comparison with `reference`}, without the ceiling; p values are corrected over the arms that have one."""
    differences = {}
    for arm, rows in arms.items():
        if arm not in (reference, CEILING) and reference in arms:
            found = list(paired_differences(rows, arms[reference], metric).values())
            if found:
                differences[arm] = found
    return tested_pairs(differences)


def tested_pairs(differences: Mapping[str, Sequence[float]]) -> dict[str, Paired]:
    """{arm: differences over shared seeds} with intervals and p values, these corrected over the arms that have one."""
    tested = [arm for arm, found in differences.items() if len(found) >= MIN_SEEDS]
    raw = {arm: sign_flip_p(differences[arm]) for arm in tested}
    corrected = dict(zip(tested, holm(list(raw.values())), strict=True))
    result = {}
    for arm, found in differences.items():
        stat = stat_of(found)
        assert stat is not None
        result[arm] = Paired(stat, tuple(found), raw.get(arm), corrected.get(arm))
    return result


def contenders(arms: Mapping[str, Sequence[Row]], metric: str) -> dict[str, Stat]:
    """{arm: its mean}, of those that have as many seeds as any, the ceiling aside.

    An arm that has fewer is none: it failed, or a race dropped it before; over other seeds, means differ for the seeds' sake.
    Controls do not say how many count unless there is nothing else; their means are over the same seeds, where they have them.
    """
    found = {arm: seed_means(rows, metric) for arm, rows in arms.items() if arm != CEILING}
    values = {arm: means for arm, means in found.items() if means}
    own = [means for arm, means in values.items() if not arms[arm][0].is_control]
    seeds = max(own or values.values(), key=len, default={}).keys()
    stats = {
        arm: stat_of(means[seed] for seed in (seeds if seeds <= means.keys() else means))
        for arm, means in values.items()
        if len(means) >= len(seeds)
    }
    return {arm: stat for arm, stat in stats.items() if stat is not None}


def highest(arms: Mapping[str, Sequence[Row]], metric: str) -> str:
    """The contender of the highest mean in one column of a table; "" without values, the first one on a tie.

    Which arm the sweep's objective prefers is another question: run/objective.py answers it.
    """
    stats = contenders(arms, metric)
    return max(stats, key=lambda arm: stats[arm].mean, default="")


def marks(arms: Mapping[str, Sequence[Row]], metric: str) -> dict[str, str]:
    """{arm: `best`, or `tied` where it is not distinguishable from the best}; nothing when there is nothing to compare."""
    best = highest(arms, metric)
    has_value = [arm for arm, rows in arms.items() if arm != CEILING and any(metric in row.metrics for row in rows)]
    if len(has_value) < 2:
        return {}
    compared = compare(arms, best, metric)
    tied = {arm: "tied" for arm in has_value if arm not in compared or not compared[arm].is_distinguishable}
    return {**tied, best: "best"}


def claim(compared: Mapping[str, Paired], reference: str, metric: str) -> str:
    """What so many seeds and comparisons allow to say: that nothing can be said, or which arms differ from `reference`."""
    if not compared:
        return ""
    n = max(paired.stat.n for paired in compared.values())
    num_tested = sum(paired.p is not None for paired in compared.values())
    if not num_tested:
        return f"With n = {n} distillation seeds no claim of significance is possible ({MIN_SEEDS} are the least)."
    if smallest_p(n, num_tested) >= ALPHA:
        return (
            f"With n = {n} distillation seeds and {num_tested} comparisons no claim of significance is possible: the least "
            f"corrected p is {smallest_p(n, num_tested):.3g} ({seeds_needed(num_tested)} seeds are needed)."
        )
    distinct = [arm for arm, paired in compared.items() if paired.is_distinguishable]
    return f"Distinguishable from {reference} by {metric} (n = {n}): {', '.join(distinct) or 'no arm'}."
