"""The results of a run as plain rows: one per trial and evaluator, with the store's numbers."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.store import Artifact, Store


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
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation over distillation seeds; std is None with one seed."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        spread = f" ± {self.std:.3f}" if self.std is not None else ""
        return f"{self.mean:.3f}{spread} (n={self.n})"


def rows_of(records: Iterable[Mapping[str, Any]], store: Store) -> list[Row]:
    """Every published evaluator of the records; those that are missing or failed have no row."""
    rows = []
    for record in records:
        for evaluator in record["evaluators"]:
            artifact = store.get(evaluator["stage"], evaluator["key"])
            if artifact is not None:
                rows.append(
                    Row(
                        record["arm"],
                        record["params"],
                        record["is_control"],
                        record["seed"],
                        evaluator["network"],
                        evaluator["ipc"],
                        evaluator["seed"],
                        artifact.metrics,
                    )
                )
    return rows


def over_seeds(rows: Iterable[Row], metric: str) -> Stat | None:
    """Evaluators are averaged inside a distillation seed first: n counts distillation seeds. None without a value."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if metric in row.metrics:
            by_seed.setdefault(row.seed, []).append(row.metrics[metric])
    means = [statistics.fmean(values) for values in by_seed.values()]
    if not means:
        return None
    return Stat(statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None, len(means))


@dataclass(frozen=True)
class StageCost:
    stage: str
    count: int
    seconds: float


def stage_costs(records: Iterable[Mapping[str, Any]], store: Store) -> list[StageCost]:
    """Seconds that the stages behind a run took when they were made, equal ones once, in order of first use."""
    seen: dict[tuple[str, str], Artifact] = {}
    for record in records:
        refs = [*record["prepare"], *record["build"], *([item["stage"], item["key"]] for item in record["evaluators"])]
        for stage, key in refs:
            artifact = store.get(stage, key)
            if artifact is not None:
                seen.setdefault((stage, key), artifact)
    costs: dict[str, list[float]] = {}
    for (stage, _), artifact in seen.items():
        costs.setdefault(stage, []).append(artifact.seconds)
    return [StageCost(stage, len(seconds), sum(seconds)) for stage, seconds in costs.items()]
