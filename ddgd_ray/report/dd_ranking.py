"""Scores of DD-Ranking (Li et al. 2025, arXiv 2505.13300): how much of an accuracy is the set's own merit.

Sets here have hard labels, so that one protocol serves HLR and IOR. The paper's LRS and ARS take accuracies in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, under
from ddgd_ray.run.results import CEILING, Row, Stat, by_arm, main_metric, paired_differences, stat_of

RANDOM = "random_real"
NO_AUGMENTATION = "-noaug"


@dataclass(frozen=True)
class Scores:
    """The scores of an arm over distillation seeds; None where the run lacks what a score needs."""

    hlr: Stat | None
    """Accuracy on all data less that on the set: lower is better."""
    ior: Stat | None
    """Accuracy on the set less that on as many random real images: higher is better."""
    lrs: Stat | None
    ars: Stat | None


def label_robust_score(ior: float, hlr: float, w: float = 0.5) -> float:
    return _unit(w * ior - (1 - w) * hlr)


def augmentation_robust_score(ior_augmented: float, ior_plain: float, gamma: float = 0.5) -> float:
    return _unit(gamma * ior_augmented + (1 - gamma) * ior_plain)


def _unit(value: float) -> float:
    """The value of [-1, 1] in [0, 1], by the exponential; 0 becomes 0.269."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def scores(rows: Sequence[Row], plain_rows: Sequence[Row], metric: str) -> dict[str, Scores]:
    """{arm: scores} of one ipc. plain_rows: the same arms under the protocol without augmentation, or none.

    A seed's set is held against the random images of the same seed, and against the one run on all data.
    """
    arms, plain_arms = by_arm(rows), by_arm(plain_rows)
    result = {}
    for arm, found in arms.items():
        if arm in (CEILING, RANDOM):
            continue
        ior = paired_differences(found, arms.get(RANDOM, ()), metric)
        hlr = {seed: -value for seed, value in _to_ceiling(found, arms, metric).items()}
        plain = paired_differences(plain_arms.get(arm, ()), plain_arms.get(RANDOM, ()), metric)
        lrs = [label_robust_score(ior[seed], hlr[seed]) for seed in sorted(ior.keys() & hlr.keys())]
        ars = [augmentation_robust_score(ior[seed], plain[seed]) for seed in sorted(ior.keys() & plain.keys())]
        result[arm] = Scores(stat_of(hlr.values()), stat_of(ior.values()), stat_of(lrs), stat_of(ars))
    return result


def _to_ceiling(rows: Sequence[Row], arms: Mapping[str, Sequence[Row]], metric: str) -> dict[int, float]:
    """{seed: accuracy less that on all data}. All data is the same set for every seed: its run counts for each."""
    seeds = {row.seed for row in rows}
    return paired_differences(rows, [replace(row, seed=seed) for row in arms.get(CEILING, ()) for seed in seeds], metric)


def is_without_augmentation(label: str, of: str = "") -> bool:
    """Whether a protocol's label, NAME-noaug or NAME-noaug+HASH, says so; with `of`, whether it is that protocol's."""
    name = label.partition("+")[0]
    return name.endswith(NO_AUGMENTATION) and (not of or name.removesuffix(NO_AUGMENTATION) == of.partition("+")[0])


def dd_ranking_table(rows: Sequence[Row], protocol: str, ipc: int) -> Table | None:
    """The scores of every arm under a protocol at one number of images a class.

    None unless the run has random real images and, to hold against, all data or a protocol without augmentation.
    """
    ours = at_ipc([row for row in rows if row.protocol == protocol], ipc)
    plain = at_ipc([row for row in rows if is_without_augmentation(row.protocol, protocol)], ipc)
    arms = {row.arm for row in ours}
    if RANDOM not in arms or not (CEILING in arms or plain):
        return None
    metric = main_metric(ours)
    lines = []
    for arm, found in scores(ours, plain, metric).items():
        stats = (found.hlr, found.ior, found.lrs, found.ars)
        lines.append((arm, [Cell("-" if stat is None else str(stat)) for stat in stats]))
    note = (
        f"{METRIC_TITLES[metric].capitalize()}. HLR: accuracy on all data less that on the set; IOR: that on the set "
        f"less that on random real images; LRS and ARS (w = gamma = 0.5) in [0, 1], 0.269 where the set gains nothing."
    )
    if not plain:
        note += " ARS needs results without augmentation: evaluate.also: [noaug]."
    return Table(f"DD-Ranking, {under(ours)}", [Column(name) for name in ("arm", "HLR", "IOR", "LRS", "ARS")], lines, note)
