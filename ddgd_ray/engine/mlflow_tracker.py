"""The door to MLflow: ship finished trials from the outbox. Idempotent: shipping a trial again changes nothing.

Runs: one for the sweep, one per trial below it, one per evaluator below that. A run is found by its tag `ddgd.key`; metrics
carry the time and step at which they were measured, so that sending them twice leaves one row.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddgd_ray.report.grids import draw_grid, set_folder
from ddgd_ray.report.results import over_seeds, rows_of
from ddgd_ray.stages.base import read_curves
from ddgd_ray.store import Artifact, Store

log = logging.getLogger(__name__)

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
SUMMARY = ("val_top1", "top1_last", "top1_selected", "top1_best")
MAX_POINTS = 200


class Shipper:
    """Writes one run folder's trials to one tracking server."""

    def __init__(self, path: Path, store: Store, uri: str) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient

        self.path, self.store = path, store
        self.client = MlflowClient(uri)
        self.sweep = json.loads((path / "sweep.json").read_text())
        self.name = self.sweep["spec"]["name"]
        self._experiment = self._open_experiment(is_local=uri.startswith("sqlite:"))
        self._sweep_run = self._run(self.name, self.name, "sweep", None, {})

    def _open_experiment(self, *, is_local: bool) -> str:
        found = self.client.get_experiment_by_name(self.name)
        if found is not None:
            return str(found.experiment_id)
        location = (self.path.parent / "mlartifacts" / self.name).absolute().as_uri() if is_local else None
        return str(self.client.create_experiment(self.name, artifact_location=location))

    def _run(self, key: str, title: str, kind: str, parent: str | None, tags: Mapping[str, str]) -> str:
        """Id of the run with this key, made if there is none."""
        found = self.client.search_runs([self._experiment], f"tags.`ddgd.key` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        all_tags = {"ddgd.key": key, "ddgd.kind": kind, "ddgd.sweep": self.name, "mlflow.runName": title, **tags}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        return str(self.client.create_run(self._experiment, tags=all_tags).info.run_id)

    def ship(self, record: Mapping[str, Any]) -> None:
        """One trial with its evaluators."""
        key = f"{self.name}/{record['name']}"
        tags = {f"ddgd.{stage}": stage_key for stage, stage_key in [*record["prepare"], *record["build"]]}
        tags |= {"ddgd.preset": self.sweep["spec"]["preset"], "ddgd.control": str(record["is_control"]).lower()}
        if record.get("rung") is not None:
            tags["ddgd.rung"] = str(record.get("rung"))
        run = self._run(key, record["name"], "trial", self._sweep_run, tags)
        main = record["evaluators"][0]["protocol"] if record["evaluators"] else ""
        rows = [row for row in rows_of([record], self.store) if row.protocol == main]
        means = {name: stat.mean for name in SUMMARY if (stat := over_seeds(rows, name)) is not None}
        self._log(run, {**record["params"], "arm": record["arm"], "seed": record["seed"]}, means, record["finished"])
        for stage, stage_key, label in record["quality"]:
            measured = self.store.get(stage, stage_key)
            if measured is not None:
                named = {f"{label.replace(',', '')}/{name}": value for name, value in measured.metrics.items()}
                self._log(run, {}, named, measured.manifest["created"])
        for stage, stage_key in record["build"]:
            artifact = self.store.get(stage, stage_key)
            if artifact is not None and stage == "finetune":
                self._curves(run, artifact)
        folder = set_folder(record, self.store)
        if folder is not None:
            with tempfile.TemporaryDirectory() as scratch:
                picture = Path(scratch) / "distilled.png"
                draw_grid({record["name"]: folder}).save(picture)
                self.client.log_artifact(run, str(picture))
        for evaluator in record["evaluators"]:
            self._ship_evaluator(run, key, record, evaluator)
        if record["errors"]:
            self.client.set_tag(run, "ddgd.error", "; ".join(sorted(set(record["errors"].values())))[:4000])
        self._end(run, record["finished"], is_failed=record["state"] == "failed")

    def _ship_evaluator(self, parent: str, parent_key: str, record: Mapping[str, Any], evaluator: Mapping[str, Any]) -> None:
        artifact = self.store.get(evaluator["stage"], evaluator["key"])
        if artifact is None:
            return
        protocol = evaluator["protocol"]
        title = f"{evaluator['network']}/ipc{evaluator['ipc'] or 'all'}/seed{evaluator['seed']}"
        title += "" if protocol == record["evaluators"][0]["protocol"] else f"/{protocol}"
        tags = {"ddgd.evaluate": evaluator["key"], "ddgd.parent_key": parent_key, "ddgd.protocol": protocol}
        run = self._run(f"{parent_key}/{title}", title, "evaluator", parent, tags)
        params = {name: evaluator[name] for name in ("network", "ipc", "seed")}
        params |= {**record["params"], "arm": record["arm"], "distill_seed": record["seed"]}
        tested = self.store.get(*evaluator["test"]) if "test" in evaluator else None
        self._log(run, params, artifact.metrics | (tested.metrics if tested else {}), artifact.manifest["created"])
        self._curves(run, artifact)
        self._end(run, artifact.manifest["created"], is_failed=False)

    def _log(self, run: str, params: Mapping[str, Any], metrics: Mapping[str, float], seconds: float) -> None:
        from mlflow.entities import Metric, Param

        points = [Metric(name, value, int(seconds * 1000), 0) for name, value in metrics.items()]
        settings = [Param(name, str(value)) for name, value in params.items()]
        self.client.log_batch(run, metrics=points, params=settings)

    def _curves(self, run: str, artifact: Artifact) -> None:
        from mlflow.entities import Metric

        curves = read_curves(artifact)
        thin = max(1, len(curves) // MAX_POINTS)
        points = [
            Metric(f"{artifact.manifest['stage']}/{name}", value, int(point["time"] * 1000), int(point["step"]))
            for point in curves[::thin]
            for name, value in point.items()
            if name not in ("step", "time")
        ]
        for start in range(0, len(points), 1000):
            self.client.log_batch(run, metrics=points[start : start + 1000])

    def _end(self, run: str, seconds: float, *, is_failed: bool) -> None:
        self.client.set_terminated(run, "FAILED" if is_failed else "FINISHED", end_time=int(seconds * 1000))

    def finish(self, *, is_failed: bool) -> None:
        """Put the tables and grids on the sweep's run and end it."""
        for file in sorted((self.path / "report").glob("*")):
            self.client.log_artifact(self._sweep_run, str(file))
        self.client.set_terminated(self._sweep_run, "FAILED" if is_failed else "FINISHED")
