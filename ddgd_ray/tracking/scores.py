"""The accuracies and measures of a trial as named measurements, at the times at which they were made."""

import statistics
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ddgd_ray.run.records import EvaluatorRecord, TrialRecord
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
class Measurement:
    """One value of a metric, made at `seconds` since 1970. step: of a curve, 0 elsewhere."""

    name: str
    value: float
    seconds: float
    step: int = 0


def set_name(evaluator: EvaluatorRecord) -> str:
    """`NETWORK/ipcN`: what a classifier is and how large the set is that it is trained on."""
    return f"{evaluator.network}/ipc{evaluator.ipc or 'all'}"


def trial_scores(trial: TrialRecord, store: Store) -> Iterator[Measurement]:
    """Means over evaluators, all (`top1_mean`) and by network and images a class (`top1_last/NETWORK/ipcN`); quality measures.

    A mean comes when all its evaluators have the metric: one over some of them would be compared with those over all.
    """
    groups: dict[tuple[str, str], list[dict[str, Measurement]]] = {}
    for evaluator in trial.evaluators:
        found = _scores(evaluator, store)
        of_protocol = "" if evaluator.protocol == trial.protocol else f"/{evaluator.protocol}"
        if not of_protocol:
            groups.setdefault(("", ""), []).append(found)
        groups.setdefault((set_name(evaluator), of_protocol), []).append(found)
    for (name, of_protocol), members in groups.items():
        for metric, mean in MEANS.items():
            if all(metric in scores for scores in members):
                title = f"{metric}/{name}{of_protocol}" if name else mean
                values = [scores[metric].value for scores in members]
                yield Measurement(title, statistics.fmean(values), max(scores[metric].seconds for scores in members))
    for measure in trial.quality:
        artifact = store.get(*measure.ref)
        if artifact is not None:
            label = measure.label.replace(",", "")
            yield from (Measurement(f"{label}/{name}", value, artifact.created) for name, value in artifact.metrics.items())


def _scores(evaluator: EvaluatorRecord, store: Store) -> dict[str, Measurement]:
    artifact = store.get(*evaluator.ref)
    if artifact is None:
        return {}
    tested = store.get(*evaluator.test) if evaluator.test else None
    return {score.name: score for score in evaluator_scores(artifact, tested)}


def evaluator_scores(artifact: Artifact, tested: Artifact | None, without: Collection[str] = ()) -> list[Measurement]:
    """The evaluator's numbers, then those of what looked at the test images for it, which count where both have a name.

    without: names that a curve has already.
    """
    made = [artifact] if tested is None else [artifact, tested]
    scores = [Measurement(name, value, one.created) for one in made for name, value in one.metrics.items()]
    return [score for score in scores if score.name not in without]


def curves(artifact: Artifact, prefix: str = "") -> list[Measurement]:
    """Every curve of a stage, each thinned on its own: diagnostics come at fewer steps than losses."""
    by_name: dict[str, list[Measurement]] = {}
    for point in read_curves(artifact):
        for name, value in point.items():
            if name not in ("step", "time"):
                found = Measurement(prefix + name, value, point["time"], int(point["step"]))
                by_name.setdefault(name, []).append(found)
    return [found for along in by_name.values() for found in thinned(along)]
