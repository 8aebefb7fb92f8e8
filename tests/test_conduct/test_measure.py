"""Rates of this machine, measured by a few steps of each missing stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cli import main
from ddgd_ray.conduct.measure import Measured, measured_rates, rates_from, shortened
from ddgd_ray.conduct.sweep import planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.inputs.counts import counts_of
from ddgd_ray.plan.costs import cost_of, kind_of, of_this_machine, rates_of
from ddgd_ray.run.folder import open_store


def calls_of(sweep: Any) -> list[Any]:
    return list({call.ref: call for trial in planned_trials(sweep) for call in trial.calls()}.values())


@pytest.fixture(scope="module")
def measured(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A tiny sweep, its empty store, and what was measured for it."""
    sweep = tiny({"backbone.steps": 40, "finetune.steps": 30, "evaluate.protocol.steps": 40})
    store = open_store(tmp_path_factory.mktemp("empty"))
    return sweep, store, measured_rates(sweep, store, {})


def test_every_stage_of_an_empty_store_gets_a_rate_of_its_own_family(measured: tuple[Any, Any, Any]) -> None:
    sweep, _, rates = measured
    for call in calls_of(sweep):
        cost = cost_of(call, rates)
        assert cost is not None, call.stage
        assert cost.is_known, call.stage
        assert 0 <= cost.low_s <= cost.seconds <= cost.high_s


def test_measuring_leaves_nothing_in_the_store(measured: tuple[Any, Any, Any]) -> None:
    _, store, _ = measured
    assert not store.root.exists()


def test_what_was_measured_is_what_it_takes_within_a_factor(measured: tuple[Any, Any, Any], tmp_path: Path) -> None:
    sweep, _, rates = measured
    run_sweep(sweep, tmp_path, run_in_process)  # the imports are done: this process has measured
    store = open_store(tmp_path)
    for stage in ("pretrain", "finetune", "evaluate"):
        calls = [call for call in calls_of(sweep) if call.stage == stage]
        took = sum(store.get(*call.ref).seconds for call in calls)  # type: ignore[union-attr]
        said = sum(cost_of(call, rates).seconds for call in calls)  # type: ignore[union-attr]
        assert said / 4 < took < said * 4 + 0.5, stage  # other programs on the machine do the rest


def test_what_the_store_knows_is_not_measured_again(measured: tuple[Any, Any, Any], tmp_path: Path) -> None:
    sweep, _, rates = measured
    told: list[str] = []
    assert measured_rates(sweep, open_store(tmp_path), rates, told.append) == {}
    assert told == []


def test_longer_calls_of_a_kind_cost_more_in_proportion(measured: tuple[Any, Any, Any], tiny: Any) -> None:
    sweep, _, _ = measured
    (short,) = {call.key: call for call in calls_of(sweep) if call.stage == "pretrain"}.values()
    (long,) = {call.key: call for call in calls_of(tiny({"backbone.steps": 4000})) if call.stage == "pretrain"}.values()
    assert kind_of(short) == kind_of(long)
    rates = rates_from([long], {kind_of(long): Measured(fixed_s=2.0, unit_s=0.001, size_bytes=10.0)})
    assert cost_of(long, rates).seconds == pytest.approx(2.0 + 0.001 * 4000 * 64)  # type: ignore[union-attr]


def test_a_shortened_stage_differs_in_its_length_alone(tiny: Any) -> None:
    for call in calls_of(tiny({"evaluate.ipc": (40,)})):
        short = shortened(call.spec, 2)
        changed = {name for name in type(short).model_fields if getattr(short, name) != getattr(call.spec, name)}
        assert changed <= {"steps", "ipc", "protocol"}


def test_images_are_counted_without_reading_them(tiny: Any) -> None:
    images = tiny().preset_with({}).images
    counts = counts_of(images)
    assert (counts.train, counts.judged) == (10 * (140 - 20), 10 * (40 + 20))


def test_plan_measures_on_request_and_remembers_it_for_this_machine(
    tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    command = ["plan", str(tiny_file), "--run-dir", str(tmp_path / "runs"), "--json"]

    def unknown(*more: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 0
        return sum(stage["unknown"] for stage in json.loads(capsys.readouterr().out)["stages"])

    assert unknown() > 0, "nothing is known of a machine that has measured nothing"
    assert unknown("--measure") == 0
    assert unknown() == 0
    assert of_this_machine()["finetune"]


def test_the_packages_own_checkpoints_tell_nothing_about_this_machine(tmp_path: Path) -> None:
    assert rates_of(open_store(tmp_path)) == {}
