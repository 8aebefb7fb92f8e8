"""Whole sweeps of digits over the ways to make, choose and label a set: each option from its YAML line to its row."""

from pathlib import Path
from typing import Any

import pytest

import ddgd_ray
from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.report.build import write_report
from ddgd_ray.report.verify import verify_run
from ddgd_ray.run.folder import open_store
from tests.published import published

ONE_SEED: dict[str, Any] = {"seeds.distill": (0,), "controls": ()}


def swept(tiny: Any, folder: Path, **overrides: Any) -> Result:
    """A sweep of one seed that varies nothing but what is given."""
    return run_sweep(tiny(ONE_SEED | overrides), folder, run_in_process)


def table(result: Result) -> str:
    path = result.folder.path
    write_report(path, open_store(path.parent))
    return (path / "report" / "table.md").read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all sweeps here: they share their backbone."""
    return tmp_path_factory.mktemp("ways")


def test_guides_and_starts_are_arms_of_a_table(tiny: Any, runs: Path) -> None:
    guides = swept(tiny, runs, name="guides", vary={"sample.guide": ("none", "mode", "manifold", "features", "transport")})
    assert guides.exit_code == 0
    assert all(f"| {arm} |" in table(guides) for arm in ("none", "mode", "manifold", "features", "transport"))
    path = guides.folder.path
    assert not verify_run(path, open_store(runs), path / "report").problems
    starts = swept(
        tiny,
        runs,
        name="starts",
        vary={"sample.start": ("noise", "prototype", "inversion")},
        set=dict(tiny().spec.set) | {"sample.sampler": "ddim", "sample.guide": "mode"},
    )
    assert starts.exit_code == 0
    stages = [name.partition("/")[0] for name in published(runs)]
    assert (stages.count("modes"), stages.count("invert")) == (2, 1)  # modes with tangent spaces and without


def test_rules_of_selection_are_arms_of_a_table(tiny: Any, runs: Path, tmp_path: Path) -> None:
    rules = ("none", "random", "herding", "confidence")
    run = swept(tiny, runs, name="rules", vary={"select.rule": rules, "select.of": ("generated", "both")})
    assert run.exit_code == 0
    assert all(f"| {rule}_{of} |" in table(run) for rule in rules for of in ("generated", "both"))
    path = run.folder.path
    assert not verify_run(path, open_store(runs), path / "report").problems
    cards = []
    for arm in ("herding_both", "none_generated"):
        made = ddgd_ray.open_run(path).export("imagefolder", tmp_path / arm, arm=arm)
        cards.append((made / "README.md").read_text())
    assert "picked by herding from a pool of 5 samples and real training images for each image" in cards[0]
    assert "picked by" not in cards[1]


def test_mosaics_of_real_crops_need_no_model(tiny: Any, runs: Path) -> None:
    run = swept(tiny, runs, name="rded", vary={"select.rule": ("rded",)}, **{"select.of": "real", "select.crops": 2})
    assert run.exit_code == 0
    (record,) = [one for one in run.records if not one.trial.is_control]
    assert [call.stage for call in record.trial.build] == ["pick"]
    assert not {"pretrain", "finetune", "sample"} & {call.stage for call in record.trial.calls()}


def test_stored_labels_are_judged_and_weighed(tiny: Any, runs: Path) -> None:
    kinds = ("hard", "teacher", "stored")
    run = swept(tiny, runs, name="labels", vary={"evaluate.protocol.labels": kinds}, controls=("random_real",))
    assert run.exit_code == 0
    text = table(run)
    assert all(f"| {kind} |" in text for kind in kinds)
    assert "## Bytes of sets with stored labels" in text
    assert "| stored | all classes, float16 | 20 |" in text
    weighed = [line for line in text.splitlines() if line.startswith("| stored | all classes")]
    assert "| 0.4 |" in weighed[0]  # 20 images, 10 classes, 2 bytes
    path = run.folder.path
    assert not verify_run(path, open_store(runs), path / "report").problems


def test_recipes_by_published_name_and_their_combinations_are_arms(tiny: Any, runs: Path) -> None:
    names = ("paper", "mgd3", "manifold", "cao2-select", "d3hr", "d4m-like", "rded", "paper+mgd3+cao2-select")
    few = {"sample.start.groups": 2}  # of d3hr: 100,000 as published take minutes
    run = swept(tiny, runs, name="recipes", vary={"recipe": tuple(name for name in names if name != "d3hr")})
    assert run.exit_code == 0
    assert all(f"| {name} |" in table(run) for name in names if name != "d3hr")
    inverted = swept(tiny, runs, name="d3hr", recipe="d3hr", vary={"sample.steps": (2,)}, **few)
    assert inverted.exit_code == 0
