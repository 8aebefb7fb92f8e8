"""Accuracy of each class, a line for every classifier: nothing averaged. Confusion matrices are in each result.json."""

import csv
import io
import json
from collections.abc import Sequence

from ddgd_ray.report.results import Row
from ddgd_ray.store import Store


def per_class_csv(rows: Sequence[Row], store: Store) -> str:
    """measured_on: test images, or validation images where the test images were not looked at."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["arm", "is_control", "distill_seed", "network", "ipc", "evaluate_seed", "protocol", "measured_on", "class", "top1"]
    writer.writerow(head)
    for row in rows:
        artifact = store.get(*row.tested_by) if row.tested_by else store.get("evaluate", row.key)
        path = artifact.path / "result.json" if artifact is not None else None
        result = json.loads(path.read_text()) if path is not None and path.is_file() else {}
        place = [row.arm, row.is_control, row.seed, row.network, row.ipc, row.evaluate_seed, row.protocol]
        for name, value in result.get("per_class_top1", {}).items():
            writer.writerow([*place, result.get("measured_on", "test"), name, repr(value)])
    return text.getvalue()
