"""The display never ends or fails the work: closed and full output, terminals that know few signs or hang up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddgd_ray.commands.display import Display

ROOT = Path(__file__).parent.parent
MEMORY = str(ROOT / "ablations" / "memory.yaml")
CLI = [sys.executable, "-m", "ddgd_ray.cli"]


def sweep(tiny_file: Path, runs: Path, *more: str) -> list[str]:
    words = [*CLI, "sweep", str(tiny_file), "--run-dir", str(runs), "--executor", "local", "--no-tracking"]
    return [*words, "--set", "seeds.distill=[0]", *more]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def all_done(runs: Path) -> bool:
    return (runs / "tiny" / "report" / "table.md").is_file()


def test_a_reader_that_leaves_does_not_end_the_sweep(tiny_file: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        sweep(tiny_file, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as work:
        assert work.stdout is not None
        assert work.stdout.readline()
        work.stdout.close()
        assert work.wait(300) == 0
        assert work.stderr is not None
        assert b"Traceback" not in work.stderr.read()
    assert all_done(tmp_path)


def test_a_full_output_does_not_fail_the_sweep(tiny_file: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(sweep(tiny_file, tmp_path), stdout=full, stderr=full, env=environment(), timeout=300, check=False)
    assert done.returncode == 0
    assert all_done(tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_signs_is_shown_other_ones(tiny_file: Path, tmp_path: Path, encoding: str) -> None:
    words = sweep(tiny_file, tmp_path)
    done = subprocess.run(
        words, capture_output=True, env=environment(PYTHONIOENCODING=encoding, PYTHONUTF8="0"), timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode(encoding)
    assert "±" in shown if encoding == "latin-1" else "+-" in shown


def test_a_terminal_that_hangs_up_lets_the_sweep_drain(tiny_file: Path, tmp_path: Path) -> None:
    more = ("--set", "finetune.steps=4000", "--set", "resources.grace_s=5")
    with subprocess.Popen(sweep(tiny_file, tmp_path, *more), stdout=subprocess.PIPE, env=environment()) as work:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "store" / "kept").glob("*/*")):  # a stage is at work
            assert time.monotonic() < deadline
            assert work.poll() is None
            time.sleep(0.1)
        work.send_signal(signal.SIGHUP)
        work.send_signal(signal.SIGHUP)
        assert work.wait(200) == 75


def test_looking_with_a_full_output_fails_and_with_a_reader_that_leaves_does_not() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*CLI, "plan", MEMORY], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 5
    assert b"error[output]: " in done.stderr
    assert b"help: " in done.stderr
    with subprocess.Popen([*CLI, "plan", MEMORY], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as work:
        assert work.stdout is not None
        work.stdout.close()
        assert work.wait(100) == 0
        assert work.stderr is not None
        assert work.stderr.read() == b""


def test_the_exit_code_of_an_error_is_told_with_every_stream_closed(tmp_path: Path) -> None:
    code = (
        f"import os, sys; os.close(1); os.close(2); os.execv({sys.executable!r}, {[*CLI, 'plan', str(tmp_path / 'no.yaml')]!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 2


def test_a_display_that_is_lost_takes_no_more(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    display = Display(os.fdopen(writer, "w"))
    display.write("a")
    display.flush()
    assert display.lost is not None
    assert display.write("b") == 1
    assert not display.isatty()
