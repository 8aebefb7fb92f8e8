"""What a configuration is worth: the objective's numbers from the store."""

from collections.abc import Sequence

from ddgd_ray.run.folder import TrialRecord
from ddgd_ray.run.objectives import Made, in_order, value_of, worth_of
from ddgd_ray.search.ask_tell import Score
from ddgd_ray.spec.search_spec import ObjectiveSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

AS_ONE_CORE = ResourcesSpec()


def _made(record: TrialRecord) -> Made:
    trial = record.trial
    own = [*trial.build, *(item.call for item in trial.evaluators), *(call for one in trial.measures for call in one.calls)]
    return Made(
        evaluators=[item.call.ref for item in trial.evaluators if item.is_main],
        quality=[(measure.calls[-1].ref, measure.label) for measure in trial.measures],
        own=[call.ref for call in own],
    )


def trial_value(record: TrialRecord, metric: str, store: Store, resources: ResourcesSpec = AS_ONE_CORE) -> float | None:
    """A metric of one finished trial, see report/objectives.py. resources: what a job holds, for core_hours and gpu_hours."""
    return value_of(_made(record), metric, store, resources)


def score_of(
    records: Sequence[TrialRecord], objective: ObjectiveSpec, store: Store, resources: ResourcesSpec = AS_ONE_CORE
) -> Score | None:
    """Means over distillation seeds; None when anything failed, nothing measured it, or a number is not finite.

    Of the last rung that it reached.
    """
    rung = records[-1].trial.rung if records else None
    records = [record for record in records if record.trial.rung == rung]
    if not records or any(record.state != "done" for record in records):
        return None
    worth = worth_of([_made(record) for record in records], objective, store, resources)
    return Score(worth.values, worth.excess, rung) if worth else None


def best_arms(
    records: Sequence[TrialRecord], objective: ObjectiveSpec, store: Store, resources: ResourcesSpec = AS_ONE_CORE
) -> set[str]:
    """The finalists: the best means over distillation seeds, controls aside.

    Who has more seeds comes first: the others were dropped, or failed, and their means are over other seeds. Among equals in
    that, the Pareto front by the first objective, then what is left, if the front is smaller than asked for. What breaks a
    constraint comes last, as a search in which nothing keeps them still has a best.
    """
    of_arm: dict[str, list[Made]] = {}
    for record in records:
        if record.state == "done" and not record.trial.is_control and record.trial.rung is None:
            of_arm.setdefault(record.trial.arm, []).append(_made(record))
    ranked: list[str] = []
    for num_seeds in sorted({len(made) for made in of_arm.values()}, reverse=True):
        worths = {a: worth_of(made, objective, store, resources) for a, made in of_arm.items() if len(made) == num_seeds}
        ranked += in_order({arm: worth for arm, worth in worths.items() if worth is not None}, objective.directions)
    return set(ranked[: objective.finalists])
