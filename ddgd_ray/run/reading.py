"""One run as reports see it: what was asked, its records, and the rows that the store has for them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.report.compare import CEILING, by_arm, contenders
from ddgd_ray.report.tables import in_order_of, main_metric
from ddgd_ray.run.results import Row, over_seeds, protocols_of, rows_of
from ddgd_ray.spec.base import as_tuples
from ddgd_ray.spec.load import Document
from ddgd_ray.spec.preset import Preset, build_preset
from ddgd_ray.storage.store import Store


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """sweep.json and the trial records of a run folder, lower rungs aside. Raises ArtifactError when it is none."""
    try:
        sweep = json.loads((path / "sweep.json").read_text())
    except (OSError, ValueError) as err:
        raise ArtifactError(
            "this is no run folder: expected a readable sweep.json",
            code="no-run",
            where=str(path),
            fix="give runs/NAME, or run the sweep again: it rebuilds its records from the store",
        ) from err
    records = []
    for file in sorted((path / "trials").glob("*.json")):
        if "@r" in file.name:  # no name of an arm holds @
            continue
        try:
            records.append(json.loads(file.read_text()))
        except ValueError as err:
            raise ArtifactError("cannot be read", where=str(file), fix="run the sweep again: it writes this file anew") from err
    return sweep, records


@dataclass(frozen=True)
class Objective:
    metric: str
    direction: str = "maximize"

    @property
    def sign(self) -> int:
        return 1 if self.direction == "maximize" else -1


@dataclass(frozen=True)
class Run:
    """rows: of all protocols, in the order of the sweep file."""

    path: Path
    sweep: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    store: Store

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.sweep["spec"]
        return spec

    @cached_property
    def protocol(self) -> str:
        """The one that the objective goes by; "" without results."""
        return next(iter(protocols_of(self.rows)), "")

    @cached_property
    def main_rows(self) -> list[Row]:
        return [row for row in self.rows if row.protocol == self.protocol]

    @cached_property
    def metric(self) -> str:
        return main_metric(self.main_rows)

    @property
    def objective(self) -> Objective:
        return objectives_of(self.spec)[0]

    @cached_property
    def arms(self) -> list[str]:
        """With results: controls after the others, the ceiling last."""
        return list(by_arm(self.rows))

    @cached_property
    def controls(self) -> list[str]:
        return [arm for arm, rows in by_arm(self.rows).items() if rows[0].is_control and arm != CEILING]

    @cached_property
    def ranked(self) -> list[str]:
        """Arms that are no controls, the best by the objective first; those dropped on the way, then unmeasured ones last."""
        arms = {arm: rows for arm, rows in by_arm(self.main_rows).items() if not rows[0].is_control}
        first = contenders(arms, self.objective.metric)
        stats = {arm: over_seeds(rows, self.objective.metric) for arm, rows in arms.items()}
        places = {arm: (arm in first, self.objective.sign * stat.mean if stat else -math.inf) for arm, stat in stats.items()}
        return sorted(arms, key=places.__getitem__, reverse=True)

    @cached_property
    def preset(self) -> Preset | None:
        """What the arms share, defaults filled in; None where today's specs have another form than the run's."""
        errors: list[SpecError] = []
        try:
            settings = as_tuples(self.sweep["identity"]["settings"])
            return build_preset(Document(settings, str(self.path / "sweep.json")), errors)
        except (SpecError, KeyError, TypeError, ValueError):
            return None

    def default(self, path: str) -> Any:
        """The preset's value of a dotted path, None where it has none."""
        value: Any = self.preset
        for name in path.split("."):
            value = getattr(value, name, None)
        return value

    def first_records(self) -> dict[str, Mapping[str, Any]]:
        """{arm: its record of the lowest seed}."""
        found: dict[str, Mapping[str, Any]] = {}
        for record in sorted(self.records, key=lambda record: record["seed"]):
            found.setdefault(record["arm"], record)
        return found


def open_for_report(path: Path, store: Store) -> Run:
    """Raises ArtifactError when `path` is no run folder."""
    sweep, records = read_run(path)
    rows = in_order_of(sweep["spec"]["vary"], rows_of(records, store))
    return Run(path, sweep, records, rows, store)


def objectives_of(spec: Mapping[str, Any]) -> list[Objective]:
    """One, or several where the search has several."""
    said = spec["objective"]
    direction = str(said.get("direction", "maximize"))
    listed = said.get("metrics") or said.get("objectives") or said.get("metric")
    if isinstance(listed, Mapping):
        return [Objective(str(name), str(way)) for name, way in listed.items()]
    if isinstance(listed, str):
        listed = [listed]
    found = []
    for item in listed:
        if isinstance(item, Mapping):
            found.append(Objective(str(item["metric"]), str(item.get("direction", direction))))
        else:
            found.append(Objective(str(item), direction))
    return found
