"""What was measured of one arm, for a card: its place by the objective, and mean, spread, n and interval beside the others'."""

from collections.abc import Sequence

from ddgd_ray.exporting.choose import Choice
from ddgd_ray.report.notes import measured_on, place_note
from ddgd_ray.report.render import Cell, Column, Table, markdown
from ddgd_ray.report.statistics import mean_interval
from ddgd_ray.report.tables import METRIC_TITLES, under
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import CEILING, Row, by_arm, main_metric, over_seeds, protocols_of, seed_means, stat_of
from ddgd_ray.spec.search_spec import ACCURACIES

NOTE = (
    "Top-1 accuracy in [0, 1]: classifiers trained from scratch on the set, tested on real images. Classifiers are averaged "
    "inside a distillation seed; n counts distillation seeds; mean ± sample standard deviation; interval: 95 % BCa bootstrap."
)


def numbers_section(choice: Choice, ipc: int = 0) -> str:
    """The section `Numbers` of a card. ipc: images a class of the exported set, 0 for a model."""
    run = choice.run
    parts = [_selection(choice)]
    lost, known = run.unfinished()
    if lost:
        parts.append(f"{lost} of the run's {known} evaluators have no result yet; means are over the others.")
    if not ipc:
        parts.append("Measured on the sets that models of this arm drew:")
    elif not any(row.arm == choice.arm and row.ipc in (ipc, 0) for row in run.rows):
        parts.append(f"No set of {ipc} images per class of this arm was judged.")
    tables = [*number_tables(run, choice.arm, choice.seed), context_table(run, choice.arm)]
    return "\n\n".join([*parts, *(_under_heading(table) for table in tables if table is not None)])


def _selection(choice: Choice) -> str:
    """The arm's place by the run's objective, what that goes by, and what it was measured on."""
    run, ranking, objective = choice.run, choice.run.ranking, choice.run.spec.objective
    if not ranking.best:
        return "No arm of the run has a result yet."
    sizes = " and ".join(map(str, run.spec.evaluate.ipc))
    at = f" at {sizes} images per class" if objective.metric in ACCURACIES else ""
    of = f"{ranking.told(ranking.best)} by {objective.metric}, {objective.direction}d{at}, {measured_on(objective.metric)}."
    if choice.is_best:
        return f"The run's objective prefers this arm: {of} {place_note(ranking)}".strip()
    also = " This arm is on the Pareto front too." if objective.also and choice.arm in ranking.front else ""
    return f"The run's objective prefers another arm, {ranking.best}: {of}{also}"


def number_tables(run: Run, arm: str, seed: int) -> list[Table]:
    """A table for every protocol and number of images a class that the arm was judged at; none while nothing was."""
    tables = []
    for protocol in protocols_of(run.rows):
        mine = [row for row in run.rows if row.protocol == protocol and row.arm == arm]
        for ipc in sorted({row.ipc for row in mine}):
            tables.append(_measured([row for row in mine if row.ipc == ipc], seed))
    return tables


def context_table(run: Run, arm: str) -> Table | None:
    """Every arm of the run by the main metric at its largest sets, this one marked. None while nothing is measured."""
    rows = [row for row in run.main_rows if row.ipc in (run.ipc, 0)]
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


def _under_heading(table: Table) -> str:
    """The table, one level below a section of the card."""
    return f"#{markdown(table)}"
