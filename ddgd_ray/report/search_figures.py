"""Drawings of a search: history, importance, slices, parallel coordinates, contours."""

from collections.abc import Sequence
from typing import Any

from ddgd_ray.report.configurations import Configuration, Importance, best_so_far, configurations, fields_of, importances
from ddgd_ray.report.figures import HEIGHT, INK, Drawing, draw, series_colour, set_scale
from ddgd_ray.report.sensitivity import is_number
from ddgd_ray.run.objective import sign_of
from ddgd_ray.run.reading import Run
from ddgd_ray.spec.search_spec import ObjectiveSpec

COLOURS = "viridis"
MAX_FIELDS = 8


def search_figures(run: Run) -> list[Drawing]:
    """The drawings of a search by its first objective; none of a grid, or with a value of fewer than two configurations."""
    if run.spec.search is None:
        return []
    first, found = run.spec.objective, configurations(run)
    if len(found) < 2:
        return []
    ranked = importances(found)
    fields = [one.field for one in ranked] or fields_of(found)
    drawings = [_history(found, first)]
    if ranked:
        drawings.append(_importance(ranked, len(found)))
    drawings += _slices(run, found, fields[:MAX_FIELDS], first)
    if len(fields) > 1:
        drawings.append(_parallel(found, fields[:MAX_FIELDS], first))
    numeric = [name for name in fields if all(is_number(one.params.get(name)) for one in found)]
    pair = numeric[:2] if len(numeric) > 1 else fields[:2]
    if len(pair) == 2:
        drawings.append(_contour(found, pair[0], pair[1], first))
    return drawings


def _history(found: Sequence[Configuration], objective: ObjectiveSpec) -> Drawing:
    numbers = [one.number for one in found]
    values = [one.value for one in found]
    best = best_so_far(values, sign_of(objective.direction))

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.scatter(numbers, values, s=18, color=series_colour(0), linewidths=0, label="configuration")
        axes.step(numbers, best, where="post", color=series_colour(1), label="best so far")
        axes.set_xlabel("configuration, in the order proposed")
        axes.set_ylabel(objective.metric)
        axes.grid(True)
        axes.legend(fontsize=8)

    alt = f"{objective.metric} of {len(found)} configurations in order; the best is {best[-1]:.4g}."
    return draw("History of the search", paint, alt=alt, caption="Mean over networks, sizes and seeds.")


def _importance(ranked: Sequence[Importance], num: int) -> Drawing:
    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        places = range(len(ranked))[::-1]
        axes.barh(list(places), [one.share for one in ranked], color=series_colour(0), height=0.6)
        axes.set_yticks(list(places), labels=[one.field for one in ranked])
        for place, one in zip(places, ranked, strict=True):
            trend = "" if one.trend is None else f", rho {one.trend:+.2f}"
            axes.text(one.share, place, f" {one.share:.2f}{trend}", va="center", fontsize=8)
        axes.set_xlim(0, max(0.1, 1.35 * max(one.share for one in ranked)))
        axes.set_xlabel("share of the variance of ranks")

    caption = (
        f"Kruskal-Wallis eta squared of each field alone over {num} configurations (numbers in four equal bins), corrected "
        f"for chance; rho: Spearman's rank correlation. The search picks where it looks: this ranks, and proves nothing."
    )
    alt = "Importance of the searched fields. " + "; ".join(f"{one.field}: {one.share:.2f}" for one in ranked)
    return draw("Importance", paint, alt=alt, caption=caption, height=0.9 + 0.34 * len(ranked), width=7.4)


def places_of(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """The places of values on an axis, and names of its ticks: numbers as they are, others on 0, 1, ... by their text."""
    if all(map(is_number, values)):
        return [float(value) for value in values], []
    names = sorted({str(value) for value in values})
    return [float(names.index(str(value))) for value in values], names


def _slices(run: Run, found: Sequence[Configuration], fields: Sequence[str], objective: ObjectiveSpec) -> list[Drawing]:
    """One drawing with a panel a field: the objective over its values, coloured by when each was tried."""
    y = [one.value for one in found]
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)

    def paint(figure: Any) -> None:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, name in zip(panels.flat, fields, strict=False):
            x, names = places_of([one.params.get(name) for one in found])
            axes.scatter(x, y, c=[one.number for one in found], cmap=COLOURS, s=18, linewidths=0)
            _prepare(axes, x, names)
            default = run.default(name)
            if names and str(default) in names:
                default = float(names.index(str(default)))
            if is_number(default):
                axes.axvline(float(default), color=INK, linestyle=":", linewidth=1)
            axes.set_xlabel(name, fontsize=8)
            axes.grid(True)
        for axes in panels.flat[len(fields) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel(objective.metric)

    caption = "One dot a configuration: dark ones were tried first, bright ones last. Dotted: the preset's value."
    alt = f"{objective.metric} over each of {', '.join(fields)}."
    return [draw("Slices", paint, alt=alt, caption=caption, width=2.6 * columns + 0.8, height=2.5 * rows)]


def _prepare(axes: Any, x: Sequence[float], names: Sequence[str]) -> None:
    if names:
        axes.set_xticks(range(len(names)), labels=list(names), rotation=20, ha="right", fontsize=7)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        set_scale(axes, x)


def _parallel(found: Sequence[Configuration], fields: Sequence[str], objective: ObjectiveSpec) -> Drawing:
    """One line a configuration over all fields, the objective last; the best are drawn over the others."""
    values = [one.value for one in found]
    columns = [_unit([one.params.get(name) for one in found]) for name in fields] + [_unit(values)]
    order = sorted(range(len(found)), key=lambda place: sign_of(objective.direction) * values[place])

    def paint(figure: Any) -> None:
        import matplotlib

        axes = figure.add_subplot()
        colours = matplotlib.colormaps[COLOURS]
        for rank, place in enumerate(order):
            share = rank / max(1, len(order) - 1)
            axes.plot([column[0][place] for column in columns], color=colours(share), alpha=0.35 + 0.6 * share, linewidth=1.1)
        for x, (_, ticks) in enumerate(columns):
            axes.axvline(x, color=INK, linewidth=0.7)
            for y, text in ticks:
                axes.text(x + 0.02, y, text, fontsize=7, va="center")
        axes.set_xticks(range(len(columns)), labels=[*fields, objective.metric], rotation=12, ha="right", fontsize=8)
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_visible(False)

    best = found[order[-1]]
    alt = f"Parallel coordinates of {len(found)} configurations. The best, {best.arm}: " + ", ".join(
        f"{name} {value}" for name, value in best.params.items()
    )
    caption = "A line a configuration, the brighter the better; numbers by their rank between the ends of each axis."
    return draw("Parallel coordinates", paint, alt=alt, caption=caption, width=max(6.4, 1.5 * len(columns)), height=HEIGHT)


def _unit(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """The places in [0, 1] of values on an axis, by rank, and the ticks of the axis."""
    x, names = places_of(values)
    distinct = sorted(set(x))
    of = {value: index / max(1, len(distinct) - 1) for index, value in enumerate(distinct)}
    if names:
        ticks = [(of[float(index)], name) for index, name in enumerate(names)]
    else:
        some = distinct if len(distinct) <= 6 else [distinct[round(part * (len(distinct) - 1) / 4)] for part in range(5)]
        ticks = [(of[value], f"{value:.3g}") for value in some]
    return [of[value] for value in x], ticks


def _contour(found: Sequence[Configuration], first: str, second: str, objective: ObjectiveSpec) -> Drawing:
    """The objective over two fields: filled contours where the numbers span a plane, dots in any case."""
    x, x_names = places_of([one.params.get(first) for one in found])
    y, y_names = places_of([one.params.get(second) for one in found])
    values = [one.value for one in found]

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        _prepare(axes, x, x_names)
        set_scale(axes, y, is_x=False) if not y_names else axes.set_yticks(range(len(y_names)), labels=y_names)
        if not x_names and not y_names and _spans_plane(x, y):
            axes.tricontourf(x, y, values, levels=10, cmap=COLOURS, alpha=0.6)
        dots = axes.scatter(x, y, c=values, cmap=COLOURS, s=28, edgecolors=INK, linewidths=0.5)
        figure.colorbar(dots, label=objective.metric)
        axes.set_xlabel(first)
        axes.set_ylabel(second)

    caption = "The two most important fields; between the dots linear interpolation."
    return draw(
        "Contour", paint, alt=f"{objective.metric} over {first} and {second}, {len(found)} configurations.", caption=caption
    )


def _spans_plane(x: Sequence[float], y: Sequence[float]) -> bool:
    """Whether Delaunay's triangulation has a triangle to draw."""
    import numpy as np

    if len(set(zip(x, y, strict=True))) < 4:
        return False
    centred = np.array([x, y], dtype=float)
    centred -= centred.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.abs(centred).max(axis=1, keepdims=True), 1e-30)
    return int(np.linalg.matrix_rank(centred, tol=1e-6)) == 2
