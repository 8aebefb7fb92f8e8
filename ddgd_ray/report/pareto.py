"""The Pareto front of a sweep with several objectives: its table, and a drawing for each further objective."""

from collections.abc import Sequence

from ddgd_ray.report.figures import Dot, Drawing, scatter
from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.run.reading import Run

NOTE = (
    "Configurations that keep the constraints and that no other such beats: none is at least as good in every objective and "
    "better in one. Means over distillation seeds (n); {count} of {total} finished configurations keep the constraints."
)
ON_FRONT, BEATEN, BREAKS = 1, 0, 2
"""Colours of the dots."""


def pareto_tables(run: Run) -> list[Table]:
    """The table of the front in order of the first objective; none with one objective, or before anything ended."""
    ranking = run.ranking
    objective, worths = ranking.objective, {arm: ranking.worths[arm] for arm in ranking.contenders}
    if not objective.also or not worths:
        return []
    params = {arm: trial.params for arm, trial in run.first_trials().items() if arm in worths}
    names = list(dict.fromkeys(name for of_arm in params.values() for name in of_arm))
    lines = []
    for arm in ranking.front:
        values = [Cell(f"{value:.4g}") for value in worths[arm].values]
        varied = [Cell(_shown(params[arm].get(name, "-"))) for name in names]
        lines.append((arm, [Cell(str(len(ranking.seed_values[arm]))), *values, *varied]))
    arrows = {"maximize": "high", "minimize": "low"}
    goals = zip(objective.metrics, objective.directions, strict=True)
    columns = [Column("arm"), Column("n"), *(Column(f"{metric} ({arrows[direction]})") for metric, direction in goals)]
    columns += [Column(name, short=name.rpartition(".")[2]) for name in names]
    note = NOTE.format(count=sum(worth.is_feasible for worth in worths.values()), total=len(worths))
    return [Table(f"Pareto front, {len(lines)} of {len(worths)} configurations", columns, lines, note)]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def front_figures(run: Run) -> list[Drawing]:
    """A drawing of all arms and the front for each objective after the first; none with fewer than two arms."""
    ranking = run.ranking
    if len(ranking.contenders) < 2:
        return []
    return [_front(run, place) for place in range(1, len(ranking.objective.metrics))]


def _front(run: Run, place: int) -> Drawing:
    """A drawing of the first objective against the one at `place`. A line joins the front where these two alone decide."""
    ranking = run.ranking
    objective, front = ranking.objective, ranking.front
    dots = {}
    for arm in ranking.contenders:
        worth = ranking.worths[arm]
        group = ON_FRONT if arm in front else BEATEN if worth.is_feasible else BREAKS
        dots[arm] = Dot(arm, worth.values[place], worth.values[0], group=group)
    joined: Sequence[Dot] = [dots[arm] for arm in front] if len(objective.metrics) == 2 else ()
    goals = [f"{metric}: {direction}" for metric, direction in zip(objective.metrics, objective.directions, strict=True)]
    caption = f"Not beaten by any other: {', '.join(front) or 'none'}. {'; '.join(goals)}."
    num_breaking = sum(dot.group == BREAKS for dot in dots.values())
    caption += f" {num_breaking} arms break a constraint; they have the third colour." if num_breaking else ""
    first, second = objective.metric, objective.metrics[place]
    return scatter(f"Pareto front, {first} and {second}", second, first, list(dots.values()), caption=caption, front=joined)
