"""The results of a run as plain rows: one per trial and evaluator, with the store's numbers."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ddgd_ray.run.records import TrialRecord
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Artifact, Store

CEILING = "full_data"
"""The one arm that is no competitor: trained on everything, once."""


@dataclass(frozen=True)
class Row:
    """One evaluator's accuracies of one trial."""

    arm: str
    params: Mapping[str, Any]
    is_control: bool
    seed: int
    network: str
    ipc: int
    evaluate_seed: int
    protocol: str
    """Label of how the classifier was trained; accuracies of two protocols are never averaged or compared."""
    key: str
    tested_by: Ref | None
    """The artifact that read the test images; None while none did."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over distillation seeds; std is None with one seed."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.value} (n={self.n})"

    @property
    def value(self) -> str:
        spread = f" ± {self.std:.3f}" if self.std is not None else ""
        return f"{self.mean:.3f}{spread}"


def stat_of(values: Iterable[float]) -> Stat | None:
    """Mean and spread of the values; None of nothing."""
    found = list(values)
    if not found:
        return None
    return Stat(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def rows_of(trials: Iterable[TrialRecord], store: Store) -> list[Row]:
    """A row for every published evaluator of the trials; those that are missing or failed have none.

    What an evaluator's `test` artifact measured is merged over the evaluator's own metrics.
    """
    rows = []
    for trial in trials:
        for evaluator in trial.evaluators:
            artifact = store.get(*evaluator.ref)
            if artifact is None:
                continue
            test = store.get(*evaluator.test) if evaluator.test is not None else None
            reader = test or (artifact if "top1_last" in artifact.metrics else None)
            rows.append(
                Row(
                    arm=trial.arm,
                    params=trial.params,
                    is_control=trial.is_control,
                    seed=trial.seed,
                    network=evaluator.network,
                    ipc=evaluator.ipc,
                    evaluate_seed=evaluator.seed,
                    protocol=protocol_label(artifact),
                    key=artifact.key,
                    tested_by=reader.ref if reader else None,
                    metrics=artifact.metrics | (test.metrics if test else {}),
                )
            )
    return rows


class _Varied(Protocol):
    """A row, or a trial."""

    @property
    def params(self) -> Mapping[str, Any]: ...


V = TypeVar("V", bound=_Varied)


def in_order_of(vary: Mapping[str, Sequence[Any]], found: Sequence[V]) -> list[V]:
    """Rows or trials as their values stand in the sweep file; those without such values, controls, last."""

    def place(one: V) -> list[int]:
        listed = ((list(values), one.params.get(path)) for path, values in vary.items())
        return [values.index(value) if value in values else len(values) for values, value in listed]

    return sorted(found, key=place)


def by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by arm: controls after the others, the ceiling last, otherwise in the order of the records."""
    arms: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.is_control, row.arm == CEILING)):
        arms.setdefault(row.arm, []).append(row)
    return arms


def main_metric(rows: Sequence[Row]) -> str:
    """Test accuracy after the last step where two arms have it, else validation accuracy."""
    tested = {row.arm for row in rows if "top1_last" in row.metrics and row.arm != CEILING}
    arms = {row.arm for row in rows if row.arm != CEILING}
    return "top1_last" if len(tested) >= min(2, len(arms)) and tested else "val_top1"


def protocol_label(evaluator: Artifact) -> str:
    """The name under which results are told apart by how the classifier was trained."""
    protocol = evaluator.spec["protocol"]
    return str(protocol.get("label", protocol["name"]))


def seed_means(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """{distillation seed: mean over its evaluators}, in order of the seeds."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if metric in row.metrics:
            by_seed.setdefault(row.seed, []).append(row.metrics[metric])
    return {seed: statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)}


def over_seeds(rows: Iterable[Row], metric: str) -> Stat | None:
    """Mean and spread over distillation seeds, n of them; evaluators are averaged inside a seed first. None without a value."""
    return stat_of(seed_means(rows, metric).values())


def paired_differences(rows: Iterable[Row], reference: Iterable[Row], metric: str) -> dict[int, float]:
    """{seed: mean of rows - reference} over seeds and, inside a seed, evaluators (network, classifier seed) that both have.

    An evaluator that only one side has finished would otherwise pass for a difference between the sets.
    """
    values, others = _by_evaluator(rows, metric), _by_evaluator(reference, metric)
    found: dict[int, list[float]] = {}
    for place in sorted(values.keys() & others.keys()):
        found.setdefault(place[0], []).append(values[place] - others[place])
    return {seed: statistics.fmean(differences) for seed, differences in found.items()}


def _by_evaluator(rows: Iterable[Row], metric: str) -> dict[tuple[int, str, int], float]:
    return {(row.seed, row.network, row.evaluate_seed): row.metrics[metric] for row in rows if metric in row.metrics}


def protocols_of(rows: Iterable[Row]) -> list[str]:
    """The labels of protocols in order of first appearance; those without augmentation, which serve others' scores, last."""
    return sorted(dict.fromkeys(row.protocol for row in rows), key=lambda label: label.endswith("-noaug"))


@dataclass(frozen=True)
class StageCost:
    """The artifacts of one stage behind a run: how many there are, and the seconds that they took when they were made.

    num_uses: how often the trials need one of them, each trial once an artifact. saved_s: seconds that making every artifact
    anew for every trial would have taken besides.
    """

    stage: str
    count: int
    seconds: float
    num_uses: int = 0
    saved_s: float = 0.0
    num_missing: int = 0
    """Artifacts that are needed and not in the store."""


def stage_costs(trials: Iterable[TrialRecord], store: Store) -> list[StageCost]:
    """The cost of each stage behind a run, equal artifacts once, in order of first use; stages without any are left out."""
    uses = Counter(ref for trial in trials for ref in trial.refs())
    found: dict[str, dict[Ref, Artifact | None]] = {}
    for ref in uses:
        found.setdefault(ref.stage, {})[ref] = store.get(*ref)
    costs = []
    for stage, artifacts in found.items():
        made = {ref: artifact.seconds for ref, artifact in artifacts.items() if artifact is not None}
        if made:
            again = sum((uses[ref] - 1) * seconds for ref, seconds in made.items())
            num_uses = sum(uses[ref] for ref in made)
            costs.append(StageCost(stage, len(made), sum(made.values()), num_uses, again, len(artifacts) - len(made)))
    return costs
