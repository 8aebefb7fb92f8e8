"""Effects with their intervals, and what two fields do together: the drawings of a grid of two or more varied fields."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ddgd_ray.report.effects import Effect
from ddgd_ray.report.factorial import effect_name, grid_effects, grid_factors, short_field
from ddgd_ray.report.figures import INK, Drawing, draw, series_colour
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, common_metric
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, over_seeds

MAX_EFFECTS = 40
MAX_PAIRS = 3
"""Pairs of fields that get an interaction plot."""


def effect_figures(run: Run) -> list[Drawing]:
    """Under the main protocol, for each number of images a class; none for a grid of one field."""
    return [drawing for ipc in run.spec.evaluate.ipc for drawing in _figures(run, ipc)]


def _figures(run: Run, ipc: int) -> list[Drawing]:
    rows, vary = at_ipc(run.main_rows, ipc), run.spec.vary
    metric = common_metric(rows)
    found = grid_effects(rows, vary, run.default, metric)
    if not found:
        return []
    what = f"top-1, {METRIC_TITLES[metric]}"
    figures = [_effects_figure(found, f"Effects at {ipc} images per class", what)]
    pairs = list(combinations(grid_factors(vary), 2))[:MAX_PAIRS]
    return figures + [_interaction_figure(rows, pair, vary, metric, ipc) for pair in pairs]


def _effects_figure(found: Sequence[Effect], title: str, what: str) -> Drawing:
    shown = [effect for effect in found if effect.kind in ("mean", "default")]
    room = MAX_EFFECTS - len(shown)
    pairs = sorted((one for one in found if one.kind == "interaction"), key=lambda one: -abs(one.difference))[: max(room, 0)]
    shown += pairs
    labels = [_label(effect) for effect in shown]

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for place, effect in enumerate(shown):
            colour = series_colour(("mean", "default", "interaction").index(effect.kind))
            weight = 3.0 if effect.is_distinguishable else 1.4
            interval, seeds = effect.interval, list(effect.by_seed.values())
            if interval:
                axis.plot([100 * interval.low, 100 * interval.high], [place, place], color=colour, linewidth=weight)
            axis.plot([100 * value for value in seeds], [place] * len(seeds), "|", color=INK, alpha=0.45, markersize=6)
            axis.plot(100 * effect.difference, place, "o", color=colour, markersize=6 if effect.is_distinguishable else 4)
        axis.axvline(0, color=INK, linewidth=0.8, alpha=0.6)
        axis.set_yticks(range(len(shown)), labels=labels)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xlabel(f"points of {what}")
        axis.grid(axis="x")

    said = [f"{label} {100 * effect.difference:+.2f}" for label, effect in zip(labels, shown, strict=True)]
    return draw(
        title,
        paint,
        alt=f"{title} in points of {what}: {'; '.join(said)}.",
        caption=(
            "Dots: effects; lines: 95 % intervals over blocks; strokes: the seeds' means. Thick: told apart from zero, by the "
            "corrected p within blocks and by the interval over seeds."
        ),
        width=8.0,
        height=max(2.4, 0.6 + 0.24 * len(shown)),
    )


def _label(effect: Effect) -> str:
    if effect.kind == "default":
        return f"{effect_name(effect)} against {effect.against}"
    return effect_name(effect) if effect.kind == "interaction" else f"{effect_name(effect)} against the mean"


def _interaction_figure(
    rows: Sequence[Row], pair: tuple[str, str], vary: Mapping[str, Sequence[Any]], metric: str, ipc: int
) -> Drawing:
    """Means of the second field's levels, a line for each level of the first: parallel where the two add up."""
    first, second = pair
    cells = {
        (level, across): over_seeds([row for row in rows if _is_in(row, {first: level, second: across})], metric)
        for level in vary[first]
        for across in vary[second]
    }
    title = f"{short_field(first)} and {short_field(second)} together at {ipc} images per class"

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for number, level in enumerate(vary[first]):
            found = [(place, stat) for place, across in enumerate(vary[second]) if (stat := cells[level, across])]
            means = [stat.mean for _, stat in found]
            colour = series_colour(number)
            axis.plot(
                [place for place, _ in found], means, "o-", color=colour, markersize=4, label=f"{short_field(first)} {level}"
            )
        axis.set_xticks(range(len(vary[second])), labels=[str(across) for across in vary[second]])
        axis.set_xlabel(short_field(second))
        axis.set_ylabel(f"top-1, {METRIC_TITLES[metric]}")
        axis.margins(x=0.1)
        axis.grid(axis="y")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)

    said = [f"{level} with {across} {stat.mean:.4f}" for (level, across), stat in cells.items() if stat]
    caption = "Means over seeds, networks and further fields. Where the lines are parallel, the two fields add up."
    return draw(title, paint, alt=f"{title}: {'; '.join(said)}.", caption=caption)


def _is_in(row: Row, cell: Mapping[str, Any]) -> bool:
    return not row.is_control and all(row.params.get(name) == value for name, value in cell.items())
