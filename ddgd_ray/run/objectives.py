"""What a trial is worth by each metric of an objective, and which configurations nothing else beats."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddgd_ray.spec.search_spec import COSTS, ObjectiveSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

Ref = tuple[str, str]
SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class Made:
    """Artifacts of one trial. evaluators: those of the main protocol. quality: [(ref, label)]. own: all that no other
    configuration shares by design, the finalists' tests aside."""

    evaluators: Sequence[Ref]
    quality: Sequence[tuple[Ref, str]]
    own: Sequence[Ref]


def made_of(record: Mapping[str, Any]) -> Made:
    """The same of a line of the ledger; evaluators of the main protocol come first there."""
    evaluators = record["evaluators"]
    refs = [(item["stage"], item["key"]) for item in evaluators]
    main = evaluators[0].get("protocol") if evaluators else None
    quality = [((stage, key), label) for stage, key, label in record.get("quality", ())]
    measures = record.get("measures") or [[ref] for ref, _ in quality]  # older lines leave the features out
    own = [(stage, key) for stage, key in record["build"]] + refs
    own += [(stage, key) for calls in measures for stage, key in calls]
    of_main = [ref for ref, item in zip(refs, evaluators, strict=True) if item.get("protocol") == main]
    return Made(of_main, quality, own)


def value_of(made: Made, metric: str, store: Store, resources: ResourcesSpec) -> float | None:
    """A metric of one trial: mean over the evaluators or feature sizes that measured it; a cost is the sum over its stages.

    resources: what a job holds, for artifacts that do not say what theirs held.
    None where nothing measured it: validation accuracy needs a validation slice.
    """
    if metric in COSTS:
        return _cost(made, metric, store, resources)
    space, slash, name = metric.partition("/")
    refs = [ref for ref, label in made.quality if label.startswith(f"{space},")] if slash else made.evaluators
    found = [store.get(*ref) for ref in refs]
    name = name if slash else metric
    values = [artifact.metrics[name] for artifact in found if artifact is not None and name in artifact.metrics]
    return statistics.fmean(values) if values else None


def _cost(made: Made, metric: str, store: Store, resources: ResourcesSpec) -> float:
    total = 0.0
    for stage, key in dict.fromkeys(made.own):
        artifact = store.get(stage, key)
        if artifact is None:
            continue
        held = artifact.held or resources.of(stage).held
        total += artifact.seconds * {"seconds": 1.0, "core_hours": held["cpus"], "gpu_hours": held["gpus"]}[metric]
    return total if metric == "seconds" else total / SECONDS_AN_HOUR


@dataclass(frozen=True)
class Worth:
    """values: one for each objective. excess: by how much each constraint is broken, 0 or less where it holds."""

    values: tuple[float, ...]
    excess: tuple[float, ...] = ()

    @property
    def is_feasible(self) -> bool:
        return all(excess <= 0 for excess in self.excess)


def worth_of(trials: Sequence[Made], objective: ObjectiveSpec, store: Store, resources: ResourcesSpec) -> Worth | None:
    """Means over the trials of a configuration; None when one of them lacks a number, or a mean is not finite."""

    def mean(metric: str) -> float:
        values = [value_of(made, metric, store, resources) for made in trials]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else math.nan

    values = tuple(mean(metric) for metric in objective.metrics)
    excess = tuple(bound.excess(mean(bound.metric)) for bound in objective.constraints)
    return Worth(values, excess) if all(map(math.isfinite, (*values, *excess))) else None


def front_of(worths: Mapping[str, Worth], directions: Sequence[str]) -> list[str]:
    """The configurations that keep the constraints and that no other such beats, the best by the first objective first."""
    sound = {arm: worth for arm, worth in worths.items() if worth.is_feasible}
    return [arm for front, _, arm in _placed(sound, directions) if front == 0]


def in_order(worths: Mapping[str, Worth], directions: Sequence[str]) -> list[str]:
    """All of them, front after front (Deb et al. 2002), what breaks a constraint after what breaks none; within a front by the
    first objective, equals as they come.
    """
    ranked: list[str] = []
    for is_feasible in (True, False):
        alike = {arm: worth for arm, worth in worths.items() if worth.is_feasible == is_feasible}
        ranked += [arm for *_, arm in _placed(alike, directions)]
    return ranked


def _placed(worths: Mapping[str, Worth], directions: Sequence[str]) -> list[tuple[int, float, str]]:
    """(front, its first objective with the smaller the better, configuration), in order; whatever the constraints."""
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])
    gains = np.array([worth.values for worth in worths.values()]).reshape(len(worths), len(signs)) * signs
    places = zip(_fronts(gains), -gains[:, 0], worths, strict=True)
    return sorted(places, key=lambda place: place[:2])


def _fronts(gains: NDArray[np.float64]) -> list[int]:
    """In which front each row lies, 0 for those that no other beats. gains: (n, objectives), larger is better."""
    if gains.shape[1] == 1:
        return [int(front) for front in np.unique(-gains[:, 0], return_inverse=True)[1]]
    fronts = np.zeros(len(gains), int)
    order = np.lexsort(-gains.T[::-1])  # who beats a row stands before it
    for place, row in enumerate(order):
        before = order[:place]
        beats = (gains[before] >= gains[row]).all(1) & (gains[before] > gains[row]).any(1)
        fronts[row] = 1 + fronts[before[beats]].max(initial=-1)
    return [int(front) for front in fronts]
