"""The results of a run as plain rows: one per trial and evaluator, with the store's numbers."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.storage.store import Artifact, Store


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
    tested_by: tuple[str, str] | tuple[()]
    """Stage and key of the artifact that read the test images; empty while none did."""
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
    """None of nothing."""
    found = list(values)
    if not found:
        return None
    return Stat(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))


def rows_of(records: Iterable[Mapping[str, Any]], store: Store) -> list[Row]:
    """Every published evaluator of the records; those that are missing or failed have no row.

    What an evaluator's `test` artifact measured is merged over the evaluator's own metrics.
    """
    rows = []
    for record in records:
        for evaluator in record["evaluators"]:
            artifact = store.get(evaluator["stage"], evaluator["key"])
            if artifact is None:
                continue
            test = store.get(*evaluator["test"]) if evaluator.get("test") else None
            reader = test or (artifact if "top1_last" in artifact.metrics else None)
            rows.append(
                Row(
                    arm=record["arm"],
                    params=record["params"],
                    is_control=record["is_control"],
                    seed=record["seed"],
                    network=evaluator["network"],
                    ipc=evaluator["ipc"],
                    evaluate_seed=evaluator["seed"],
                    protocol=protocol_label(artifact),
                    key=artifact.key,
                    tested_by=(str(reader.manifest["stage"]), reader.key) if reader else (),
                    metrics=artifact.metrics | (test.metrics if test else {}),
                )
            )
    return rows


def protocol_label(evaluator: Artifact) -> str:
    protocol = evaluator.manifest["spec"]["protocol"]
    return str(protocol.get("label", protocol["name"]))


def seed_means(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """{distillation seed: mean over its evaluators}, in order of the seeds."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if metric in row.metrics:
            by_seed.setdefault(row.seed, []).append(row.metrics[metric])
    return {seed: statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)}


def over_seeds(rows: Iterable[Row], metric: str) -> Stat | None:
    """Evaluators are averaged inside a distillation seed first: n counts distillation seeds. None without a value."""
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
    """In order of first appearance; those without augmentation, which serve the others' scores, last."""
    return sorted(dict.fromkeys(row.protocol for row in rows), key=lambda label: label.endswith("-noaug"))


@dataclass(frozen=True)
class StageCost:
    """Of the artifacts of one stage behind a run: how many there are, and the seconds that each took when it was made.

    num_uses: how often the trials need one of them, each trial once an artifact. saved_s: seconds that making every artifact
    anew for every trial would have taken besides.
    """

    stage: str
    count: int
    seconds: float
    num_uses: int = 0
    saved_s: float = 0.0
    num_missing: int = 0
    """Needed, and not in the store."""


def refs_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Stage and key of everything behind one trial, each once, in an order in which it can be made."""
    refs = [*record["prepare"], *record["build"]]
    refs += [[item["stage"], item["key"]] for item in record["evaluators"]]
    refs += [item["test"] for item in record["evaluators"] if item.get("test")]
    refs += [[stage, key] for stage, key, _ in record.get("quality", ())]
    return list(dict.fromkeys((stage, key) for stage, key in refs))


def stage_costs(records: Iterable[Mapping[str, Any]], store: Store) -> list[StageCost]:
    """What the stages behind a run took, equal ones once, in order of first use; those without an artifact left out."""
    uses = Counter(ref for record in records for ref in refs_of(record))
    found: dict[str, dict[tuple[str, str], Artifact | None]] = {}
    for ref in uses:
        found.setdefault(ref[0], {})[ref] = store.get(*ref)
    costs = []
    for stage, artifacts in found.items():
        made = {ref: artifact.seconds for ref, artifact in artifacts.items() if artifact is not None}
        if made:
            again = sum((uses[ref] - 1) * seconds for ref, seconds in made.items())
            num_uses = sum(uses[ref] for ref in made)
            costs.append(StageCost(stage, len(made), sum(made.values()), num_uses, again, len(artifacts) - len(made)))
    return costs
