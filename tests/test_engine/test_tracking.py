"""MLflow: three levels of runs from the outbox; sending twice changes nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.engine import tracker
from ddgd_ray.engine.run_folder import open_store
from ddgd_ray.engine.sweep import Result, run_sweep
from ddgd_ray.engine.work import run_in_process
from ddgd_ray.report.write import write_report

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="module")
def shipped(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    run_dir = tmp_path_factory.mktemp("tracked")
    result = run_sweep(tiny({"seeds.distill": (0,)}), run_dir, run_in_process)
    write_report(result.folder.path, open_store(run_dir))
    uri = tracker.default_uri(run_dir)
    assert len(tracker.waiting(result.folder)) == 3
    assert tracker.ship_all(result.folder, open_store(run_dir), uri) == 0
    return result, uri


def rows(uri: str) -> list[Any]:
    """All runs with their parameters and every point of every metric."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = []
    for run in client.search_runs([experiment.experiment_id]):
        points = [
            (name, point.step, point.value, point.timestamp)
            for name in sorted(run.data.metrics)
            for point in client.get_metric_history(run.info.run_id, name)
        ]
        runs.append((run.data.tags["ddgd.key"], run.info.status, sorted(run.data.params.items()), points))
    return sorted(runs)


def test_runs_are_nested_sweep_trial_evaluator(shipped: tuple[Result, str]) -> None:
    from mlflow.tracking import MlflowClient

    _, uri = shipped
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    kinds: dict[str, list[str]] = {}
    for run in runs.values():
        parent = runs.get(run.data.tags.get("mlflow.parentRunId", ""))
        kinds.setdefault(run.data.tags["ddgd.kind"], []).append(parent.data.tags["ddgd.kind"] if parent else "")
    assert kinds == {"sweep": [""], "trial": ["sweep"] * 3, "evaluator": ["trial"] * 3}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_trial_has_its_parameters_curves_diagnostics_and_picture(shipped: tuple[Result, str]) -> None:
    from mlflow.tracking import MlflowClient

    result, uri = shipped
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    arm = next(record.trial for record in result.records if record.trial.arm == "fifo")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`ddgd.key` = 'tiny/{arm.name}'")
    assert run.data.params["finetune.memory_real.pop"] == "fifo"
    assert {
        "val_top1",
        "top1_last",
        "top1_best",
        "finetune/L_real",
        "finetune/memory_gen/mean_age",
    } <= run.data.metrics.keys()
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["distilled.png"]


def test_sending_everything_twice_leaves_the_same_rows(shipped: tuple[Result, str]) -> None:
    result, uri = shipped
    before = rows(uri)
    for path in (result.folder.outbox / "sent").glob("*.json"):
        path.rename(result.folder.outbox / path.name)
    assert tracker.ship_all(result.folder, open_store(result.folder.run_dir), uri) == 0
    assert rows(uri) == before


def test_without_a_server_the_trials_stay_in_the_outbox(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = run_sweep(tiny({"controls": (), "seeds.distill": (0,)}), tmp_path, run_in_process)
    assert tracker.ship_all(result.folder, open_store(tmp_path), "http://127.0.0.1:9") == 2
    assert len(tracker.waiting(result.folder)) == 2
