"""Figures of a run for a notebook, from the same rows as the tables. matplotlib is imported when the first one is drawn."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ddgd_ray.api import frames
from ddgd_ray.errors import SpecError
from ddgd_ray.report.tables import METRIC_TITLES
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, by_arm, over_seeds, seed_means
from ddgd_ray.spec.load import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(run: Run, x: str, metric: str, ipc: int, protocol: str, ax: "Axes | None", has_controls: bool) -> "Axes":
    """A metric over a varied field. has_controls: controls are dashed lines."""
    import matplotlib.pyplot as plt

    field = varied_field(run, x)
    rows, metric, ipc, protocol = frames.chosen_rows(run, metric, ipc, protocol)
    axes = ax if ax is not None else plt.subplots()[1]
    places = _places(run, field, rows)
    is_search = run.spec.search is not None  # everything varies at once: no two arms differ in one field alone
    lines: dict[tuple[tuple[str, Any], ...], list[tuple[float, list[Row]]]] = {}
    for found in by_arm(rows).values():
        if field in found[0].params and any(metric in row.metrics for row in found):
            others = tuple((name, value) for name, value in found[0].params.items() if name != field and not is_search)
            lines.setdefault(others, []).append((places[found[0].params[field]], found))
    for others, points in lines.items():
        _line(
            axes,
            sorted(points, key=lambda point: point[0]),
            metric,
            ", ".join(f"{_short(k)} {v}" for k, v in others),
            not is_search,
        )
    controls = [row for row in rows if row.is_control and has_controls]
    for place, (arm, found) in enumerate(by_arm(controls).items()):
        stat = over_seeds(found, metric)
        if stat is not None:
            axes.axhline(stat.mean, linestyle="--", linewidth=1, color=f"{0.2 + 0.15 * (place % 4)}", label=f"{arm} (control)")
    if all(isinstance(value, str | bool) for value in places):
        axes.set_xticks(list(places.values()), [str(value) for value in places])
    axes.set_xlabel(field)
    axes.set_ylabel(METRIC_TITLES.get(metric, metric))
    axes.set_title(f"{run.spec.name}: {ipc} images per class, {protocol}", fontsize="small")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="x-small")
    return axes


def varied_field(run: Run, name: str) -> str:
    """The one varied field that is, or ends in, `name`. Raises SpecError with those that vary."""
    known = list(dict.fromkeys(field for row in run.rows for field in row.params))
    found = [field for field in known if field == name] or [field for field in known if field.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    what = f"{name!r} is the end of {' and of '.join(found)}" if found else f"{name!r} does not vary in this run"
    fix = f"did you mean {found[0] if found else nearest(name, known)}?" if known else "plot another run"
    raise SpecError(f"{what}; varied: {', '.join(known) or 'nothing'}", code="unknown-field", where=str(run.path), fix=fix)


def _places(run: Run, field: str, rows: list[Row]) -> dict[Any, float]:
    """{value: its place on the axis}: numbers at their value; words side by side, in the order of the sweep file."""
    seen = [row.params[field] for row in rows if field in row.params]
    values = list(dict.fromkeys([*run.spec.vary.get(field, ()), *seen]))
    if any(isinstance(value, str | bool) for value in values):
        return {value: float(place) for place, value in enumerate(values)}
    return {value: float(value) for value in sorted(values)}


def _line(axes: "Axes", points: list[tuple[float, list[Row]]], metric: str, label: str, is_joined: bool) -> None:
    """Means, joined where their order means something; every distillation seed a pale dot."""
    seeds = [(place, value) for place, found in points for value in seed_means(found, metric).values()]
    means = [(place, stat.mean) for place, found in points if (stat := over_seeds(found, metric)) is not None]
    (line,) = axes.plot(
        [place for place, _ in means], [mean for _, mean in means], "-_" if is_joined else "_", label=label or None
    )
    axes.scatter([place for place, _ in seeds], [value for _, value in seeds], color=line.get_color(), alpha=0.5, s=16)


def _arms(run: Run) -> "Figure":
    """Every arm's mean with its interval, every seed a dot."""
    import matplotlib.pyplot as plt

    rows, metric, ipc, protocol = frames.chosen_rows(run, "", 0, "")
    arms = {arm: found for arm, found in by_arm(rows).items() if over_seeds(found, metric) is not None}
    table = frames.table(run)
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.3 * len(arms)), layout="constrained")
    for place, (arm, found) in enumerate(arms.items()):
        means = list(seed_means(found, metric).values())
        color = "0.5" if found[0].is_control else "C0"
        axes.scatter(means, [place] * len(means), color=color, alpha=0.5, s=16)
        axes.plot(table.loc[arm, "mean"], place, marker="|", markersize=12, color=color)
        axes.plot(table.loc[arm, ["low", "high"]], [place, place], color=color)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set_xlabel(METRIC_TITLES.get(metric, metric))
    axes.set_title(f"{run.spec.name}: {ipc} images per class, {protocol}", fontsize="small")
    return figure


def _sensitivity(run: Run) -> "Figure":
    """A panel for each varied field."""
    import matplotlib.pyplot as plt

    fields = list(dict.fromkeys(field for row in run.rows for field in row.params))
    if not fields:
        what = "nothing varies in this run, or nothing is measured yet"
        raise SpecError(what, code="unknown-field", where=str(run.path), fix="figure('arms') needs no varied field")
    figure, panels = plt.subplots(1, len(fields), figsize=(5 * len(fields), 4), squeeze=False, layout="constrained")
    for field, axes in zip(fields, panels[0], strict=True):
        plot(run, field, "", 0, "", axes, has_controls=False)
    return figure


def _costs(run: Run) -> "Figure":
    """Seconds by stage, as they were spent when the artifacts were made."""
    import matplotlib.pyplot as plt

    spent = frames.costs(run).groupby("stage", sort=False)["seconds"].agg(["sum", "count"])
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.3 * len(spent)), layout="constrained")
    axes.barh([f"{stage} x {count}" for stage, count in spent["count"].items()], spent["sum"])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    return figure


FIGURES: Mapping[str, Callable[[Run], "Figure"]] = {"arms": _arms, "sensitivity": _sensitivity, "costs": _costs}


def _short(path: str) -> str:
    return ".".join(path.split(".")[-2:])
