"""Values, worths and the best arm by a sweep's objective. They are decided here alone."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import Stat, stat_of
from ddgd_ray.spec.search_spec import ACCURACIES, COSTS, Direction, ObjectiveSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

SECONDS_AN_HOUR = 3600
AS_ONE_CORE = ResourcesSpec()


def sign_of(direction: Direction) -> int:
    """1 where larger values are better, -1 where smaller ones are."""
    return 1 if direction == "maximize" else -1


def value_of(trial: TrialRecord, metric: str, store: Store, resources: ResourcesSpec = AS_ONE_CORE) -> float | None:
    """A metric of one trial: the mean over the evaluators or feature sizes that measured it; a cost is the sum over its stages.

    resources: what a job holds, for artifacts that do not say what their job held.
    None where nothing measured the metric: validation accuracy needs a validation slice.
    """
    if metric in COSTS:
        return _cost(trial, metric, store, resources)
    space, slash, name = metric.partition("/")
    refs = [one.ref for one in trial.quality if one.space == space] if slash else [one.ref for one in trial.main_evaluators]
    found = [store.get(*ref) for ref in refs]
    name = name if slash else metric
    values = [artifact.metrics[name] for artifact in found if artifact is not None and name in artifact.metrics]
    return statistics.fmean(values) if values else None


def _cost(trial: TrialRecord, metric: str, store: Store, resources: ResourcesSpec) -> float:
    total = 0.0
    for stage, key in trial.own_refs():
        artifact = store.get(stage, key)
        if artifact is None:
            continue
        held = artifact.held or resources.of(stage).held
        total += artifact.seconds * {"seconds": 1.0, "core_hours": held["cpus"], "gpu_hours": held["gpus"]}[metric]
    return total if metric == "seconds" else total / SECONDS_AN_HOUR


@dataclass(frozen=True)
class Worth:
    """The worth of a configuration: one value for each objective, in the order of the spec.

    excess: by how much each constraint is broken, 0 or less where it holds. rung: the rung at whose cheaper setting the values
    were measured, None at the full one; values of two rungs are not comparable.
    """

    values: tuple[float, ...]
    excess: tuple[float, ...] = ()
    rung: int | None = None

    @property
    def is_feasible(self) -> bool:
        return all(excess <= 0 for excess in self.excess)


def measure(
    trial: TrialRecord, objective: ObjectiveSpec, store: Store, resources: ResourcesSpec = AS_ONE_CORE
) -> tuple[float, ...]:
    """One value of a trial for each of `objective.all_metrics`, NaN where nothing measured it."""
    found = (value_of(trial, metric, store, resources) for metric in objective.all_metrics)
    return tuple(math.nan if value is None else value for value in found)


def worth_of(measured: Sequence[tuple[float, ...]], objective: ObjectiveSpec, rung: int | None = None) -> Worth | None:
    """The worth of a configuration: means over its trials; None when a trial lacks a number, or a mean is not finite.

    measured: of each trial, as `measure` gives it.
    """
    means = [statistics.fmean(column) for column in zip(*measured, strict=True)]
    if not means or not all(map(math.isfinite, means)):
        return None
    num = len(objective.metrics)
    bounds = zip(objective.constraints, means[num:], strict=True)
    return Worth(tuple(means[:num]), tuple(bound.excess(mean) for bound, mean in bounds), rung)


def worth_at_the_end(
    trials: Sequence[TrialRecord], objective: ObjectiveSpec, store: Store, resources: ResourcesSpec = AS_ONE_CORE
) -> Worth | None:
    """The worth that a search is told: over distillation seeds, at the last rung that the configuration reached.

    None when anything failed, nothing measured it, or a number is not finite.
    """
    rung = trials[-1].rung if trials else None
    trials = [trial for trial in trials if trial.rung == rung]
    if any(trial.state != "done" for trial in trials):
        return None
    return worth_of([measure(trial, objective, store, resources) for trial in trials], objective, rung)


@dataclass(frozen=True)
class Ranking:
    """The arms that compete, by a sweep's objective.

    worths: {arm: its worth}, the best first. seed_values: {arm: {distillation seed: value of the first objective}}.
    """

    objective: ObjectiveSpec
    worths: Mapping[str, Worth]
    seed_values: Mapping[str, Mapping[int, float]]

    @property
    def order(self) -> list[str]:
        """Every arm that has a worth, the best first.

        Arms with more seeds come first: the others failed at a seed, or a race dropped them, and their means are over other
        seeds. Among equals in that, Pareto front after front, each by the first objective, equals as they come. What breaks a
        constraint comes last, as a search in which nothing keeps them still has a best.
        """
        return list(self.worths)

    @property
    def contenders(self) -> list[str]:
        """The arms that have as many seeds as any."""
        most = max(map(len, self.seed_values.values()), default=0)
        return [arm for arm in self.worths if len(self.seed_values[arm]) == most]

    @property
    def best(self) -> str:
        """The arm that the objective prefers; "" while none has a worth."""
        return next(iter(self.worths), "")

    @property
    def front(self) -> list[str]:
        """Contenders that keep the constraints and that no other such beats, the best by the first objective first."""
        return front_of({arm: self.worths[arm] for arm in self.contenders}, self.objective.directions)

    def stat(self, arm: str) -> Stat | None:
        """The first objective of an arm over its distillation seeds; None where it has no worth."""
        return stat_of(self.seed_values.get(arm, {}).values())

    def told(self, arm: str) -> str:
        """`MEAN ± STD (n=N)` of the first objective, to four digits where it is no accuracy; "" where the arm has no worth."""
        stat = self.stat(arm)
        if stat is None or self.objective.metric in ACCURACIES:
            return str(stat or "")
        spread = f" ± {stat.std:.4g}" if stat.std is not None else ""
        return f"{stat.mean:.4g}{spread} (n={stat.n})"


def rank(measured: Mapping[str, Mapping[int, tuple[float, ...]]], objective: ObjectiveSpec) -> Ranking:
    """The ranking of arms whose trials measured this: {arm: {distillation seed: values, as `measure` gives them}}."""
    worths: dict[str, Worth] = {}
    for num_seeds in sorted({len(found) for found in measured.values()}, reverse=True):
        alike = {arm: list(found.values()) for arm, found in measured.items() if len(found) == num_seeds}
        known = {arm: worth for arm, found in alike.items() if (worth := worth_of(found, objective)) is not None}
        worths |= {arm: known[arm] for arm in in_order(known, objective.directions)}
    seed_values = {arm: {seed: values[0] for seed, values in sorted(measured[arm].items())} for arm in worths}
    return Ranking(objective, worths, seed_values)


def ranking_of(
    trials: Iterable[TrialRecord],
    objective: ObjectiveSpec,
    store: Store,
    resources: ResourcesSpec = AS_ONE_CORE,
    *,
    rung: int | None = None,
) -> Ranking:
    """The ranking of the arms of a run by their finished trials at the full setting, or at a rung's cheaper one.

    Controls compete with nobody; a ready-made set is an arm like any other.
    """
    measured: dict[str, dict[int, tuple[float, ...]]] = {}
    for trial in trials:
        if trial.state == "done" and not trial.is_control and trial.rung == rung:
            measured.setdefault(trial.arm, {})[trial.seed] = measure(trial, objective, store, resources)
    return rank(measured, objective)


def highest_rung(trials: Iterable[TrialRecord]) -> int | None:
    """The highest rung that any of the trials is at; None where one has the full setting, or there are none."""
    rungs = [trial.rung for trial in trials]
    return max((rung for rung in rungs if rung is not None), default=None) if None not in rungs else None


def front_of(worths: Mapping[str, Worth], directions: Sequence[Direction]) -> list[str]:
    """The configurations that keep the constraints and that no other such beats, the best by the first objective first."""
    sound = {arm: worth for arm, worth in worths.items() if worth.is_feasible}
    return [arm for front, _, arm in _placed(sound, directions) if front == 0]


def in_order(worths: Mapping[str, Worth], directions: Sequence[Direction]) -> list[str]:
    """All configurations, front after front (Deb et al. 2002), what breaks a constraint after what breaks none.

    Within a front by the first objective, equals as they come.
    """
    ranked: list[str] = []
    for is_feasible in (True, False):
        alike = {arm: worth for arm, worth in worths.items() if worth.is_feasible == is_feasible}
        ranked += [arm for *_, arm in _placed(alike, directions)]
    return ranked


def _placed(worths: Mapping[str, Worth], directions: Sequence[Direction]) -> list[tuple[int, float, str]]:
    """(front, its first objective with the smaller the better, configuration), in order; whatever the constraints."""
    signs = np.array([sign_of(direction) for direction in directions])
    gains = np.array([worth.values for worth in worths.values()]).reshape(len(worths), len(signs)) * signs
    places = zip(fronts(gains), -gains[:, 0], worths, strict=True)
    return sorted(places, key=lambda place: place[:2])


def fronts(gains: NDArray[np.float64]) -> list[int]:
    """The front in which each row lies, 0 for those that no other beats. gains: (n, objectives), larger is better."""
    if gains.shape[1] == 1:
        return [int(front) for front in np.unique(-gains[:, 0], return_inverse=True)[1]]
    found = np.zeros(len(gains), int)
    order = np.lexsort(-gains.T[::-1])  # who beats a row stands before it
    for place, row in enumerate(order):
        before = order[:place]
        beats = (gains[before] >= gains[row]).all(1) & (gains[before] > gains[row]).any(1)
        found[row] = 1 + found[before[beats]].max(initial=-1)
    return [int(front) for front in found]
