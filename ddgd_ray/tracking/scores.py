"""The accuracies and measures of a trial as named measurements, at the times at which they were made."""

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import EvaluatorRecord, TrialRecord
from ddgd_ray.stages.curves import read_curves
from ddgd_ray.storage.store import Artifact, Store
from ddgd_ray.tracking.names import thinned

KINDS = ("held_out_validation", "test", "test_oracle", "test_selected")
"""What accuracies are measured on. MLflow sorts by name: what may choose an arm comes before what may not."""
NAMES = {
    "val_top1": "held_out_validation/top1",
    "val_top1_best": "held_out_validation/top1_best",
    "top1_last": "test/top1",
    "test_top1": "test/top1_by_step",
    "top1_best": "test_oracle/top1",
    "top1_selected": "test_selected/top1",
    "test_top1_selected": "test_selected/top1_by_step",
}
"""{metric or curve of an evaluator: its name in MLflow}; the others keep theirs."""


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
    """Means over evaluators, all (`test/mean`) and by network and images a class (`test/NETWORK/ipcN`); quality measures.

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
        for kind in KINDS:
            accuracy = f"{kind}/top1"
            if all(accuracy in scores for scores in members):
                yield mean_of([scores[accuracy] for scores in members], f"{kind}/{name or 'mean'}{of_protocol}")
    for measure in trial.quality:
        artifact = store.get(*measure.ref)
        if artifact is not None:
            label = measure.label.replace(",", "")
            yield from (Measurement(f"{label}/{name}", value, artifact.created) for name, value in artifact.metrics.items())


def mean_of(scores: Sequence[Measurement], name: str) -> Measurement:
    """The mean of measurements, made when the last of them was."""
    return Measurement(name, statistics.fmean(one.value for one in scores), max(one.seconds for one in scores))


def best_scores(run: Run) -> Iterator[Measurement]:
    """What the best arm's trials measured, means over its distillation seeds, and its value of each objective.

    A mean comes when all its trials have the metric.
    """
    best = run.ranking.best
    trials = [trial for trial in run.of_arm(best) if trial.state == "done"] if best else []
    found = [{score.name: score for score in trial_scores(trial, run.store)} for trial in trials]
    for name in found[0] if found else ():
        if all(name in scores for scores in found):
            yield mean_of([scores[name] for scores in found], name)
    if trials:
        finished = max(trial.finished for trial in trials)
        values = zip(run.spec.objective.metrics, run.ranking.worths[best].values, strict=True)
        yield from (Measurement(f"objective/{metric}", value, finished) for metric, value in values)


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
    scores = [Measurement(NAMES.get(name, name), value, one.created) for one in made for name, value in one.metrics.items()]
    return [score for score in scores if score.name not in without]


def curves(artifact: Artifact, prefix: str = "") -> list[Measurement]:
    """Every curve of a stage, each thinned on its own: diagnostics come at fewer steps than losses."""
    by_name: dict[str, list[Measurement]] = {}
    for point in read_curves(artifact):
        for name, value in point.items():
            if name not in ("step", "time"):
                found = Measurement(prefix + NAMES.get(name, name), value, point["time"], int(point["step"]))
                by_name.setdefault(name, []).append(found)
    return [found for along in by_name.values() for found in thinned(along)]
