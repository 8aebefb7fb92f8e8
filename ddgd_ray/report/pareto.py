"""The Pareto front of a search for several objectives."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.run.objectives import Worth, front_of, made_of, worth_of
from ddgd_ray.spec.base import as_tuples
from ddgd_ray.spec.search_spec import ObjectiveSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

NOTE = (
    "Configurations that keep the constraints and that no other such beats: none is at least as good in every objective and "
    "better in one. Means over distillation seeds (n); {count} of {total} finished configurations keep the constraints."
)


def pareto_tables(spec: Mapping[str, Any], records: Sequence[Mapping[str, Any]], store: Store) -> list[Table]:
    """The front in order of the first objective, with its parameters; none with one objective, or before anything ended."""
    if not spec["objective"].get("also"):
        return []
    objective = ObjectiveSpec.model_validate(as_tuples(spec["objective"]))
    resources = ResourcesSpec.model_validate(as_tuples(spec["resources"]))
    of_arm: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if not record["is_control"] and not record.get("folder"):
            of_arm.setdefault(record["arm"], []).append(record)
    worths: dict[str, Worth] = {}
    for arm, found in of_arm.items():
        if all(record["state"] == "done" for record in found):
            worth = worth_of([made_of(record) for record in found], objective, store, resources)
            if worth is not None:
                worths[arm] = worth
    if not worths:
        return []
    names = list(dict.fromkeys(name for arm in worths for name in of_arm[arm][0]["params"]))
    lines = []
    for arm in front_of(worths, objective.directions):
        params = of_arm[arm][0]["params"]
        values = [Cell(f"{value:.4g}") for value in worths[arm].values]
        cells = [Cell(str(len(of_arm[arm]))), *values, *(Cell(_shown(params.get(name, "-"))) for name in names)]
        lines.append((arm, cells))
    arrows = {"maximize": "high", "minimize": "low"}
    goals = zip(objective.metrics, objective.directions, strict=True)
    columns = [Column("arm"), Column("n"), *(Column(f"{metric} ({arrows[direction]})") for metric, direction in goals)]
    columns += [Column(name, short=name.rpartition(".")[2]) for name in names]
    note = NOTE.format(count=sum(worth.is_feasible for worth in worths.values()), total=len(worths))
    return [Table(f"Pareto front, {len(lines)} of {len(worths)} configurations", columns, lines, note)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
