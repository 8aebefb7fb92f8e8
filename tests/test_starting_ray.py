"""Ray that cannot start, is somewhere else, or dies: one message with one remedy, the promised exit code, at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddgd_ray.cluster.connect import address_of, look_ahead, resolve
from ddgd_ray.doctor.local_ray import check_local_ray, local_misfits
from ddgd_ray.doctor.services import check_ray, check_tracking
from ddgd_ray.errors import ClusterError, SpecError
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.tracking.tracker import refuse_unfit

CLI = [sys.executable, "-m", "ddgd_ray.cli"]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TMPDIR": "/tmp/" + "x" * 100}, "too long"),
        ({"RAY_TMPDIR": "/nowhere"}, "no folder"),
        ({"HOME": "/etc/hostname"}, "cannot be made"),
    ],
)
def test_what_keeps_ray_from_starting_is_told_with_its_variable(environment: dict[str, str], words: str) -> None:
    (finding,) = [one for one in check_local_ray(environment) if one.level == "FAIL"]
    (variable,) = environment
    assert words in finding.what
    assert variable in finding.what
    assert finding.fix


def test_a_temporary_folder_of_somebody_else_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith(str(tmp_path)))
    found = [one.what for one in check_local_ray({"RAY_TMPDIR": "/tmp", "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"})]
    assert found == ["can start on this machine"]
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert any("cannot be written" in one.what for one in check_local_ray({"RAY_TMPDIR": "/tmp", "RAY_AUTH_MODE": "disabled"}))


def test_a_machine_that_does_not_reach_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr("socket.create_server", refuse)
    assert any("127.0.0.1" in one.what for one in check_local_ray({"RAY_AUTH_MODE": "disabled"}))


def test_a_sweep_on_such_a_machine_leaves_with_5_and_writes_nothing(tiny_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": "/tmp/" + "x" * 100}
    environment.pop("RAY_ADDRESS", None)
    words = [*CLI, "sweep", str(tiny_file), "--run-dir", str(tmp_path / "runs"), "--no-tracking"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error[ray-start]: TMPDIR=/tmp/xxx")
    assert "help: " in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("asked", [{"cpus": 100_000.0}, {"gpus": 64.0}, {"memory_gb": 1e9}])
def test_jobs_that_fit_on_no_worker_of_this_machine_are_found_before_anything_starts(
    asked: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=f"resources.{next(iter(asked))}") as caught:
        look_ahead(None, ResourcesSpec(**asked))
    assert caught.value.exit_code == 5
    assert caught.value.fix.startswith("--set resources.")
    assert not local_misfits(ResourcesSpec())


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "https://me.example.org", "10.0.0.1", "10.0.0.1:x", "h:99999"])
def test_an_address_that_is_no_heads_is_told_by_the_name_of_its_variable(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError) as caught:
        look_ahead(None, ResourcesSpec())
    assert caught.value.where == f"RAY_ADDRESS={address}"
    assert caught.value.fix
    (finding,) = check_ray(address)
    assert finding.level == "FAIL"
    assert f"RAY_ADDRESS={address}" in finding.what
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ClusterError, match="--address"):
        resolve(address)


def test_local_means_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert address_of(None) is None
    assert address_of("local") is None
    assert address_of("h:1") == "h:1"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "./mlruns", "file:mlruns"])
def test_a_store_of_files_of_mlflow_is_refused_at_the_start(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SpecError, match="folder of files") as caught:
        refuse_unfit(None)
    assert (caught.value.where, caught.value.exit_code) == ("MLFLOW_TRACKING_URI", 2)
    with pytest.raises(SpecError, match="folder of files") as caught:
        refuse_unfit(uri)
    assert caught.value.where == "--tracking-uri"
    (finding,) = check_tracking(uri, source="MLFLOW_TRACKING_URI")
    assert finding.level == "FAIL"
    assert "MLFLOW_TRACKING_URI" in finding.what
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host")
    refuse_unfit(None)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["raylet", "gcs_server"])
def test_the_death_of_rays_own_processes_ends_the_sweep_at_once_and_it_goes_on_later(
    which: str, tiny_file: Path, tmp_path: Path
) -> None:
    import psutil

    words = [*CLI, "sweep", str(tiny_file), "--run-dir", str(tmp_path), "--no-tracking", "--set", "finetune.steps=3000"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as work:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "store" / "kept").glob("*/*")):
            assert time.monotonic() < deadline
            assert work.poll() is None
            time.sleep(0.2)
        (victim,) = [one for one in psutil.Process(work.pid).children(recursive=True) if one.name() == which]
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        assert work.wait(60) == 75
        assert time.monotonic() - killed < 15
        assert work.stderr is not None
        assert b"error[ray-died]" in work.stderr.read()
