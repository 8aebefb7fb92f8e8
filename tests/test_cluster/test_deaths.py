"""What is told of a worker process that died: the cause, the node, and the log of its job."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cluster.deaths import Traces, cause_of_death, words_of
from ddgd_ray.cluster.tune import run_with_tune
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

OF_RAY = "The actor died unexpectedly before finishing this task. Worker exit detail: "


@pytest.mark.parametrize(
    ("word", "traces", "expected"),
    [
        ("Worker exits unexpectedly. Worker exits with an exit code 4.", Traces(), "it left with exit code 4"),
        ("Worker exits with an exit code 1. The process receives a SIGTERM.", Traces(), "it was ended by SIGTERM"),
        ("connection error code 2. End of file.", Traces("Segmentation fault"), "it crashed (Segmentation fault)"),
        ("connection error code 2. End of file.", Traces("", 1), "the kernel killed it (SIGKILL)"),
        ("connection error code 2. End of file.", Traces(), "it was killed (SIGKILL), or left by os._exit"),
        ("ray.exceptions.OutOfMemoryError: running low on memory", Traces(), "Ray ended it"),
    ],
)
def test_a_death_is_told_by_the_traces_that_it_left(word: str, traces: Traces, expected: str) -> None:
    assert words_of(OF_RAY + word, traces).startswith(expected)


def test_a_fault_is_found_in_the_log_of_the_process_that_it_ended(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "job.log"
    script = f"""
import ctypes, pathlib
from ddgd_ray.conduct.job_log import job_log
with job_log(pathlib.Path({str(file)!r}), {{"stage": "finetune"}}, takes_output=True):
    ctypes.string_at(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGSEGV
    assert not done.stderr, "the fault is told in the log, not on the console"
    expected = f"the worker process died on {socket.gethostname()}: it crashed (Segmentation fault)"
    assert cause_of_death("", file, None) == expected


DEATHS = {
    "fifo": (lambda: os.kill(os.getpid(), signal.SIGKILL), "it was killed (SIGKILL)"),
    "random": (lambda: sys.exit(4), "it left with exit code 4"),
    "max_similarity": (lambda: ctypes.string_at(0), "it crashed (Segmentation fault)"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_die_are_told_of_by_cause_place_and_log(tiny: Any, tmp_path: Path, ray_cluster: None) -> None:
    changes = {"resources.max_failures": 1, "seeds.distill": (0,), "controls": (), "resources.max_failed_share": 1.0}
    sweep = tiny(changes | {"vary": {"finetune.memory_real.pop": tuple(DEATHS)}})

    def work(job: Job, store: Store, resources: ResourcesSpec, publish: Any = None, *, stop_file: Any = None) -> Outcome:
        os.write(1, f"about to do {job.stage}\n".encode())
        if job.stage == "finetune":
            DEATHS[job.calls[0].spec.memory_real.pop][0]()
        for call in job.calls:
            with store.scratch(call.key) as out:
                (out / "curves.jsonl").write_text("")
                store.publish(out, call.spec, call.input_keys(), {"val_top1": 0.5, "top1_last": 0.5}, 1.0)
        return Outcome()

    def execute(conductor: Conductor, store: Store, resources: ResourcesSpec) -> None:
        run_with_tune(conductor, store, resources, work=work)

    result = run_sweep(sweep, tmp_path, execute)
    assert result.exit_code == 4
    for record in result.failed:
        (call,) = [call for call in record.trial.build if call.stage == "finetune"]
        message = record.errors[call.key]
        assert DEATHS[str(record.trial.params["finetune.memory_real.pop"])][1] in message
        log = result.folder.path / message.partition("log: ")[2]
        text = log.read_text()
        assert text.count("== attempt") == 2, "both attempts are in one log"
        assert f"stage finetune key {call.key} attempt 2" in text
        assert text.count("about to do finetune") == 2
    assert len(result.causes) == 3
    assert all(str(result.folder.path / "logs") in cause for cause in result.causes)
