"""A finished tiny run to track, and what a tracking database says of it."""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.report.build import write_report
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.reading import read_sweep_record
from ddgd_ray.tracking.mlflow import connect, is_refusal
from ddgd_ray.tracking.outbox import Undelivered
from ddgd_ray.tracking.shipper import Shipper
from ddgd_ray.tracking.tracker import ship_all

Rows = Mapping[str, list[Any]]


class Tracked:
    """Copies of one finished run, each with an outbox of its own, and ways to send them."""

    def __init__(self, result: Result, scratch: Path) -> None:
        self.result, self.scratch = result, scratch
        self.store = open_store(result.folder.run_dir)
        self.num_copies = 0
        self._empty = scratch / "empty.db"
        connect(f"sqlite:///{self._empty}")

    def copy(self, *trials: str, name: str = "tiny") -> RunFolder:
        """The run under another name, with all trials or these."""
        self.num_copies += 1
        folder = RunFolder(self.scratch / f"copy-{self.num_copies}", name)
        shutil.copytree(self.result.folder.path, folder.path)
        sweep = read_sweep_record(folder.path)
        spec = sweep.spec.model_copy(update={"name": name})
        (folder.path / "sweep.json").write_text(sweep.model_copy(update={"spec": spec}).as_text(sort_keys=False))
        for file in [*folder.trials.glob("*.json"), *folder.outbox.glob("*.json")]:
            if trials and file.stem not in trials:
                file.unlink()
        return folder

    def database(self) -> Path:
        """A new database with MLflow's tables: making them takes seconds."""
        self.num_copies += 1
        return shutil.copy(self._empty, self.scratch / f"{self.num_copies}.db")

    def send(self, folder: RunFolder, to: Any, tries: int = 3) -> Undelivered:
        """to: a database, an address, or a client."""
        uri = f"sqlite:///{to}" if isinstance(to, Path) else to

        def shipper() -> Shipper:
            client = connect(uri) if isinstance(uri, str) else uri
            return Shipper(folder.path, self.store, client, is_server=isinstance(to, str))

        return ship_all(folder, shipper, is_refusal, tries=tries)

    def calm(self, *trials: str) -> Rows:
        database = self.database()
        assert not self.send(self.copy(*trials), database)
        return rows(database)


def rows(database: Path, experiment: str = "tiny", files: Path | None = None) -> Rows:
    """Everything that a database and the files beside it hold of an experiment, but for ids and times that MLflow makes up.

    The experiment's name is left out of all values. files: where a server keeps files.
    """
    with closing(sqlite3.connect(database)) as db:

        def query(text: str) -> list[Any]:
            # \\x00: no name is changed inside a longer one
            return [tuple(_neutral(value, experiment) for value in row) for row in db.execute(text, (experiment,))]

        runs = "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = ?"
        keys = dict(
            db.execute(f"SELECT run_uuid, value FROM tags WHERE key = 'ddgd.key' AND run_uuid IN ({runs})", (experiment,))
        )
        keys = {run: _neutral(key, experiment) for run, key in keys.items()}

        def named(found: list[Any]) -> list[Any]:
            return sorted((tuple(keys.get(value, value) for value in row) for row in found), key=repr)

        inputs = f"""SELECT destination_id, destination_type, datasets.name, digest, dataset_source, dataset_source_type,
            input_tags.name, input_tags.value FROM inputs JOIN datasets ON source_id = dataset_uuid
            LEFT JOIN input_tags USING (input_uuid) WHERE destination_id IN ({runs})"""
        columns = "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time"
        return {
            "runs": named(query(f"SELECT {columns}, source_version, lifecycle_stage FROM runs WHERE run_uuid IN ({runs})")),
            "params": named(query(f"SELECT run_uuid, key, value FROM params WHERE run_uuid IN ({runs})")),
            "tags": named(query(f"SELECT run_uuid, key, value FROM tags WHERE run_uuid IN ({runs})")),
            "metrics": named(
                query(f"SELECT run_uuid, key, value, timestamp, step, is_nan FROM metrics WHERE run_uuid IN ({runs})")
            ),
            "latest": named(
                query(f"SELECT run_uuid, key, value, timestamp, step, is_nan FROM latest_metrics WHERE run_uuid IN ({runs})")
            ),
            "inputs": named(query(inputs)),
            "files": _files(db, runs, experiment, keys, files),
        }


def _neutral(value: Any, experiment: str) -> Any:
    if not isinstance(value, str):
        return value
    return "SWEEP" if value == experiment else value.replace(f"{experiment}/", "SWEEP/")


def _files(db: sqlite3.Connection, runs: str, experiment: str, keys: Mapping[str, str], root: Path | None) -> list[Any]:
    found = []
    for run, uri in db.execute(f"SELECT run_uuid, artifact_uri FROM runs WHERE run_uuid IN ({runs})", (experiment,)).fetchall():
        place = root / uri.removeprefix("mlflow-artifacts:/") if root else Path(uri.removeprefix("file://"))
        for file in place.rglob("*"):
            if file.is_file():
                name = str(file.relative_to(place))
                found.append((keys[run], name, hashlib.sha256(file.read_bytes()).hexdigest()))
    return sorted(found)


@pytest.fixture(scope="session")
def tracked(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    run_dir = tmp_path_factory.mktemp("tracked")
    result = run_sweep(tiny({"seeds.distill": (0,)}), run_dir, run_in_process)
    write_report(result.folder.path, open_store(run_dir))
    return Tracked(result, tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., Rows]:
    return rows
