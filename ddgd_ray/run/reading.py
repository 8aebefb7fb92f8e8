"""One run, read back: what was asked, its trials, the numbers of its store, and which arm its objective prefers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.plain_files import read_bytes
from ddgd_ray.run.decisions import RaceRecord, RungsRecord, VerdictsRecord
from ddgd_ray.run.objective import Ranking, ranking_of
from ddgd_ray.run.records import SweepRecord, TrialRecord
from ddgd_ray.run.results import CEILING, Row, by_arm, in_order_of, main_metric, protocols_of, rows_of
from ddgd_ray.spec.base import as_tuples
from ddgd_ray.spec.load import Document
from ddgd_ray.spec.preset import Preset, build_preset
from ddgd_ray.spec.sweep_spec import SweepSpec
from ddgd_ray.storage.store import Store

SWEEP_FILE = "sweep.json"
SEED_POLICY = "allotment.json"
LOWER_RUNG = "@r"
"""Part of the file names of trials at a rung's cheaper setting; no name of an arm holds @."""


def read_sweep_record(path: Path) -> SweepRecord:
    """sweep.json of a run folder. Raises ArtifactError when the folder is none, or its record cannot be read."""
    file = path / SWEEP_FILE
    if not file.is_file():
        raise ArtifactError(
            "this is no run folder: expected a readable sweep.json",
            code="no-run",
            where=str(path),
            fix="give runs/NAME, or run the sweep again: it rebuilds its records from the store",
        )
    return SweepRecord.read(file)


def read_trial_records(path: Path, *, with_lower_rungs: bool = False) -> list[TrialRecord]:
    """The trial records of a run folder, by name. Raises ArtifactError when one of them cannot be read."""
    return [TrialRecord.read(file) for file in trial_files(path) if with_lower_rungs or LOWER_RUNG not in file.name]


def trial_files(path: Path) -> list[Path]:
    """The files of a run folder's trial records, lower rungs included, by name."""
    return sorted((path / "trials").glob("*.json"))


def read_seed_policy(path: Path) -> RaceRecord | VerdictsRecord | RungsRecord | None:
    """The decisions of the race or the rungs of a run, None of a run without. Raises ArtifactError when it cannot be read."""
    file = path / SEED_POLICY
    if not os.path.lexists(file):
        return None
    try:
        head = read_bytes(file)[:100].decode(errors="replace")
    except OSError:
        return RungsRecord.read(file)  # says what it is
    if '"kind": "race"' in head:
        return RaceRecord.read(file)
    return VerdictsRecord.read(file) if '"kind": "verdicts"' in head else RungsRecord.read(file)


def read_run(path: Path, store: Store) -> "Run":
    """The run of a folder. Raises ArtifactError when the folder is none, or one of its records cannot be read."""
    return Run(path, read_sweep_record(path), tuple(read_trial_records(path)), store)


@dataclass(frozen=True)
class Run:
    """A run folder as everybody above reads it: table, page, MLflow, notebook, cards, live view, search.

    trials: one record a trial, by name, lower rungs aside.
    """

    path: Path
    sweep: SweepRecord
    trials: Sequence[TrialRecord]
    store: Store

    @property
    def spec(self) -> SweepSpec:
        return self.sweep.spec

    @cached_property
    def rows(self) -> list[Row]:
        """A row for every published evaluator of all protocols, in the order of the sweep file."""
        return in_order_of(self.spec.vary, rows_of(self.trials, self.store))

    @cached_property
    def ranking(self) -> Ranking:
        """The arms by the sweep's objective, the best first; equals in the order of the sweep file."""
        return ranking_of(in_order_of(self.spec.vary, self.trials), self.spec.objective, self.store, self.spec.resources)

    @cached_property
    def protocol(self) -> str:
        """Label of the protocol that the objective goes by; "" without results."""
        return next(iter(protocols_of(self.rows)), "")

    @cached_property
    def main_rows(self) -> list[Row]:
        """Rows under the protocol that the objective goes by."""
        return [row for row in self.rows if row.protocol == self.protocol]

    @cached_property
    def metric(self) -> str:
        """The accuracy by which tables of the main protocol are read."""
        return main_metric(self.main_rows)

    @property
    def ipc(self) -> int:
        """Images a class of the largest sets."""
        return max(self.spec.evaluate.ipc)

    @cached_property
    def arms(self) -> list[str]:
        """Arms with results as the tables list them, controls after the others and the ceiling last; then those without."""
        return list(dict.fromkeys([*by_arm(self.rows), *(trial.arm for trial in self.trials)]))

    @cached_property
    def controls(self) -> list[str]:
        """Controls with results, the ceiling aside."""
        return [arm for arm, rows in by_arm(self.rows).items() if rows[0].is_control and arm != CEILING]

    @cached_property
    def ranked(self) -> list[str]:
        """Arms that are no controls: the best by the objective first, last those with results that it cannot rank."""
        measured = [arm for arm, rows in by_arm(self.main_rows).items() if not rows[0].is_control]
        return list(dict.fromkeys([*self.ranking.order, *measured]))

    @cached_property
    def preset(self) -> Preset | None:
        """The preset that the arms share, defaults filled in; None where today's specs have another form than the run's."""
        errors: list[SpecError] = []
        try:
            return build_preset(Document(as_tuples(self.sweep.settings), str(self.path / SWEEP_FILE)), errors)
        except (SpecError, KeyError, TypeError, ValueError):
            return None

    def default(self, path: str) -> Any:
        """The preset's value of a dotted path, None where it has none."""
        value: Any = self.preset
        for name in path.split("."):
            value = getattr(value, name, None)
        return value

    def of_arm(self, arm: str) -> list[TrialRecord]:
        """The trials of an arm, by distillation seed."""
        return sorted((trial for trial in self.trials if trial.arm == arm), key=lambda trial: trial.seed)

    def first_trials(self) -> dict[str, TrialRecord]:
        """{arm: its trial of the lowest seed}."""
        found: dict[str, TrialRecord] = {}
        for trial in sorted(self.trials, key=lambda trial: trial.seed):
            found.setdefault(trial.arm, trial)
        return found

    @property
    def failed(self) -> list[TrialRecord]:
        return [trial for trial in self.trials if trial.state == "failed"]

    def unfinished(self) -> tuple[int, int]:
        """The number of evaluators without a result, and of all that are known."""
        known = sum(len(trial.evaluators) for trial in self.trials)
        return known - len(self.rows), known

    @property
    def finished(self) -> float:
        """Seconds since 1970 at which the last trial ended, 0 before the first."""
        return max((trial.finished for trial in self.trials), default=0.0)
