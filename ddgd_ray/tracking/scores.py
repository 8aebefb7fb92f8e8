"""The accuracies and measures of a trial as named points, at the times at which they were measured."""

import statistics
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.stages.curves import read_curves
from ddgd_ray.storage.store import Artifact, Store
from ddgd_ray.tracking.names import thinned

MEANS = {
    "top1_last": "top1_mean",
    "val_top1": "val_top1_mean",
    "top1_selected": "top1_selected_mean",
    "top1_best": "top1_best_mean",
}
"""{metric of an evaluator: name of its mean over the trial's evaluators of the main protocol}."""


@dataclass(frozen=True)
class Point:
    """One value of a metric, measured at `seconds` since 1970."""

    name: str
    value: float
    seconds: float
    step: int = 0


def name_of(evaluator: Mapping[str, Any]) -> str:
    return f"{evaluator['network']}/ipc{evaluator['ipc'] or 'all'}"


def trial_points(record: Mapping[str, Any], store: Store) -> Iterator[Point]:
    """Means over evaluators, all (`top1_mean`) and by network and images a class (`top1_last/NETWORK/ipcN`); quality measures.

    A mean comes when all its evaluators have the metric: one over some of them would be compared with those over all.
    """
    main = record["evaluators"][0]["protocol"] if record["evaluators"] else ""
    groups: dict[tuple[str, str], list[dict[str, Point]]] = {}
    for evaluator in record["evaluators"]:
        found = _scores(evaluator, store)
        of_protocol = "" if evaluator["protocol"] == main else f"/{evaluator['protocol']}"
        if not of_protocol:
            groups.setdefault(("", ""), []).append(found)
        groups.setdefault((name_of(evaluator), of_protocol), []).append(found)
    for (name, of_protocol), members in groups.items():
        for metric, mean in MEANS.items():
            if all(metric in scores for scores in members):
                title = f"{metric}/{name}{of_protocol}" if name else mean
                values = [scores[metric].value for scores in members]
                yield Point(title, statistics.fmean(values), max(scores[metric].seconds for scores in members))
    for stage, key, label in record["quality"]:
        measured = store.get(stage, key)
        for metric, value in (measured.metrics if measured else {}).items():
            assert measured is not None
            yield Point(f"{label.replace(',', '')}/{metric}", value, measured.manifest["created"])


def _scores(evaluator: Mapping[str, Any], store: Store) -> dict[str, Point]:
    artifact = store.get(evaluator["stage"], evaluator["key"])
    if artifact is None:
        return {}
    tested = store.get(*evaluator["test"]) if evaluator.get("test") else None
    return {point.name: point for point in evaluator_points(artifact, tested)}


def evaluator_points(artifact: Artifact, tested: Artifact | None, without: Collection[str] = ()) -> list[Point]:
    """The evaluator's numbers, then those of what looked at the test images for it, which count where both have a name.

    without: names that a curve has already.
    """
    made = [artifact] if tested is None else [artifact, tested]
    points = [Point(name, value, one.manifest["created"]) for one in made for name, value in one.metrics.items()]
    return [point for point in points if point.name not in without]


def curves(artifact: Artifact, prefix: str = "") -> list[Point]:
    """Every curve of a stage on its own: diagnostics come at fewer steps than losses."""
    by_name: dict[str, list[Point]] = {}
    for point in read_curves(artifact):
        for name, value in point.items():
            if name not in ("step", "time"):
                by_name.setdefault(name, []).append(Point(prefix + name, value, point["time"], int(point["step"])))
    return [point for points in by_name.values() for point in thinned(points)]
