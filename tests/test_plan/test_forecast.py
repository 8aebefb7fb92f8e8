"""What a plan says a sweep will take."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cli import main
from ddgd_ray.conduct.sweep import Result, planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.errors import SpecError
from ddgd_ray.plan.costs import UNSEEN, Rate, cost_of, known_rates, rates_of, read_calibration, work_of, write_calibration
from ddgd_ray.plan.forecast import JOB_S, START_S, forecast
from ddgd_ray.run.folder import open_store
from ddgd_ray.search.forecast import tried
from ddgd_ray.spec.sweep import read_sweep
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from tests.run_parts import trial


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


def planned(search: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], **settings: Any) -> dict[str, Any]:
    cores = settings.pop("cores", 2)
    given = [f"--set={name.replace('__', '.')}={value}" for name, value in settings.items()]
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(search), "--run-dir", str(run_dir), "--cores", str(cores), "--json", *given])
    assert ended.value.code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def search(tiny_file: Path, tmp_path: Path) -> Path:
    """The tiny sweep as a search whose first point is that of the preset's values, and an arm of the tiny grid."""
    (tmp_path / "space.yaml").write_text(
        "finetune.memory_real.pop: {type: choice, values: [max_similarity, min_similarity, fifo, random]}\n"
        "finetune.memory_real.size: {type: int, low: 8, high: 64}\n"
    )
    text = tiny_file.read_text().replace("name: tiny", "name: searched")
    grid = text[text.index("vary:") : text.index("seeds:")]
    asked = "search:\n  space: space.yaml\n  trials: 20\n  algorithm: random\n"
    asked += "  first: [{finetune.memory_real.pop: max_similarity, finetune.memory_real.size: 32}]\n"
    file = tmp_path / "search.yaml"
    file.write_text(text.replace(grid, asked) + "objective: {metric: top1_last}\n")
    return file


def test_a_search_costs_its_configurations_whatever_is_published(
    done: Result, search: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(search, done.folder.run_dir, capsys)
    asked = found["search"]
    assert found["core_s"] == 0.0, "controls and what all share are published"
    assert (asked["configurations"], asked["left"]) == (20, 19), "the first point is published"
    assert asked["core_s"] > 0.0
    assert asked["total"]["core_s"] == pytest.approx(19 * asked["core_s"])


def test_a_first_point_of_the_ledger_is_tried_once(done: Result, search: Path) -> None:
    sweep, store = read_sweep(search, {}), open_store(done.folder.run_dir)
    assert sweep.spec.search is not None
    first = trial("trial0000", params=dict(sweep.spec.search.first[0]))
    other = trial("trial0001", params={"finetune.memory_real.pop": "fifo", "finetune.memory_real.size": 8})
    assert len(tried(sweep, [], store)) == 1
    assert len(tried(sweep, [first], store)) == 1
    missing = other.model_copy(update={"state": "planned"})
    assert len(tried(sweep, [first, other, missing], store)) == 1, "one of its seeds is missing"


def test_a_search_is_no_larger_than_its_space(done: Result, search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (search.parent / "space.yaml").write_text("finetune.memory_gen.pop: {type: choice, values: [fifo, random, kcenter]}\n")
    asked = planned(search, done.folder.run_dir, capsys, search__first="[]")["search"]
    assert (asked["configurations"], asked["left"]) == (3, 3)


def test_cores_beyond_what_runs_at_once_make_a_search_no_faster(
    done: Result, search: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    walls = [planned(search, done.folder.run_dir, capsys, cores=n)["search"]["total"]["wall_s"] for n in (1, 64, 1000)]
    asked = planned(search, done.folder.run_dir, capsys, search__parallel=20, cores=1000)["search"]
    assert walls[0] > walls[1] == walls[2]
    assert walls[2] - START_S == pytest.approx(10 * (asked["total"]["wall_s"] - START_S)), "19 in twos, or at once"


def test_gpus_are_as_scarce_for_a_search(done: Result, search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holds = "{finetune: {gpus: 1}, sample: {gpus: 1}, evaluate: {gpus: 1}}"
    asked = planned(search, done.folder.run_dir, capsys, cores=1000, resources__stages=holds, search__parallel=20)["search"]
    assert asked["total"]["gpu_s"] == pytest.approx(19 * asked["gpu_s"])
    assert asked["total"]["wall_s"] > START_S + asked["total"]["gpu_s"]


def test_of_rungs_the_dearer_one_is_for_the_best(done: Result, search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rungs = "{settings: [{seeds.distill: [0]}, {}], eta: 4}"
    full = planned(search, done.folder.run_dir, capsys, search__parallel=4)["search"]
    halved = planned(search, done.folder.run_dir, capsys, search__parallel=4, rungs=rungs)["search"]
    assert halved["core_s"] == pytest.approx(full["core_s"] * (0.5 + 0.5 / 4))


def test_the_budget_of_a_search_is_held_against_all_of_it(
    done: Result, search: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for hours, verdict in ((1e-6, "not enough"), (1e3, "enough")):
        with pytest.raises(SystemExit):
            main(["plan", str(search), "--run-dir", str(done.folder.run_dir), "--set", f"budget.core_hours={hours}"])
        said = capsys.readouterr().out
        assert f"needed, {verdict}" in said
        assert "with 19 configurations to come" in said
