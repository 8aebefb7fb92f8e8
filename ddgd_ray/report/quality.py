"""Tables of how close sets are to the real images, and how varied: one a feature space and number of images a class."""

from collections.abc import Mapping, Sequence

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import stat_of
from ddgd_ray.storage.store import Store

NOTE = (
    "Mean ± sample standard deviation over n seeds. Against all real training images; similarity: mean cosine of two images of "
    "the set, and of two of one class; copies: share of images nearer to a training image than 1 % of these are to each other."
)
ORDER = ("precision", "recall", "density", "coverage", "frechet", "vendi", "similarity", "similarity_within", "copies")


def quality_tables(trials: Sequence[TrialRecord], store: Store) -> list[Table]:
    """A table for each label of the trials' `quality`: mean ± std over seeds of each arm, in order of the trials."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}  # label, arm, metric, seed
    for trial in trials:
        for measure in trial.quality:
            artifact = store.get(*measure.ref)
            for name, value in (artifact.metrics if artifact else {}).items():
                found.setdefault(measure.label, {}).setdefault(trial.arm, {}).setdefault(name, {})[trial.seed] = value
    return [_table(label, arms) for label, arms in found.items()]


def _table(label: str, arms: Mapping[str, Mapping[str, Mapping[int, float]]]) -> Table:
    measured = dict.fromkeys(name for metrics in arms.values() for name in metrics)
    names = sorted(measured, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    lines = []
    for arm, metrics in arms.items():
        n = max(map(len, metrics.values()))
        lines.append((arm, [Cell(str(n)), *(_cell(metrics.get(name, {}), n) for name in names)]))
    columns = [Column("arm"), Column("n"), *map(Column, names)]
    return Table(f"Quality of the sets, features {label}", columns, lines, NOTE)


def _cell(values: Mapping[int, float], n: int) -> Cell:
    stat = stat_of(values.values())
    if stat is None:
        return Cell("-")
    digits = 3 if abs(stat.mean) < 100 else 1
    spread = f" ± {stat.std:.{digits}f}" if stat.std is not None else ""
    return Cell(f"{stat.mean:.{digits}f}{spread}" + (f" (n={stat.n})" if stat.n != n else ""))
