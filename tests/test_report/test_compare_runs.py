"""Two sweeps: compared on shared seeds under one protocol and one set of real images, and in no other way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray import cli
from ddgd_ray.report.compare_runs import compare_runs
from ddgd_ray.report.render import markdown
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.run.results import Row
from tests import run_parts

pytestmark = pytest.mark.timeout(400)  # a whole sweep comes first

Rows = Callable[..., Row]


@pytest.fixture
def judged(store: Any) -> Callable[..., None]:
    """judged(run, real): give every row's evaluator the images `real` to be tested on."""

    def write(run: Run, real: str = "real-1") -> Run:
        for row in run.rows:
            spec = {"protocol": {"name": row.protocol}}
            run_parts.publish(store, "evaluate", row.key, dict(row.metrics), inputs={"real": real}, spec=spec)
        return run

    return write


def rows_of_seeds(row: Rows, arm: str, seeds: range, gain: float = 0.0, **more: Any) -> list[Row]:
    key = f"{arm}-{gain}-{more.get('protocol')}-{list(more.get('params', ()))}"
    return [row(arm, seed, key=f"{key}-{seed}", top1_last=0.5 + 0.01 * seed + gain, **more) for seed in seeds]


def test_differences_are_paired_over_the_seeds_that_both_have(row: Rows, run_of: Callable[..., Run], judged: Any) -> None:
    ours, theirs = rows_of_seeds(row, "a", range(3)), rows_of_seeds(row, "a", range(1, 5), gain=0.02)
    (table,) = compare_runs(judged(run_of(ours)), judged(run_of(theirs))).tables
    assert "| a | 0.510 ± 0.010 (n=3) | 0.545 ± 0.013 (n=4) | +0.0200 ± 0.0000 | - | 2 | - | - |" in markdown(table)


def test_arms_of_one_run_alone_stand_there_without_a_difference(row: Rows, run_of: Callable[..., Run], judged: Any) -> None:
    ours, theirs = rows_of_seeds(row, "a", range(2)), rows_of_seeds(row, "b", range(2))
    lines = markdown(compare_runs(judged(run_of(ours)), judged(run_of(theirs))).tables[0]).splitlines()
    assert [line for line in lines if line.startswith("| a |")] == ["| a | 0.505 ± 0.007 (n=2) | - | - | - | - | - | - |"]
    assert [line for line in lines if line.startswith("| b |")] == ["| b | - | 0.505 ± 0.007 (n=2) | - | - | - | - | - |"]


def test_two_protocols_are_never_compared(row: Rows, run_of: Callable[..., Run], judged: Any) -> None:
    ours, theirs = rows_of_seeds(row, "a", range(2), protocol="idc"), rows_of_seeds(row, "a", range(2), protocol="rded")
    compared = compare_runs(judged(run_of(ours)), judged(run_of(theirs)))
    assert compared.tables == []
    assert "idc in A alone, rded in B alone" in " ".join(compared.notes)


def test_other_real_images_are_never_compared(row: Rows, run_of: Callable[..., Run], judged: Any) -> None:
    ours, theirs = rows_of_seeds(row, "a", range(2)), rows_of_seeds(row, "a", range(2), gain=0.1)
    compared = compare_runs(judged(run_of(ours)), judged(run_of(theirs), real="real-2"))
    assert compared.tables == []
    assert "judged on different real images" in " ".join(compared.notes)


def test_one_name_for_two_values_is_no_pair(row: Rows, run_of: Callable[..., Run], judged: Any) -> None:
    ours = rows_of_seeds(row, "0.008", range(2), params={"finetune.lambda_r": 0.008})
    theirs = rows_of_seeds(row, "0.008", range(2), params={"finetune.lambda_g": 0.008})
    compared = compare_runs(judged(run_of(ours)), judged(run_of(theirs)))
    assert "| 0.008 | 0.505 ± 0.007 (n=2) | 0.505 ± 0.007 (n=2) | - |" in markdown(compared.tables[0])
    assert "Same name, other values: 0.008; these arms are not compared." in compared.notes


def test_shared_artifacts_are_called_so(row: Rows, run_of: Callable[..., Run], judged: Any) -> None:
    run = judged(run_of(rows_of_seeds(row, "plain", range(2))))
    assert "The same artifacts in both runs, so no difference: plain." in compare_runs(run, run).notes


def test_settings_that_differ_are_listed_and_no_others(finished: Path) -> None:
    store = open_store(finished.parent)
    run = read_run(finished, store)
    settings = {**run.sweep.settings, "finetune": {**run.sweep.settings["finetune"], "steps": 7}}
    sweep = run.sweep.model_copy(update={"identity": {**run.sweep.identity, "settings": settings}})
    table = compare_runs(run, replace(run, sweep=sweep)).settings
    assert [(name, [cell.text for cell in cells]) for name, cells in table.rows] == [("finetune.steps", ["3", "7"])]
    fewer = run.sweep.spec.model_copy(update={"quality": ()})
    table = compare_runs(run, replace(run, sweep=run.sweep.model_copy(update={"spec": fewer}))).settings
    assert [name for name, _ in table.rows] == ["sweep.quality"]
    assert compare_runs(run, run).settings.note == "No setting differs."


def test_the_command_writes_markdown_and_a_page(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", str(finished), str(finished), "--html", str(tmp_path / "both.html")])
    assert caught.value.code == 0
    assert "The same artifacts in both runs" in capsys.readouterr().out
    text = (tmp_path / "both.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert "B less A" in text


def test_a_folder_that_is_no_run_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", str(finished), str(tmp_path)])
    assert caught.value.code == 6
    assert "this is no run folder" in capsys.readouterr().err


def test_two_runs_of_one_name_do_not_go_to_one_folder(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(finished), str(finished), "--to", str(tmp_path)])
    assert caught.value.code == 2
    assert "two of these runs have one name" in capsys.readouterr().err
