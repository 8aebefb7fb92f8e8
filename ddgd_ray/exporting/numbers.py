"""What was measured of one arm, as tables of a card: mean, spread, n and interval, and the same of what it is held against."""

from collections.abc import Sequence

from ddgd_ray.exporting.run_data import RunData
from ddgd_ray.report.compare import CEILING, by_arm
from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.report.statistics import mean_interval
from ddgd_ray.report.tables import METRIC_TITLES, main_metric, under
from ddgd_ray.run.results import Row, over_seeds, protocols_of, seed_means, stat_of

NOTE = (
    "Top-1 accuracy in [0, 1]: classifiers trained from scratch on the set, tested on real images. Classifiers are averaged "
    "inside a distillation seed; n counts distillation seeds; mean ± sample standard deviation; interval: 95 % BCa bootstrap."
)


def number_tables(run: RunData, arm: str, seed: int) -> list[Table]:
    """One for every protocol and number of images a class that the arm was judged at; none while nothing was."""
    tables = []
    for protocol in protocols_of(run.rows):
        mine = [row for row in run.rows if row.protocol == protocol and row.arm == arm]
        for ipc in sorted({row.ipc for row in mine}):
            tables.append(_measured([row for row in mine if row.ipc == ipc], seed))
    return tables


def context_table(run: RunData, arm: str) -> Table | None:
    """Every arm of the run by the main metric at its largest sets, this one marked. None while nothing is measured."""
    rows = [row for row in run.rows if row.protocol == run.protocol and row.ipc in (run.ipc, 0)]
    if not rows:
        return None
    metric = main_metric(rows)
    lines = []
    for name, found in by_arm(rows).items():
        stat = over_seeds(found, metric)
        if stat is not None:
            kind = " (ceiling)" if name == CEILING else " (control)" if found[0].is_control else ""
            lines.append((f"{name}{kind}", [Cell(str(stat), "best" if name == arm else "")]))
    columns = [Column("arm"), Column(METRIC_TITLES[metric])]
    return Table(f"All arms of the run, {run.ipc} images per class", columns, lines, "In bold: this one.")


def _measured(rows: Sequence[Row], seed: int) -> Table:
    networks = sorted({row.network for row in rows})
    lines = []
    for metric, title in METRIC_TITLES.items():
        for network in ["", *networks] if len(networks) > 1 else networks:
            found = [row for row in rows if network in ("", row.network)]
            means = seed_means(found, metric)
            stat = stat_of(means.values())
            if stat is None:
                continue
            interval = mean_interval(list(means.values()))
            bounds = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else "-"
            own = f"{means[seed]:.3f}" if seed in means else "-"
            cells = [network or "mean of all", stat.value, str(stat.n), bounds, own]
            lines.append((title, [Cell(text) for text in cells]))
    heads = ("accuracy", "network", "mean ± std", "n", "95 % interval", f"seed {seed} alone")
    return Table(f"Measured, {under(rows)}", [Column(head) for head in heads], lines, NOTE)
