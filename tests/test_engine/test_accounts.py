"""Budgets: what is spent is counted over all starts, and a spent budget leaves a run that can be continued."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.engine.accounts import FILE, read_spent
from ddgd_ray.engine.sweep import run_sweep
from ddgd_ray.engine.work import run_in_process


def states(result: Any) -> list[str]:
    return [record.state for record in result.records]


def test_a_limit_of_trials_leaves_the_rest_for_a_larger_one(tiny: Any, tmp_path: Path) -> None:
    first = run_sweep(tiny({"budget.trials": 3}), tmp_path, run_in_process)
    assert first.exit_code == 7
    assert states(first) == ["done"] * 5, "two controls and three of four trials"
    second = run_sweep(tiny({"budget.trials": 4}), tmp_path, run_in_process)
    assert second.exit_code == 0
    assert states(second) == ["done"] * 6
    assert second.num_ran == 3, "fine-tuning, sampling and the classifier of one trial"


def test_core_hours_are_added_up_over_starts_and_exceeded_by_what_runs_alone(tiny: Any, tmp_path: Path) -> None:
    budget = {"budget.core_hours": 1e-9}  # spent by the first job
    first = run_sweep(tiny(budget), tmp_path, run_in_process)
    assert (first.exit_code, first.num_ran) == (7, 1)
    again = run_sweep(tiny(budget), tmp_path, run_in_process)
    assert (again.exit_code, again.num_ran) == (7, 0)
    assert run_sweep(tiny(), tmp_path, run_in_process).exit_code == 0, "a budget may be raised or taken away"
    spent = read_spent(tmp_path / "tiny")
    lines = [json.loads(line) for line in (tmp_path / "tiny" / FILE).read_text().splitlines()]
    assert sum("start" in line for line in lines) == 3
    assert spent.num_jobs == len(lines) - 3
    assert spent.core_s == pytest.approx(sum(line.get("seconds", 0.0) for line in lines))


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    whole = json.dumps({"job": "k", "seconds": 2.0, "core_s": 2.0, "gpu_s": 4.0, "ended": 12.0})
    (tmp_path / FILE).write_text(json.dumps({"start": 10.0}) + "\n" + whole + "\n" + whole[:20])
    spent = read_spent(tmp_path)
    assert (spent.core_s, spent.gpu_s, spent.wall_s, spent.num_jobs) == (2.0, 4.0, 2.0, 1)


def test_wall_clock_is_that_of_the_starts_not_of_the_time_between(tmp_path: Path) -> None:
    job = {"job": "k", "seconds": 1.0, "core_s": 1.0, "gpu_s": 0.0}
    lines = [{"start": 0.0}, job | {"ended": 5.0}, {"start": 100.0}, job | {"ended": 103.0}]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_spent(tmp_path).wall_s == 8.0
