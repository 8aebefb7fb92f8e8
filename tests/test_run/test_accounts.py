"""Budgets: what is spent is counted over all starts, and a spent budget leaves a run that can be continued."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.plan.jobs import Job, Outcome, jobs_of
from ddgd_ray.run.accounts import ALIVE, FILE, Accounts, read_spent
from ddgd_ray.spec.budget_spec import BudgetSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec


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
    ended = [line for line in lines if "job" in line]
    assert spent.num_jobs == len(ended)
    assert spent.core_s == pytest.approx(sum(line["seconds"] for line in ended))


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


@pytest.fixture(scope="module")
def job(tiny: Any) -> Job:
    return next(jobs_of(planned_trials(tiny())[-1], ResourcesSpec()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr("ddgd_ray.run.accounts.time.time", lambda: now[0])
    return now


def start(path: Path) -> Accounts:
    return Accounts(path, BudgetSpec(), ResourcesSpec(cpus=2, gpus=1))


def test_a_worker_that_died_held_what_it_held_since_it_was_handed_out(tmp_path: Path, job: Job, clock: list[float]) -> None:
    accounts = start(tmp_path)
    for state in ("retry", "lost", "failed"):
        accounts.began(job)
        clock[0] += 10.0
        accounts.ended(job, Outcome("the worker process died"), state)
    assert (accounts.spent.core_s, accounts.spent.gpu_s) == (60.0, 30.0)
    assert read_spent(tmp_path) == accounts.spent
    accounts.began(job)
    clock[0] += 10.0
    accounts.ended(job, Outcome("no such image", seconds=3.0), "failed")
    assert accounts.spent.gpu_s == 33.0, "what a job says itself stands"


def test_what_waits_for_room_spends_nothing(tmp_path: Path, job: Job, clock: list[float]) -> None:
    accounts = start(tmp_path)
    accounts.began(job)
    clock[0] += 5 * 3600.0
    accounts.ended(job, Outcome("it had not started", is_lost=True, has_held=False), "lost")
    assert (accounts.spent.core_s, accounts.spent.gpu_s) == (0.0, 0.0)
    assert read_spent(tmp_path).gpu_s == 0.0


def test_what_ran_when_the_driver_was_killed_is_booked_by_the_next_start(tmp_path: Path, job: Job, clock: list[float]) -> None:
    start(tmp_path).began(job)
    (tmp_path / ALIVE).write_text("1040.0")
    clock[0] = 5000.0
    under_way = read_spent(tmp_path)
    assert (under_way.core_s, under_way.gpu_s, under_way.wall_s, under_way.num_jobs) == (80.0, 40.0, 40.0, 0)
    spent = start(tmp_path).spent
    assert (spent.core_s, spent.gpu_s, spent.wall_s, spent.num_jobs) == (80.0, 40.0, 40.0, 1)
    (tmp_path / ALIVE).write_text("5003.0")
    clock[0] = 6000.0
    assert start(tmp_path).spent.wall_s == 43.0, "this one did nothing for three seconds"
    assert start(tmp_path).spent.wall_s == 43.0
    assert start(tmp_path).spent.gpu_s == 40.0, "once"


def test_the_line_of_a_start_survives_one_that_was_cut_before_it(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / FILE).write_text('{"job": "k", "sec')
    start(tmp_path)
    assert json.loads((tmp_path / FILE).read_text().splitlines()[-1]) == {"start": 1000.0}


def test_a_driver_leaves_signs_of_life_until_it_ends(tmp_path: Path) -> None:
    with start(tmp_path).alive(every_s=0.01):
        before = time.time()
        while read_spent(tmp_path).wall_s == 0.0 or float((tmp_path / ALIVE).read_text() or 0) < before:
            assert time.time() < before + 30
    last = (tmp_path / ALIVE).read_text()
    time.sleep(0.05)
    assert (tmp_path / ALIVE).read_text() == last


def test_a_budget_notices_a_driver_that_was_killed(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({"budget.core_hours": 0.15 / 3600})

    def execute(conductor: Any, store: Any, resources: Any) -> None:
        with conductor.accounts.alive(every_s=0.02):
            conductor.next()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        run_sweep(sweep, tmp_path, execute)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    again = run_sweep(sweep, tmp_path, run_in_process)
    assert (again.exit_code, again.num_ran) == (7, 0)
