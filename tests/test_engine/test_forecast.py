"""What a plan says a sweep will take."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cli import main
from ddgd_ray.engine.costs import UNSEEN, Rate, cost_of, known_rates, rates_of, read_calibration, work_of, write_calibration
from ddgd_ray.engine.forecast import JOB_S, START_S, forecast
from ddgd_ray.engine.run_folder import open_store
from ddgd_ray.engine.sweep import Result, planned_trials, run_sweep
from ddgd_ray.engine.work import run_in_process
from ddgd_ray.errors import SpecError
from ddgd_ray.spec.sweep_spec import ResourcesSpec


@pytest.fixture(scope="module")
def done(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_sweep(tiny(), tmp_path_factory.mktemp("done"), run_in_process)


def test_what_is_published_costs_nothing_more(done: Result, tiny: Any) -> None:
    store = open_store(done.folder.run_dir)
    total = forecast(planned_trials(tiny()), store, rates_of(store), ResourcesSpec(), cores=2, gpus=0)
    assert total.num_misses == 0
    assert total.wall_s == total.core_s == 0.0


def test_more_seeds_cost_what_the_others_did(done: Result, tiny: Any) -> None:
    store = open_store(done.folder.run_dir)
    rates = rates_of(store)
    total = forecast(planned_trials(tiny({"seeds.distill": (0, 1, 2, 3)})), store, rates, ResourcesSpec(), cores=2, gpus=0)
    lines = {line.stage: line for line in total.stages}
    assert (lines["finetune"].hits, lines["finetune"].misses) == (4, 4)
    assert lines["encode"].misses == 0
    (rate,) = rates["finetune"].values()
    assert lines["finetune"].seconds == pytest.approx(4 * rate.mean * 3 * 20)
    assert lines["finetune"].low_s <= lines["finetune"].seconds <= lines["finetune"].high_s
    assert total.core_s == pytest.approx(sum(line.seconds for line in total.stages))
    assert total.wall_s == pytest.approx(START_S + (total.core_s + JOB_S * total.num_misses) / 2)


def test_gpus_are_counted_by_stage_and_workers(done: Result, tiny: Any) -> None:
    store = open_store(done.folder.run_dir)
    resources = ResourcesSpec.model_validate({"stages": {"finetune": {"gpus": 2, "workers": 4}, "evaluate": {"gpus": 0.25}}})
    total = forecast(planned_trials(tiny({"seeds.distill": (0, 1, 2)})), store, rates_of(store), resources, cores=64, gpus=8)
    seconds = {line.stage: line.seconds for line in total.stages}
    assert total.gpu_s == pytest.approx(8 * seconds["finetune"] + 0.25 * seconds["evaluate"])


def test_a_network_never_seen_is_guessed_within_a_wider_range(done: Result, tiny: Any) -> None:
    store = open_store(done.folder.run_dir)
    rates = rates_of(store)
    trial = planned_trials(tiny({"evaluate.networks": ("resnet_slim",)}))[-1]
    cost = cost_of(trial.evaluators[0].call, rates)
    assert cost is not None
    assert not cost.is_known
    assert cost.high_s >= UNSEEN * cost.seconds
    assert cost_of(trial.evaluators[0].call, {}) is None


def test_work_grows_with_what_a_stage_has_to_do(tiny: Any) -> None:
    def units(overrides: dict[str, Any], stage: str) -> float:
        trial = planned_trials(tiny(overrides))[-1]
        call = next(call for call in trial.calls() if call.stage == stage)
        return work_of(stage, call.spec.canonical(), call.input_keys())[1]

    assert units({"finetune.steps": 30}, "finetune") == 10 * units({}, "finetune")
    assert units({"sample.steps": 4}, "sample") == 2 * units({}, "sample")
    assert units({"evaluate.protocol.steps": 8}, "evaluate") == 2 * units({}, "evaluate")


def test_a_calibration_file_gives_back_what_was_written_and_anything_else_is_refused(tmp_path: Path) -> None:
    rates = {"finetune": {"family": Rate(3, 0.1, 0.2, 0.3, 1000.0)}}
    write_calibration(rates, tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json") == rates
    for text in ("", "[]", '{"schema": 2}', '{"schema": 1, "stages": {"finetune": {"f": {"mean": 1}}}}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(SpecError, match="calibration file"):
            read_calibration(tmp_path / "c.json")


def test_the_stores_own_rates_go_before_a_files(done: Result, tmp_path: Path) -> None:
    store = open_store(done.folder.run_dir)
    ((family, own),) = rates_of(store)["finetune"].items()
    write_calibration({"finetune": {family: Rate(1, 9, 9, 9, 9), "other": Rate(1, 9, 9, 9, 9)}}, tmp_path / "c.json")
    found = known_rates(store, tmp_path / "c.json")["finetune"]
    assert found[family] == own
    assert found["other"].mean == 9


def test_the_command_says_what_is_left_and_whether_the_budget_holds(
    done: Result, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(tiny_file), "--run-dir", str(done.folder.run_dir)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--set", "seeds.distill=[0, 1, 2]", "--set", "budget.core_hours=1e-9"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "core-hours" in said
    assert "not enough" in said
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["wall_s"] == 0.0


@pytest.mark.parametrize("stage", ["sample", "select", "decode"])
def test_gpus_of_any_stage_are_planned_with(
    stage: str, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holds = f"resources.stages={{{stage}: {{gpus: 2}}}}"
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tiny_file), "--run-dir", str(tmp_path), "--set", holds, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == 2
