"""Whole sweeps: in this process, killed and continued, and under Ray."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.conductor import Event
from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_in_process, run_job
from ddgd_ray.errors import SpecError
from ddgd_ray.report.build import write_report
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.lineage import find_tuned, lineage, tuned_model
from tests.published import published


def tables(result: Result) -> tuple[str, str]:
    """Both tables as written to disk."""
    path = result.folder.path
    write_report(path, open_store(path.parent))
    return (path / "report" / "table.md").read_text(), (path / "report" / "results.csv").read_text()


@pytest.fixture(scope="module")
def calm(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_sweep(tiny(), tmp_path_factory.mktemp("calm"), run_in_process)


def test_a_sweep_ends_with_a_table_of_every_arm(calm: Result) -> None:
    markdown, csv = tables(calm)
    assert calm.exit_code == 0
    for arm in ("max", "fifo", "random_real (control)"):
        assert f"| {arm} |" in markdown
    assert "(n=2)" in markdown
    assert len(csv.splitlines()) == 1 + 6


def test_a_finished_sweep_runs_nothing_again(calm: Result, tiny: Any) -> None:
    events: list[Event] = []
    again = run_sweep(tiny(), calm.folder.run_dir, run_in_process, emit=events.append)
    assert again.num_ran == 0
    assert {event.kind for event in events} == {"trial"}


def test_more_seeds_run_only_themselves(calm: Result, tiny: Any) -> None:
    events: list[Event] = []
    more = run_sweep(
        tiny({"name": "more", "seeds.distill": (0, 1, 2)}), calm.folder.run_dir, run_in_process, emit=events.append
    )
    ran = [event.job.label for event in events if event.kind == "done" and event.job]
    assert more.num_ran == 8
    assert all("-s2" in label for label in ran)


def test_two_runs_of_one_sweep_give_equal_bytes(calm: Result, tiny: Any, tmp_path: Path) -> None:
    assert tables(run_sweep(tiny(), tmp_path, run_in_process)) == tables(calm)


def test_a_damaged_latent_cache_is_set_aside_and_made_again(tiny: Any, tmp_path: Path) -> None:
    run_sweep(tiny({"controls": (), "seeds.distill": (0,)}), tmp_path, run_in_process)
    cache = next((tmp_path / "store" / "encode").iterdir())
    sound = (cache / "posterior-00000.npy").read_bytes()
    (cache / "posterior-00000.npy").write_bytes(b"short")
    result = run_sweep(tiny({"controls": (), "seeds.distill": (0, 1)}), tmp_path, run_in_process, amend=True)
    assert result.exit_code == 0
    assert (cache / "posterior-00000.npy").read_bytes() == sound
    assert list((tmp_path / "store" / "damaged").iterdir())


@pytest.mark.parametrize("instant", [2.5, 4.0])
def test_a_sweep_that_was_killed_continues_to_equal_bytes(
    calm: Result, tiny_file: Path, tiny: Any, tmp_path: Path, instant: float
) -> None:
    command = [sys.executable, "-m", "ddgd_ray.cli", "sweep", str(tiny_file), "--run-dir", str(tmp_path)]
    driver = subprocess.Popen([*command, "--executor", "local", "--no-tracking"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 110
    wanted = int(instant * 2)  # by what is published, not by the clock: imports take longer on a loaded machine
    while len(published(tmp_path)) < wanted and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = published(tmp_path)
    result = run_sweep(tiny(), tmp_path, run_in_process)
    assert tables(result) == tables(calm)
    after = published(tmp_path)
    assert before == {ref: after.get(ref) for ref in before}, "published work was repeated"
    assert not [path for path in (tmp_path / "store" / "scratch").iterdir() if str(driver.pid) in path.name]


def test_sigint_drains_and_exits_75_and_the_same_command_continues(tiny_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddgd_ray.cli", "sweep", str(tiny_file), "--run-dir", str(tmp_path)]
    command += ["--executor", "local", "--no-tracking"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not published(tmp_path):
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 75
    assert "run the same command again" in output
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert again.returncode == 0


def test_a_sweep_under_ray_equals_one_in_process_and_is_quiet_the_second_time(
    ray_cluster: None, calm: Result, tiny: Any, tmp_path: Path
) -> None:
    from ddgd_ray.cluster.tune import run_with_tune

    lock = threading.Lock()  # as the live view has one: nothing of it may get into what Tune pickles

    def listen(event: Event) -> None:
        with lock:
            pass

    result = run_sweep(tiny(), tmp_path, run_with_tune, emit=listen)
    assert result.exit_code == 0
    assert tables(result) == tables(calm)
    assert not list((tmp_path / "tiny" / "tune").rglob("checkpoint_*")), "of Tune's; workers elsewhere could not write them"
    assert run_sweep(tiny(), tmp_path, run_with_tune).num_ran == 0


@pytest.mark.timeout(600)  # Train starts two processes for each: minutes on busy cores
@pytest.mark.parametrize("stages", [("finetune",), pytest.param(("finetune", "sample"), marks=pytest.mark.slow)])
def test_two_train_workers_share_a_stage(
    ray_cluster: None, calm: Result, tiny: Any, tmp_path: Path, stages: tuple[str, ...]
) -> None:
    """memory_scope: global: the same losses as one worker, to rounding."""
    from ddgd_ray.cluster.tune import run_with_tune

    only = {"controls": (), "seeds.distill": (0,), "vary": {"finetune.memory_real.pop": ("max_similarity",)}}
    wide = {"resources.stages": {stage: {"workers": 2} for stage in stages}}
    result = run_sweep(tiny({**only, **wide}), tmp_path, run_with_tune)
    assert result.exit_code == 0, str(result.failed[0].errors)  # pytest cuts what is no str

    def losses(run_dir: Path) -> dict[str, float]:
        key = next(record for record in result.records if record.trial.arm.startswith("max")).trial.build[0].ref
        artifact = open_store(run_dir).get(*key)
        assert artifact is not None
        return artifact.metrics

    assert losses(tmp_path) == pytest.approx(losses(calm.folder.run_dir), rel=1e-4)


def test_a_worker_that_is_killed_is_replaced_and_its_job_repeated(ray_cluster: None, tiny: Any, tmp_path: Path) -> None:
    from ddgd_ray.cluster.tune import run_with_tune

    killed: list[int] = []

    def kill_first(event: Event) -> None:
        """Kill the process that makes the first set, found by its scratch folder."""
        for folder in (tmp_path / "store" / "scratch").iterdir():
            pid = folder.name.split(".")[-2]
            if not killed and pid.isdigit() and int(pid) != os.getpid():
                killed.append(int(pid))
                os.kill(int(pid), signal.SIGKILL)

    only = {"controls": (), "seeds.distill": (0,), "backbone.steps": 300, "finetune.steps": 60}
    result = run_sweep(tiny(only), tmp_path, _with_poll(run_with_tune, kill_first))
    assert killed
    assert result.exit_code == 0
    assert any(json.loads(path.read_text())["state"] == "done" for path in result.folder.trials.glob("*.json"))


def _with_poll(execute: Any, act: Any) -> Any:
    """Runs `act` ten times a second beside the executor until it ends."""

    def run(*args: Any) -> None:
        stop = threading.Event()

        def poll() -> None:
            while not stop.wait(0.1):
                act(None)

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            execute(*args)
        finally:
            stop.set()
            thread.join()

    return run


def test_a_search_that_was_stopped_proposes_what_a_calm_one_does(tiny_file: Path, tmp_path: Path) -> None:
    from ddgd_ray.spec.sweep import read_sweep

    (tmp_path / "space.yaml").write_text(
        "finetune.memory_real.size: {type: int, low: 2, high: 16, log: true}\n"
        "finetune.memory_gen.pop: {type: choice, values: [fifo, reservoir]}\n"
    )
    text = tiny_file.read_text().partition("vary:")[0] + "search: {space: space.yaml, trials: 6, parallel: 2}\n"
    (tmp_path / "search.yaml").write_text(text + "seeds: {distill: [0], evaluate: [0]}\nevaluate: {ipc: [2]}\n")
    sweep = read_sweep(tmp_path / "search.yaml", {"name": "search"})
    calm = run_sweep(sweep, tmp_path / "calm", run_in_process)
    assert calm.exit_code == 0
    assert len(calm.records) == 6

    def stop_after_five(conductor: Any, store: Any, resources: Any) -> None:
        for _ in range(5):
            job = conductor.next()
            assert job is not None
            conductor.ended(job.id, run_job(job, store, resources))
        conductor.stop("interrupted")

    stopped = run_sweep(sweep, tmp_path / "stopped", stop_after_five)
    assert stopped.exit_code == 75
    continued = run_sweep(sweep, tmp_path / "stopped", run_in_process)
    assert tables(continued) == tables(calm)


def test_a_fine_tuning_is_traced_back_to_all_it_was_made_from(calm: Result) -> None:
    store = open_store(calm.folder.run_dir)
    key = store.keys("finetune")[0]
    found = tuned_model(lineage(store, find_tuned(store, key[:10])))
    assert found.adapter.name == key
    assert found.backbone.parent.name == "pretrain"
    assert found.autoencoder.parent.name == "autoencoder"
    assert found.labels == {label: str(label) for label in range(10)}
    with pytest.raises(SpecError, match=f"fine-tunings begin with ''; there: {key[:12]}"):
        find_tuned(store, "")
    with pytest.raises(SpecError, match="no fine-tuning begins with 'x'"):
        find_tuned(store, "x")
