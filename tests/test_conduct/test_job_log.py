"""The log of a job: what it holds, and who names it."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.job_log import HEAD, fault_in, job_log, oom_kills_at_start
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.stages import select

ONE_ARM = {"controls": ("random_real",), "seeds.distill": (0,), "vary": {"finetune.memory_real.pop": ("fifo",)}}


@pytest.fixture
def broken_select(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any) -> dict[str, float]:
        raise KeyError("a label that no class has")

    monkeypatch.setattr(select, "run", run)


def test_a_job_that_failed_is_named_with_its_log_in_record_cause_and_sweep_log(
    tiny: Any, tmp_path: Path, broken_select: None, caplog: pytest.LogCaptureFixture
) -> None:
    result = run_sweep(tiny(ONE_ARM | {"resources.max_failures": 1}), tmp_path, run_in_process)
    (failed,) = result.failed
    (select_call,) = failed.trial.build
    message = failed.errors[select_call.key]
    name = f"logs/select-{select_call.key[:12]}.log"
    assert message.endswith(f"\n  log: {name}")
    text = (result.folder.path / name).read_text()
    assert text.count(HEAD) == 2
    assert f"stage select key {select_call.key} attempt 2" in text
    assert text.count("Traceback (most recent call last)") == 2
    assert "KeyError: 'a label that no class has'" in text
    assert text.count("peak memory") == 2
    (cause,) = result.causes
    assert str(result.folder.path / name) in cause
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any(text.startswith("random_real-s0 select failed: KeyError") for text in errors)


def test_jobs_that_fail_alike_are_one_cause(tiny: Any, tmp_path: Path, broken_select: None) -> None:
    changes = ONE_ARM | {"seeds.distill": (0, 1), "resources.max_failures": 0}
    result = run_sweep(tiny(changes), tmp_path, run_in_process)
    assert [len(result.failed), len(result.causes)] == [2, 1]
    logs = {record.errors[record.trial.build[0].key].partition("log: ")[2] for record in result.failed}
    assert len(logs) == 2, "each names its own log"


def test_what_a_process_prints_lands_in_the_log_and_not_on_its_own_output(tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    script = f"""
import os, pathlib
from ddgd_ray.conduct.job_log import job_log
with job_log(pathlib.Path({str(file)!r}), {{"stage": "sample"}}, takes_output=True):
    print("by Python")
    os.system("echo by a child")
print("afterwards")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "afterwards\n"
    assert "by Python\nby a child\npeak memory" in file.read_text()


def test_the_peak_is_that_of_the_job_and_not_of_those_before(tmp_path: Path) -> None:
    for name, size in (("large", 400_000_000), ("small", 1)):
        with job_log(tmp_path / name, {}, takes_output=False):
            block = bytearray(os.urandom(1) * size)
            del block
    large, small = (float((tmp_path / name).read_text().split()[-2]) for name in ("large", "small"))
    assert large - small > 350


def test_only_the_last_attempt_is_asked_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    file.write_text(
        f"{HEAD} at noon: pid 1; oom_kills 3\nFatal Python error: Aborted\n\n{HEAD} at one: pid 2; oom_kills 5\nall is well\n"
    )
    assert fault_in(file) == ""
    assert oom_kills_at_start(file) == 5
