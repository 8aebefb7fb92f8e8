"""Drawings as SVG that takes its colours from the page around it, so that light and dark both read well.

matplotlib without pyplot: no window, no global figure. It draws in placeholder colours; the SVG names CSS variables in
their place. matplotlib is imported when first used: it takes half a second.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ddgd_ray.report.statistics import Interval
from ddgd_ray.run.results import Stat

INK = "#0c00ff"
"""The placeholder that becomes the colour of the page's text."""
NUM_SERIES = 8
WIDTH, HEIGHT = 6.4, 3.9  # inches; a page shows them as wide as it has room for
SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",  # text stays text: small, to be searched and read aloud
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollars
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Drawing:
    """An SVG element; alt says in words what it shows."""

    title: str
    svg: str
    alt: str
    caption: str = ""


def series_colour(index: int) -> str:
    return f"#0c00{index % NUM_SERIES:02x}"


def draw(
    title: str,
    paint: Callable[[Any], None],
    *,
    alt: str,
    caption: str = "",
    width: float = WIDTH,
    height: float = HEIGHT,
) -> Drawing:
    """A drawing. paint: draws on a fresh matplotlib Figure. The same calls give the same bytes."""
    import io

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
        )
    return Drawing(title, for_page(text.getvalue(), alt), alt, caption)


def for_page(svg: str, alt: str) -> str:
    """The svg element alone, without fixed size, fonts, colours, and names that a second drawing on the page would repeat."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", body, flags=re.S)  # a style would hold for the page
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None, "matplotlib gives every SVG a viewBox"
    width = float(box.group(1).split()[2])
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box.group(1)}" role="img" aria-label="{escape(alt)}" '
    head += f'style="width:{width * 4 / 3:.0f}px">'
    body = head + body[body.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", body)
    body = re.sub(r"#0c00([0-7][0-9a-f])", lambda found: f"var(--series-{int(found.group(1), 16)})", body)
    body = body.replace(INK, "currentColor")
    return re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit", body).replace(
        "px inherit", "px var(--font)"
    )


def set_scale(axis: Any, values: Sequence[float], *, is_x: bool = True) -> None:
    """Make an axis logarithmic where the positive values span a factor of 20; with a 0, linear up to the least of them."""
    positive = [value for value in values if value > 0]
    if not positive or min(values) < 0 or max(positive) < 20 * min(positive):
        return
    from matplotlib.ticker import LogFormatter

    set_it, ticked = (axis.set_xscale, axis.xaxis) if is_x else (axis.set_yscale, axis.yaxis)
    if len(positive) == len(values):
        set_it("log")
    else:
        set_it("symlog", linthresh=min(positive), linscale=0.5)
    ticked.set_major_formatter(lambda value, place: f"{value:g}")  # matplotlib's own writes powers of ten in TeX
    ticked.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def mark_values(axis: Any, values: Sequence[float]) -> None:
    """Put ticks at the values that were tried, as they were written."""
    if len(values) <= 12:
        axis.set_xticks(list(values), labels=[f"{value:g}" for value in values])
        axis.minorticks_off()


@dataclass(frozen=True)
class Point:
    """One arm on a line: the value on x, each seed, their mean and its interval."""

    x: float
    seeds: Sequence[float]
    stat: Stat
    interval: Interval | None


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[Point]


def sensitivity(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    default: float | None,
    references: Sequence[tuple[str, float]],
    caption: str,
) -> Drawing:
    """A drawing as the paper's Figure 4: means on a line, intervals as a band, seeds as dots, the default as a vertical line.

    references: horizontal dashed lines; those far outside what the lines span are named in the caption.
    """
    values = sorted({point.x for line in lines for point in line.points})
    shown = [value for line in lines for point in line.points for value in (*point.seeds, point.stat.mean)]
    room = max(max(shown) - min(shown), 0.01)
    near = [(name, y) for name, y in references if min(shown) - room <= y <= max(shown) + room]
    far = [f"{name} {y:.3f}" for name, y in references if (name, y) not in near]

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        set_scale(axes, [*values, *([default] if default is not None else [])])
        for index, line in enumerate(lines):
            colour = series_colour(index)
            axes.plot([point.x for point in line.points], [point.stat.mean for point in line.points], color=colour, marker="o",
                      markersize=4, label=line.label or None)  # fmt: skip
            banded = [point for point in line.points if point.interval]
            if banded:
                low, high = ([getattr(point.interval, end) for point in banded] for end in ("low", "high"))
                axes.fill_between([point.x for point in banded], low, high, color=colour, alpha=0.18, linewidth=0)
            dots = [(point.x, seed) for point in line.points for seed in point.seeds]
            axes.scatter([x for x, _ in dots], [y for _, y in dots], s=9, color=colour, alpha=0.55, linewidths=0)
        for index, (name, y) in enumerate(near):
            colour = series_colour(len(lines) + index)
            axes.axhline(y, color=colour, linestyle="--", linewidth=1, label=name)
        if default is not None:
            axes.axvline(default, color=INK, linestyle=":", linewidth=1, label=f"default {default:g}")
        mark_values(axes, values)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    means = "; ".join(
        (f"{line.label}: " if line.label else "") + ", ".join(f"{point.x:g}: {point.stat}" for point in line.points)
        for line in lines
    )
    outside = f" Outside the figure: {', '.join(far)}." if far else ""
    return draw(title, paint, alt=f"{y_label} over {x_label}. {means}", caption=caption + outside, width=7.4)


@dataclass(frozen=True)
class Dot:
    label: str
    x: float
    y: float
    group: int = 0
    """The number of the dot's colour."""


def scatter(
    title: str, x_label: str, y_label: str, dots: Sequence[Dot], *, caption: str, named: int = 14, front: Sequence[Dot] = ()
) -> Drawing:
    """A drawing of dots, with labels where they are few. front: dots that a dashed line joins."""

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        set_scale(axes, [dot.x for dot in dots])
        if front:
            along = sorted(front, key=lambda dot: dot.x)
            axes.plot([dot.x for dot in along], [dot.y for dot in along], color=INK, linewidth=0.8, linestyle="--")
        for group in sorted({dot.group for dot in dots}):
            mine = [dot for dot in dots if dot.group == group]
            axes.scatter([dot.x for dot in mine], [dot.y for dot in mine], s=26, color=series_colour(group), linewidths=0)
        _name(axes, dots if len(dots) <= named else front)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True)

    listed = "; ".join(f"{dot.label}: {dot.x:.4g}, {dot.y:.4g}" for dot in dots[:40])
    return draw(title, paint, alt=f"{y_label} against {x_label}, {len(dots)} points. {listed}", caption=caption)


def _name(axes: Any, dots: Sequence[Dot]) -> None:
    """Label the dots, but for those so near to a labelled one that both could not be read."""
    taken: list[tuple[float, float]] = []
    axes.autoscale_view()
    for dot in dots:
        x, y = axes.transAxes.inverted().transform(axes.transData.transform((dot.x, dot.y)))
        if all(abs(x - other[0]) > 0.12 or abs(y - other[1]) > 0.04 for other in taken):
            axes.annotate(dot.label, (dot.x, dot.y), xytext=(4, 3), textcoords="offset points", fontsize=7)
            taken.append((float(x), float(y)))
