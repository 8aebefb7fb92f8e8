"""The ablation table as Markdown, CSV and a grid of two varied fields."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ddgd_ray.report.results import Row, Stat, over_seeds

METRIC_TITLES = {
    "val_top1": "validation (selects)",
    "top1_last": "test, last step",
    "top1_selected": "test, step chosen on validation",
    "top1_best": "test, best step (oracle)",
}


def by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by arm: controls last, otherwise in the order of the records."""
    arms: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.is_control):
        arms.setdefault(row.arm, []).append(row)
    return arms


def markdown_report(sweep: Mapping[str, Any], rows: Sequence[Row], failed: Sequence[Mapping[str, Any]]) -> str:
    """The whole report as Markdown: grid, arms, per network, what was selected on what, what failed."""
    spec = sweep["spec"]
    rows = in_order_of(spec["vary"], rows)
    protocols = sorted({str(sweep["identity"]["settings"].get("evaluate", {}).get("protocol", {}).get("name", "quick-small"))})
    parts = [
        f"# {spec['name']}: preset {spec['preset']}",
        f"Accuracies are top-1 in [0, 1], mean ± sample standard deviation over distillation seeds (n); protocol "
        f"{', '.join(protocols)}; networks {', '.join(spec['evaluate']['networks'])}; images per class "
        f"{', '.join(map(str, spec['evaluate']['ipc']))}; classifier seeds {len(spec['seeds']['evaluate'])} a set, averaged "
        f"first.",
    ]
    for ipc in spec["evaluate"]["ipc"]:
        grid = grid_table([row for row in rows if row.ipc == ipc and not row.is_control], spec["vary"])
        if grid:
            parts += [f"## Test accuracy, last step, {ipc} images per class", grid]
        parts += [
            f"## Arms, {ipc} images per class",
            arm_table([row for row in rows if row.ipc in (ipc, 0)], spec["evaluate"]["networks"]),
        ]
    parts.append(selection_note(spec, rows))
    if failed:
        lines = [f"- {record['name']}: {'; '.join(sorted(set(record['errors'].values())))}" for record in failed]
        parts += ["## Failed trials", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def in_order_of(vary: Mapping[str, Sequence[Any]], rows: Sequence[Row]) -> list[Row]:
    """Rows as their values stand in the sweep file; rows without such values, controls, last."""

    def place(row: Row) -> list[int]:
        found = ((list(values), row.params.get(path)) for path, values in vary.items())
        return [values.index(value) if value in values else len(values) for values, value in found]

    return sorted(rows, key=place)


def grid_table(rows: Sequence[Row], vary: Mapping[str, Any], metric: str = "top1_last") -> str:
    """First varied field down, second across, as the paper's Table 3; "" unless two fields vary."""
    if len(vary) != 2:
        return ""
    (down, across), (down_values, across_values) = tuple(vary), tuple(vary.values())
    header = f"| {down} \\ {across} | " + " | ".join(map(str, across_values)) + " |"
    lines = [header, "|" + " --- |" * (len(across_values) + 1)]
    for first in down_values:
        cells = []
        for second in across_values:
            found = [row for row in rows if row.params[down] == first and row.params[across] == second]
            cells.append(_text(over_seeds(found, metric)))
        lines.append(f"| {first} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arm_table(rows: Sequence[Row], networks: Sequence[str]) -> str:
    """One line an arm: each metric over all networks, then the last test accuracy of each network."""
    titles = [*METRIC_TITLES.values(), *(f"{network}, test, last step" for network in networks)]
    lines = ["| arm | " + " | ".join(titles) + " |", "|" + " --- |" * (len(titles) + 1)]
    for arm, found in by_arm(rows).items():
        stats = [over_seeds(found, metric) for metric in METRIC_TITLES]
        stats += [over_seeds([row for row in found if row.network == network], "top1_last") for network in networks]
        name = f"{arm} (control)" if found[0].is_control else arm
        lines.append(f"| {name} | " + " | ".join(map(_text, stats)) + " |")
    return "\n".join(lines)


def selection_note(spec: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Which arm the objective chose, on which images, and what may be claimed from so many seeds."""
    metric = spec["objective"]["metric"]
    largest = max(spec["evaluate"]["ipc"])
    values = {
        arm: stat
        for arm, found in by_arm([row for row in rows if not row.is_control and row.ipc == largest]).items()
        if (stat := over_seeds(found, metric)) is not None
    }
    if not values:
        return "## Selection\n\nNo arm has finished."
    sign = 1 if spec["objective"]["direction"] == "maximize" else -1
    best = max(values, key=lambda arm: sign * values[arm].mean)
    on = "held-out training images; the test images chose nothing" if metric == "val_top1" else "the TEST images: an oracle"
    test = over_seeds([row for row in rows if row.arm == best and row.ipc == largest], "top1_last")
    n = min(stat.n for stat in values.values())
    claim = (
        f"With n = {n} distillation seeds no claim of significance is possible (6 are the least)."
        if n < 6
        else "Differences smaller than two standard errors are noise."
    )
    return (
        f"## Selection\n\nBest by {metric}: **{best}**, {values[best]}, measured on {on}. "
        f"Its test accuracy after the last step: {_text(test)}. {claim}"
    )


def csv_table(rows: Sequence[Row]) -> str:
    """Every evaluator as a line: nothing averaged."""
    names = sorted({name for row in rows for name in row.metrics})
    params = sorted({name for row in rows for name in row.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "is_control", *params, "distill_seed", "network", "ipc", "evaluate_seed", *names])
    for row in rows:
        values = [row.params.get(name, "") for name in params]
        metrics = [repr(row.metrics[name]) if name in row.metrics else "" for name in names]
        writer.writerow([row.arm, row.is_control, *values, row.seed, row.network, row.ipc, row.evaluate_seed, *metrics])
    return text.getvalue()


def _text(stat: Stat | None) -> str:
    return "-" if stat is None else str(stat)
