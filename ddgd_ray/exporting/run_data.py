"""A run as it is read: what was asked, its trials, the numbers of its store, and which arm its objective prefers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.report.build import read_run
from ddgd_ray.report.compare import by_arm, chosen_arm
from ddgd_ray.report.tables import in_order_of
from ddgd_ray.run.results import Row, Stat, protocols_of, rows_of
from ddgd_ray.storage.store import Store

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunData:
    path: Path
    sweep: Mapping[str, Any]
    """sweep.json."""
    records: tuple[Record, ...]
    """One a trial, by name."""
    rows: tuple[Row, ...]
    """One a published evaluator, arms in the order of the sweep file."""
    store: Store

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.sweep["spec"]
        return spec

    @property
    def arms(self) -> list[str]:
        """Those with results as the tables list them, then those without."""
        return list(dict.fromkeys([*by_arm(self.rows), *(record["arm"] for record in self.records)]))

    @property
    def ipc(self) -> int:
        """Images per class of the largest sets: those that the objective goes by."""
        return max(self.spec["evaluate"]["ipc"])

    @property
    def protocol(self) -> str:
        """Label of the one that the objective goes by; "" while nothing is evaluated."""
        return next(iter(protocols_of(self.rows)), "")

    def of_arm(self, arm: str) -> list[Record]:
        """Its trials, by seed."""
        return sorted((record for record in self.records if record["arm"] == arm), key=lambda record: record["seed"])

    def best(self) -> tuple[str, Stat] | None:
        """The arm that the objective prefers, controls aside, and its value; the first one on a tie. None without values."""
        return chosen_arm(self.spec, self.rows)

    def unfinished(self) -> tuple[int, int]:
        """Evaluators without a result, and all that are known."""
        known = sum(len(record["evaluators"]) for record in self.records)
        return known - len(self.rows), known


def read_run_data(path: Path, store: Store) -> RunData:
    """Raises ArtifactError when `path` is no run folder or a record cannot be read."""
    sweep, records = read_run(path)
    rows = in_order_of(sweep["spec"]["vary"], rows_of(records, store))
    return RunData(path, sweep, tuple(records), tuple(rows), store)
