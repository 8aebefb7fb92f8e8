"""MLflow's own pages in a real browser, over the runs of a finished sweep."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.report.build import write_report
from ddgd_ray.run.folder import open_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
QUIET += "disable-sync virtual-time-budget=30000 window-size=2400,1400"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]


@pytest.fixture(scope="module")
def run_dir(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("pages")
    result = run_sweep(tiny({"seeds.distill": (0,)}), run_dir, run_in_process)
    write_report(result.folder.path, open_store(run_dir))
    subprocess.run([sys.executable, "-m", "ddgd_ray.cli", "mlflow", "sync", str(result.folder.path)], check=True)
    return run_dir


@pytest.fixture(scope="module")
def address(run_dir: Path) -> Iterator[str]:
    command = [sys.executable, "-u", "-m", "ddgd_ray.cli", "ui", str(run_dir / "tiny"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().split()[1].partition("#")[0]
    server.send_signal(signal.SIGINT)
    server.wait(30)


@pytest.fixture(scope="module")
def runs(run_dir: Path) -> dict[str, str]:
    """{run name: its id}."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}


def seen(url: str, folder: Path) -> str:
    """What a page shows once its scripts have run."""
    command = [str(CHROMIUM), *(f"--{flag}" for flag in QUIET.split()), f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    return subprocess.run([*command, url], capture_output=True, text=True, timeout=100, check=True).stdout


def test_the_experiment_shows_the_sweep_with_its_trials_below_it(address: str, runs: dict[str, str], tmp_path: Path) -> None:
    shown = seen(f"{address}#/experiments/1/runs", tmp_path)
    assert ">tiny<" in shown
    assert f"{len(runs)}</" in shown.replace(" ", "")
    assert "Training runs" in shown


def test_two_trials_are_compared_by_their_parameters_and_metrics(address: str, runs: dict[str, str], tmp_path: Path) -> None:
    ids = f'["{runs["max-s0"]}","{runs["fifo-s0"]}"]'
    shown = seen(f'{address}#/compare-runs?runs={ids}&experiments=["1"]', tmp_path)
    for text in ("max_similarity", "fifo", "finetune.memory_real.pop"):
        assert text in shown
    plotted = shown.partition("Metrics:")[2]
    assert "held_out_validation/mean" in plotted, "the plot begins with what may choose an arm"
    assert "test/mean" not in plotted.partition("held_out_validation/mean")[0]


def test_a_trial_shows_its_numbers_and_the_picture_of_its_set(address: str, runs: dict[str, str], tmp_path: Path) -> None:
    shown = seen(f"{address}#/experiments/1/runs/{runs['fifo-s0']}", tmp_path)
    for text in ("fifo-s0", "distill_seed", "held_out_validation/mean"):
        assert text in shown
    artifacts = seen(f"{address}#/experiments/1/runs/{runs['fifo-s0']}/artifacts", tmp_path)
    assert "images" in artifacts
