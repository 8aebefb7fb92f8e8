"""Faults: whatever happens to a driver, continuing ends where an undisturbed run does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.virtual import VirtualCluster
from ddgd_ray.conduct.work import run_in_process, run_job
from ddgd_ray.errors import ArtifactError
from ddgd_ray.plan.jobs import Outcome
from ddgd_ray.report.tables import csv_table
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.reading import read_run
from ddgd_ray.spec.sweep import Sweep, read_sweep

SMALL = {"seeds.distill": (0,), "controls": ("random_real",)}


def told(path: Path) -> tuple[str, list[Any]]:
    """What a run says in the end: every evaluator's numbers to the last digit, and each trial's state with its keys."""
    run = read_run(path, open_store(path.parent))
    return csv_table(run.rows), [(one.name, one.state, one.build, one.evaluators, one.errors) for one in run.trials]


def in_child(work: Callable[[], Any], **environment: str) -> int:
    """The exit status of a process that does this: 0 unless it raised or left before its end."""
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_everywhere(sweep: Sweep, execute: Any, folder: Path, every: int) -> int:
    """Pull the plug at each `every`-th commit point of a run, continue, compare; returns the number of points."""
    points = folder / "points"
    assert in_child(lambda: run_sweep(sweep, folder / "calm", execute()), DDGD_CRASH_COUNT=str(points)) == 0
    calm = told(folder / "calm" / sweep.spec.name)
    num_points = len(points.read_text().splitlines())
    for number in range(1, num_points + 1, every):
        runs = folder / str(number)
        assert in_child(lambda: run_sweep(sweep, runs, execute()), DDGD_CRASH_AT=str(number)) == 137  # noqa: B023
        assert in_child(lambda: run_sweep(sweep, runs, execute())) == 0  # noqa: B023
        assert told(runs / sweep.spec.name) == calm, f"after a crash at commit point {number}"
        assert not list((runs / "store" / "scratch").iterdir())
    return num_points


def test_a_crash_at_any_commit_point_changes_nothing_in_the_end(tiny: Any, tmp_path: Path) -> None:
    """Every 11th of them, on stages that take no time; the slow twin takes every one, on real stages."""
    assert crash_everywhere(tiny(SMALL), lambda: VirtualCluster(1.0), tmp_path, every=11) > 100


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_crash_at_every_commit_point_of_real_stages_changes_nothing_in_the_end(tiny: Any, tmp_path: Path) -> None:
    one_arm = {**SMALL, "vary": {"finetune.memory_real.pop": ("fifo",)}, "controls": ()}
    run_sweep(tiny(one_arm), tmp_path / "imports", run_in_process)  # forks inherit what is imported
    assert crash_everywhere(tiny(one_arm), lambda: run_in_process, tmp_path, every=1) > 60


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thirty_kills_at_random_instants_change_nothing_in_the_end(tiny: Any, tiny_file: Path, tmp_path: Path) -> None:
    def command(runs: str) -> list[str]:
        words = [sys.executable, "-m", "ddgd_ray.cli", "sweep", str(tiny_file), "--run-dir", str(tmp_path / runs)]
        return [*words, "--executor", "local", "--no-tracking"]

    started = time.monotonic()
    subprocess.run(command("calm"), stdout=subprocess.DEVNULL, check=True)
    calm_s, calm = time.monotonic() - started, told(tmp_path / "calm" / "tiny")
    draw, kills, finished = random.Random(0), 0, 0
    while kills < 30:
        driver = subprocess.Popen(command(f"killed-{finished}"), stdout=subprocess.DEVNULL)
        try:
            assert driver.wait(draw.uniform(0, calm_s)) == 0
            assert told(tmp_path / f"killed-{finished}" / "tiny") == calm
            finished += 1  # before the kill: another one
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
            kills += 1
    assert run_sweep(tiny(), tmp_path / f"killed-{finished}", run_in_process).exit_code == 0
    assert told(tmp_path / f"killed-{finished}" / "tiny") == calm


def test_deaths_and_preemptions_change_neither_results_nor_proposals(tiny_file: Path, tmp_path: Path) -> None:
    """A search in deterministic mode: other timing, other order, workers that die: the same configurations and numbers."""
    (tmp_path / "space.yaml").write_text("finetune.lambda_g: {type: float, low: 0.001, high: 0.1, log: true}\n")
    text = tiny_file.read_text().partition("vary:")[0] + "search: {space: space.yaml, trials: 9, parallel: 3}\n"
    (tmp_path / "search.yaml").write_text(text + "seeds: {distill: [0, 1], evaluate: [0]}\nevaluate: {ipc: [2]}\n")
    sweep = read_sweep(tmp_path / "search.yaml", {"resources.gpus": 1, "resources.max_failures": 50})
    calm = run_sweep(sweep, tmp_path / "calm", VirtualCluster(1.0))
    stormy = VirtualCluster(4.0, seed=5, deaths=0.1, preemptions=0.2)
    rough = run_sweep(sweep, tmp_path / "rough", stormy)
    assert calm.exit_code == rough.exit_code == 0
    assert stormy.num_deaths
    assert stormy.num_preemptions
    assert told(rough.folder.path) == told(calm.folder.path)


def test_a_preempted_job_has_used_up_no_attempt(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({"resources.max_failures": 0, "resources.gpus": 1})
    result = run_sweep(sweep, tmp_path, VirtualCluster(2.0, seed=1, preemptions=0.4))
    assert result.exit_code == 0


def test_a_worker_that_always_dies_fails_its_trial_alone(tiny: Any, tmp_path: Path) -> None:
    """Exit code 3, the last error told; continuing tries again."""

    def execute(conductor: Any, store: Any, resources: Any) -> None:
        while (job := conductor.next()) is not None:
            dies = job.label == "fifo-s0 finetune"
            outcome = Outcome("the worker process died") if dies else run_job(job, store, resources)
            conductor.ended(job.id, outcome)

    sweep = tiny({"resources.max_failed_share": 1.0, "seeds.distill": (0,)})
    result = run_sweep(sweep, tmp_path, execute)
    assert result.exit_code == 3
    (failed,) = result.failed
    assert failed.trial.name == "fifo-s0"
    assert "the worker process died" in failed.errors.values()
    assert run_sweep(sweep, tmp_path, run_in_process).exit_code == 0


@pytest.fixture(scope="module")
def done(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_sweep(tiny(SMALL), tmp_path_factory.mktemp("done"), run_in_process)


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", "\x00" * 40, None], ids=["empty", "torn", "other", "zeros", "gone"])
@pytest.mark.parametrize("which", ["sweep.json", "trials/fifo-s0.json", "spend.jsonl"])
def test_damaged_records_are_rebuilt_from_the_store(done: Result, tiny: Any, which: str, damage: str | None) -> None:
    before = told(done.folder.path)
    path = done.folder.path / which
    sound = path.read_text()
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    again = run_sweep(tiny(SMALL), done.folder.run_dir, run_in_process)
    assert (again.exit_code, again.num_ran) == (0, 0)
    assert told(done.folder.path) == before
    if which == "sweep.json":
        assert json.loads(path.read_text())["identity"] == json.loads(sound)["identity"]


def test_a_run_of_a_newer_version_is_left_alone(done: Result, tiny: Any) -> None:
    path = done.folder.path / "sweep.json"
    sound = path.read_text()
    path.write_text(json.dumps(json.loads(sound) | {"schema": 99}))
    try:
        with pytest.raises(ArtifactError, match="schema: expected 1, found 99") as caught:
            run_sweep(tiny(SMALL), done.folder.run_dir, run_in_process)
        assert caught.value.exit_code == 6
    finally:
        path.write_text(sound)


def test_a_damaged_artifact_is_made_again_when_something_needs_it(tiny: Any, tmp_path: Path) -> None:
    run_sweep(tiny(SMALL), tmp_path, run_in_process)
    before = told(tmp_path / "tiny")
    store = open_store(tmp_path)
    for stage, file in (("encode", "labels.npy"), ("finetune", "adapter.safetensors"), ("sample", "metadata.jsonl")):
        for folder in (store.root / stage).iterdir():
            with (folder / file).open("r+b") as opened:
                opened.seek(10)
                opened.write(b"\xff\x00\xff")
    for folder in (store.root / "evaluate").iterdir():
        (folder / "manifest.json").unlink()
    result = run_sweep(tiny(SMALL), tmp_path, run_in_process)
    assert result.exit_code == 0, str(result.failed[0].errors)  # pytest cuts what is no str
    assert told(tmp_path / "tiny") == before
    assert {path.name.partition(".")[0] for path in (store.root / "damaged").iterdir()}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once_and_the_same_command_continues(
    tiny_file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "ddgd_ray.cli", "sweep", str(tiny_file), "--run-dir", str(tmp_path)]
    command += ["--executor", "local", "--no-tracking", "--set", "backbone.steps=100000"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    folder = tmp_path / "tiny"
    deadline = time.monotonic() + 100
    while not list((tmp_path / "store").glob("kept/*/curves.jsonl")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(number)
    while not (folder / "stop").exists():
        time.sleep(0.02)
    driver.send_signal(number)
    assert driver.wait(20) == code
    assert RunFolder(tmp_path, "tiny").holder() == ""


def test_output_that_nobody_reads_any_more_is_no_error(tiny_file: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m ddgd_ray.cli plan {tiny_file} --run-dir {tmp_path} | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("tiny: preset digits")
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_trials_leave_memory_files_and_threads_as_they_were(tmp_path: Path, tiny_file: Path) -> None:
    values = ", ".join(f"{0.001 * place:.3f}" for place in range(200))
    text = tiny_file.read_text().partition("vary:")[0] + f"vary: {{finetune.lambda_g: [{values}]}}\n"
    seeds = "seeds: {distill: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], evaluate: [0]}\nevaluate: {networks: [convnet3_slim], ipc: [2]}\n"
    (tmp_path / "many.yaml").write_text(text + seeds + "resources: {gpus: 1}\n")
    process, seen = psutil.Process(), []

    def watch(cluster: VirtualCluster, conductor: Any) -> None:
        seen.append((process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()))

    result = run_sweep(read_sweep(tmp_path / "many.yaml", {}), tmp_path, VirtualCluster(64.0, watch=watch, watch_every=500))
    assert len(result.records) == 2000
    early, late = seen[1], seen[-1]
    assert late[0] - early[0] < 60, f"MB of memory: {[round(one[0]) for one in seen]}"
    assert late[1:] == early[1:], "files and threads"
