"""What a sweep looks like while it runs."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ddgd_ray.conduct.conductor import Conductor, Event
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.plan.jobs import Outcome
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.search.ask_tell import GridSearch
from ddgd_ray.watch.snapshot import snapshot
from ddgd_ray.watch.view import LiveView, PlainView, machine_busy_s, status_panel


def conductor_of(tiny: Any, tmp_path: Path, view: Any) -> Conductor:
    folder = RunFolder(tmp_path, "tiny")
    folder.prepare()
    store = open_store(tmp_path)
    store.prepare()
    sweep = tiny()
    return Conductor(sweep, store, GridSearch(sweep), folder, view.event)


def text_of(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(view.panel())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_panel_shows_what_runs_with_its_newest_point_and_what_failed(tiny: Any, tmp_path: Path) -> None:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True))
    assert "planning" in text_of(view)
    conductor = conductor_of(tiny, tmp_path, view)
    view.start(conductor)
    try:
        first, second = conductor.next(), conductor.next()
        assert first is not None
        assert second is not None
        kept = conductor.store.keep(second.calls[-1].key)
        (kept / "curves.jsonl").write_text(json.dumps({"step": 70, "time": 1.0, "loss": 0.25}) + "\n")
        conductor.ended(first.id, Outcome("error[non-finite]: L_real", is_final=True))
        shown = text_of(view)
    finally:
        view.stop()
    assert "step 70 loss 0.25" in shown
    assert f"failed: {first.label}: error[non-finite]: L_real" in shown
    assert "decode" in shown


def test_lines_come_one_an_event_and_say_how_much_is_left(tiny: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    view = PlainView(lines.append)
    conductor = conductor_of(tiny, tmp_path, view)
    assert lines == []
    view.start(conductor)
    job = conductor.next()
    assert job is not None
    conductor.ended(job.id, Outcome("the worker process died"))
    view.stop()
    assert "20 to run" in lines[0]
    assert "retry" in lines[1]
    assert job.label in lines[1]
    view.event(Event("start", job))
    assert len(lines) == 2


def test_a_line_comes_when_nothing_happens_for_long(tiny: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    came = threading.Event()

    def echo(line: str) -> None:
        lines.append(line)
        if len(lines) > 1:
            came.set()

    view = PlainView(echo, heartbeat_s=0.05)
    view.start(conductor_of(tiny, tmp_path, view))
    assert came.wait(10)
    view.stop()
    assert "0 jobs done, 0 running, 20 waiting" in lines[1]


@pytest.fixture(scope="module")
def stopped(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything done but the last trials."""
    run_dir = tmp_path_factory.mktemp("stopped")
    assert run_sweep(tiny({"budget.trials": 3}), run_dir, run_in_process).exit_code == 7
    return run_dir / "tiny"


def test_a_snapshot_counts_every_stage_once_and_names_the_best_arm(stopped: Path) -> None:
    found = snapshot(stopped)
    assert found.holder == ""
    assert found.trials == {"done": 5, "failed": 0, "planned": 0}
    assert found.stages["finetune"] == {"done": 3, "running": 0, "waiting": 0, "failed": 0}
    assert found.stages["evaluate"]["done"] == 5
    assert found.best is not None
    assert found.best.arm in ("max", "fifo")
    assert found.spent.num_jobs == 4 + 3 * 2 + 2 + 5
    assert found.left_s == 0.0


def test_a_snapshot_shows_what_another_process_is_making(tiny: Any, tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "tiny")
    run.prepare()
    run.remember(tiny())
    conductor = conductor_of(tiny, tmp_path, PlainView(lambda line: None))
    job = conductor.next()
    assert job is not None
    kept = conductor.store.keep(job.calls[0].key)
    (kept / "curves.jsonl").write_text(json.dumps({"step": 7, "time": 1.0, "loss": 0.5}) + "\n")
    with run.lock(), conductor.store.scratch(job.calls[0].key):
        run.order_stop()
        found = snapshot(run.path)
    assert f"process {os.getpid()}" in found.holder
    assert found.is_stopping
    (row,) = found.running
    assert (row.stage, row.point["step"]) == (job.stage, 7)
    assert found.stages[job.stage]["running"] == 1
    console = Console(file=io.StringIO(), width=160)
    console.print(status_panel(found))
    assert "step 7 loss 0.5" in console.file.getvalue()  # type: ignore[attr-defined]


def test_status_imports_neither_ray_nor_torch_and_its_json_can_be_read(stopped: Path) -> None:
    code = (
        "import sys\nfrom ddgd_ray.cli import main\n"
        f"try: main(['status', {str(stopped)!r}, '--json'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'ray', 'torch', 'mlflow'} & sys.modules.keys(), 'imported'"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(ended.stdout)["trials"]["done"] == 5


def test_the_machine_works_while_a_test_runs() -> None:
    before = machine_busy_s()
    sum(range(10**7))
    assert machine_busy_s() > before > 0
