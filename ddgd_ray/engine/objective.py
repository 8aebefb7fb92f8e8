"""What a configuration is worth: the objective's numbers from the store."""

import statistics
from collections.abc import Sequence

from ddgd_ray.engine.run_folder import TrialRecord
from ddgd_ray.engine.search import Score
from ddgd_ray.spec.sweep_spec import ObjectiveSpec
from ddgd_ray.store import Store


def trial_value(record: TrialRecord, metric: str, store: Store) -> float | None:
    """A metric of one finished trial: mean over its evaluators of the main protocol.

    None where none of them has it: validation accuracy needs a validation slice.
    """
    made = [store.get(*evaluator.call.ref) for evaluator in record.trial.evaluators if evaluator.is_main]
    values = [artifact.metrics[metric] for artifact in made if artifact is not None and metric in artifact.metrics]
    return statistics.fmean(values) if values else None


def score_of(records: Sequence[TrialRecord], objective: ObjectiveSpec, store: Store) -> Score | None:
    """Mean over distillation seeds of the mean over evaluators; None when anything failed, or nothing measured it.

    Of the last rung that it reached.
    """
    rung = records[-1].trial.rung if records else None
    records = [record for record in records if record.trial.rung == rung]
    if any(record.state != "done" for record in records):
        return None
    values = [trial_value(record, objective.metric, store) for record in records]
    if not values or None in values:
        return None
    return Score((statistics.fmean(value for value in values if value is not None),), rung)


def best_arms(records: Sequence[TrialRecord], objective: ObjectiveSpec, store: Store) -> set[str]:
    """The finalists: the arms of the best means over their finished trials, controls aside."""
    values: dict[str, list[float]] = {}
    for record in records:
        competes = record.state == "done" and not record.trial.is_control and record.trial.rung is None
        value = trial_value(record, objective.metric, store) if competes else None
        if value is not None:
            values.setdefault(record.trial.arm, []).append(value)
    means = {arm: statistics.fmean(found) for arm, found in values.items()}
    ranked = sorted(means, key=lambda arm: means[arm], reverse=objective.direction == "maximize")
    return set(ranked[: objective.finalists])
