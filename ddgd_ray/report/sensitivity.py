"""Drawings of accuracy over the values of every numeric field that varies, as Figure 4 of the paper."""

from collections.abc import Sequence
from typing import TypeGuard

from ddgd_ray.report.figures import Drawing, Line, Point, sensitivity
from ddgd_ray.report.statistics import mean_interval
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, common_metric
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import CEILING, Row, by_arm, over_seeds, seed_means

MAX_LINES = 6
MAX_FIGURES = 8


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numeric_fields(run: Run) -> list[str]:
    """The varied fields of a grid that have two values or more, all of them numbers."""
    return [path for path, values in run.spec.vary.items() if len(values) > 1 and all(map(is_number, values))]


def sensitivity_figures(run: Run) -> list[Drawing]:
    """A drawing for each field and number of images a class, under the main protocol; at most MAX_FIGURES."""
    found = []
    for path in numeric_fields(run):
        for ipc in run.spec.evaluate.ipc:
            drawing = _figure(run, path, ipc)
            if drawing is not None:
                found.append(drawing)
    return found[:MAX_FIGURES]


def _figure(run: Run, path: str, ipc: int) -> Drawing | None:
    rows = at_ipc(run.main_rows, ipc)
    metric = common_metric(rows)
    varied = [row for row in rows if path in row.params and metric in row.metrics]
    lines = _lines(varied, path, metric)
    if not lines:
        return None
    controls = {arm: over_seeds(found, metric) for arm, found in by_arm(rows).items() if found[0].is_control}
    references = [(arm if arm != CEILING else "full_data (ceiling)", stat.mean) for arm, stat in controls.items() if stat]
    default = run.default(path)
    caption = (
        f"Mean over networks at {ipc} images per class, protocol {run.protocol}; dots: distillation seeds; band: 95 % BCa "
        f"interval of the mean, from three seeds on."
    )
    num_lines = len({_others(row, path) for row in varied})
    if num_lines > len(lines):
        caption += f" {len(lines)} of {num_lines} combinations of the other fields are drawn."
    return sensitivity(
        f"{path} at {ipc} images per class",
        path,
        f"top-1, {METRIC_TITLES[metric]}",
        lines,
        default=float(default) if is_number(default) else None,
        references=references,
        caption=caption,
    )


def _others(row: Row, path: str) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in row.params.items() if name != path)


def _lines(rows: Sequence[Row], path: str, metric: str) -> list[Line]:
    """A line for each combination of the other varied fields."""
    found: dict[str, dict[float, list[Row]]] = {}
    for row in rows:
        if is_number(row.params[path]):
            found.setdefault(_others(row, path), {}).setdefault(float(row.params[path]), []).append(row)
    lines = []
    for label, by_value in list(found.items())[:MAX_LINES]:
        points = []
        for value in sorted(by_value):
            stat, seeds = over_seeds(by_value[value], metric), list(seed_means(by_value[value], metric).values())
            if stat is not None:
                points.append(Point(value, seeds, stat, mean_interval(seeds)))
        lines.append(Line(label, points))
    return lines
