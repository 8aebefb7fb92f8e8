"""What a sweep looks like while it runs."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ddgd_ray.engine.conductor import Conductor, Event
from ddgd_ray.engine.jobs import Outcome
from ddgd_ray.engine.run_folder import RunFolder, open_store
from ddgd_ray.engine.search import GridSearch
from ddgd_ray.view import LiveView, PlainView, machine_busy_s


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
    assert "1 running" in shown


def test_lines_come_one_an_event_and_say_how_much_is_left(tiny: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    view = PlainView(lines.append)
    conductor = conductor_of(tiny, tmp_path, view)
    assert lines == []
    view.start(conductor)
    job = conductor.next()
    assert job is not None
    conductor.ended(job.id, Outcome("the worker process died"))
    assert "20 to run" in lines[0]
    assert "retry" in lines[1]
    assert job.label in lines[1]
    view.event(Event("start", job))
    assert len(lines) == 2


def test_the_machine_works_while_a_test_runs() -> None:
    before = machine_busy_s()
    sum(range(10**7))
    assert machine_busy_s() > before > 0
