"""Sentences under the tables: what was selected on which images, how often the test images were read, what is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddgd_ray.report.compare import by_arm, chosen_arm, claim, compare
from ddgd_ray.run.results import Row, over_seeds


def selection_note(spec: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Which arm the objective chose, on which images, and what may be claimed from so many seeds."""
    chosen = chosen_arm(spec, rows)
    if chosen is None:
        return "No arm has finished."
    metric, (best, value) = spec["objective"]["metric"], chosen
    arms = by_arm([row for row in rows if not row.is_control])
    sizes = " and ".join(map(str, sorted({row.ipc for row in arms[best]})))
    on = "held-out training images; the test images chose nothing" if metric == "val_top1" else "the TEST images: an oracle"
    test = over_seeds(arms[best], "top1_last")
    said = f"Best by {metric} at {sizes} images per class: **{best}**, {value}, measured on {on}."
    said += f" Its test accuracy after the last step: {test if test else 'not measured'}."
    return f"{said} {claim(compare(arms, best, metric), best, metric)}".strip()


def readings_note(rows: Sequence[Row]) -> str:
    """How many trained classifiers read the test images, and whether only the finalists' did."""
    readers = {row.tested_by: row for row in rows if row.tested_by}
    num_trained = len({row.key for row in rows})
    if not readers:
        return f"Test images were read by none of the {num_trained} trained classifiers."
    num = len(readers)
    if all(row.tested_by[1:] != (row.key,) for row in readers.values()):
        arms = ", ".join(by_arm([row for row in rows if row.tested_by]))
        return f"The test set was touched by the finalists alone: {num} of {num_trained} trained classifiers ({arms})."
    of = "" if num == num_trained else f" of {num_trained}"
    return f"Test images were read by {num}{of} trained classifier{'s' if num_trained > 1 else ''}."


def missing_note(records: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """ "" when every evaluator of the records has a result."""
    known = sum(len(record["evaluators"]) for record in records)
    if known == len(rows):
        return ""
    return f"{known - len(rows)} of {known} evaluators have no result; means are over the others."
