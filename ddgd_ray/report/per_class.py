"""Accuracy of each class: a line for every classifier, nothing averaged, and a table of means.

Confusion matrices are in each result.json.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ddgd_ray.report.cells import CellWriter
from ddgd_ray.report.published import json_of
from ddgd_ray.run.results import Row, by_arm, over_seeds
from ddgd_ray.storage.store import Store


def results_by_class(rows: Sequence[Row], store: Store) -> Iterator[tuple[Row, str, Mapping[str, float]]]:
    """(row, measured on, {class: top-1}) of each classifier; measured on: `test`, or `validation` where only that was."""
    for row in rows:
        artifact = store.get(*row.tested_by) if row.tested_by else store.get("evaluate", row.key)
        result: dict[str, Any] = (json_of(artifact, "result.json") if artifact is not None else None) or {}
        yield row, result.get("measured_on", "test"), result.get("per_class_top1", {})


def per_class_csv(rows: Sequence[Row], store: Store) -> str:
    """A line for each classifier and class. measured_on: `test`, or `validation` where the test images were not looked at."""
    text = io.StringIO()
    writer = CellWriter(text)
    head = ["arm", "is_control", "distill_seed", "network", "ipc", "evaluate_seed", "protocol", "measured_on", "class", "top1"]
    writer.writerow(head)
    for row, measured_on, classes in results_by_class(rows, store):
        place = [row.arm, row.is_control, row.seed, row.network, row.ipc, row.evaluate_seed, row.protocol]
        for name, value in classes.items():
            writer.writerow([*place, measured_on, name, repr(value)])
    return text.getvalue()


@dataclass(frozen=True)
class ClassTable:
    """A table of means. values: {arm: mean top-1 of each class, None where nobody measured it}."""

    measured_on: str
    classes: Sequence[str]
    values: Mapping[str, Sequence[float | None]]


def class_table(rows: Sequence[Row], store: Store) -> ClassTable | None:
    """The means over seeds, on test images where any row has them, else on validation images; None without any."""
    found = [entry for entry in results_by_class(rows, store) if entry[2]]
    if not found:
        return None
    measured_on = "test" if any(on == "test" for _, on, _ in found) else found[0][1]
    by_class = [replace(row, metrics=classes) for row, on, classes in found if on == measured_on]
    names = list(dict.fromkeys(name for row in by_class for name in row.metrics))
    values = {}
    for arm, mine in by_arm(by_class).items():
        stats = [over_seeds(mine, name) for name in names]
        values[arm] = [stat.mean if stat else None for stat in stats]
    return ClassTable(measured_on, names, values)
