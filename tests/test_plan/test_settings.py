"""Every setting of a sweep with its source, and the reference of all fields."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cli import main
from ddgd_ray.plan.settings import Resolved, leaves, of_preset, resolved
from ddgd_ray.spec.load import parse
from ddgd_ray.spec.reference import SECTIONS, field_reference
from ddgd_ray.spec.sweep import Sweep, check_sweep
from ddgd_ray.spec.sweep_spec import SweepSpec

ROOT = Path(__file__).parent.parent.parent
FILE = """\
name: a
preset: digits
recipe: paper
set: {finetune.steps: 7}
vary: {finetune.lambda_g: [0.0, 0.008]}
evaluate: {networks: [convnet3_slim], ipc: [2], protocol: {name: quick-digits, steps: 9}, tests: last}
seeds: {distill: [0, 4]}
"""


def read(text: str = FILE, overrides: dict[str, Any] | None = None) -> Sweep:
    return check_sweep(parse(text, "a.yaml"), Path(), overrides or {})


def settings(sweep: Sweep) -> dict[str, Resolved]:
    return {one.path: one for one in resolved(sweep)}


@pytest.mark.parametrize(
    ("path", "value", "source", "where"),
    [
        ("finetune.adapter", "difffit", "default", ""),
        ("finetune.batch_size", 32, "preset", "digits.yaml:"),
        ("finetune.memory_gen.size", 32, "preset", "digits.yaml:"),
        ("finetune.class_aggregation", "mean", "recipe", "paper.yaml:"),
        ("finetune.steps", 7, "file", "a.yaml:4"),
        ("finetune.lambda_g", (0.0, 0.008), "varied", "a.yaml:5"),
        ("finetune.learning_rate", 0.5, "--set", "--set"),
        ("finetune.seed", "by seeds.distill", "sweep", ""),
        ("evaluate.protocol.name", "quick-digits", "file", "a.yaml:6"),
        ("evaluate.protocol.steps", 9, "file", "a.yaml:6"),
        ("evaluate.protocol.shift", 1, "protocol", "quick-digits"),
        ("evaluate.protocol.jitter", 0.0, "default", ""),
        ("seeds.distill", (0, 4), "file", "a.yaml:7"),
        ("seeds.evaluate", (0, 1), "default", ""),
        ("resources.cpus", 2.0, "--set", "--set"),
    ],
)
def test_a_setting_knows_its_value_and_its_source(path: str, value: Any, source: str, where: str) -> None:
    one = settings(read(overrides={"finetune.learning_rate": 0.5, "resources.cpus": 2.0}))[path]
    assert (one.value, one.source) == (value, source)
    assert where in one.where


def test_no_field_of_a_preset_or_a_sweep_is_left_out() -> None:
    sweep = read()
    shown = settings(sweep)
    for section in ("images", "finetune", "sample", "reference"):
        values = getattr(sweep.preset_with({}), section)
        assert {path for path, _ in leaves(values, section) if ".images." not in path} <= set(shown)
    own = {path for path, _ in leaves(sweep.spec, "")}
    assert {path for path in own if path.partition(".")[0] not in ("set", "vary", "preset", "recipe", "sets")} <= set(shown)


def test_a_varied_recipe_is_shown() -> None:
    text = FILE.replace("recipe: paper\n", "").replace("finetune.lambda_g: [0.0, 0.008]", "recipe: [paper, minimax]")
    assert settings(read(text))["recipe"].value == ("paper", "minimax")


def test_a_classifiers_fields_may_stand_beside_the_networks() -> None:
    sweep = read()
    evaluate = sweep.preset_with({}).evaluate
    assert (evaluate.protocol.steps, evaluate.tests) == (9, "last")
    short = read(FILE.replace("protocol: {name: quick-digits, steps: 9}", "protocol: quick-small"))
    assert short.preset_with({}).evaluate.protocol.label == "quick-small"
    same = FILE.replace(", protocol: {name: quick-digits, steps: 9}, tests: last", "").replace(
        "{finetune.steps: 7}",
        "{finetune.steps: 7, evaluate.protocol.name: quick-digits, evaluate.protocol.steps: 9, evaluate.tests: last}",
    )
    assert read(same).preset_with({}) == sweep.preset_with({}), "one meaning, wherever it is written"


def test_a_classifiers_field_given_twice_is_refused() -> None:
    text = FILE.replace("{finetune.steps: 7}", "{finetune.steps: 7, evaluate.tests: all}")
    with pytest.raises(Exception, match=r"key-twice.*a.yaml:6 evaluate.tests.*given here and in set"):
        read(text)


@pytest.mark.parametrize("name", ["network", "seed"])
def test_what_the_sweep_sets_itself_is_still_refused(name: str) -> None:
    with pytest.raises(Exception, match=f"unknown key '{name}'"):
        read(FILE.replace("tests: last", f"{name}: 1"))


def test_a_preset_by_itself_has_the_same_fields(tiny: Callable[..., Sweep]) -> None:
    assert {path for path, _ in of_preset("digits").items()} <= set(settings(tiny()))
    assert of_preset("imagefolder") == {}, "its classes are only known to whoever has the folder"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_show_prints_values_with_their_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(FILE)
    lines = {line.split()[0]: line for line in run(capsys, "show", str(tmp_path / "a.yaml")).splitlines()[1:]}
    assert lines["finetune.steps"].split() == ["finetune.steps", "7", "file", "a.yaml:4"]
    assert lines["evaluate.protocol.shift"].endswith("protocol quick-digits")
    changed = run(capsys, "show", str(tmp_path / "a.yaml"), "--changed")
    assert " default" not in changed
    assert "finetune.steps" in changed


def test_show_diff_holds_what_differs_from_a_preset_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(FILE)
    found = json.loads(run(capsys, "show", str(tmp_path / "a.yaml"), "--diff", "digits", "--json"))
    changed = {one["path"]: (one["value"], one["other"]) for one in found["settings"]}
    assert changed["finetune.steps"] == (7, 100)
    of_protocol = {"evaluate.protocol.steps", "evaluate.protocol.label"}
    assert set(changed) == {"finetune.steps", "finetune.lambda_g", "evaluate.tests"} | of_protocol


def test_plan_json_holds_settings_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(FILE)
    found = json.loads(run(capsys, "plan", str(tmp_path / "a.yaml"), "--json", "--run-dir", str(tmp_path)))
    assert found["settings"]["finetune.steps"] == {"value": 7, "source": "file"}
    trial = next(one for one in found["keys"] if one["trial"] == "0.008-s4")
    assert trial["params"] == {"finetune.lambda_g": 0.008}
    stages = [call["stage"] for call in trial["calls"]]
    assert stages.index("pretrain") < stages.index("finetune") < stages.index("sample") < stages.index("evaluate")
    assert all(len(call["key"]) == 64 and call["is_published"] is False for call in trial["calls"])


def test_the_reference_of_fields_is_that_of_the_specs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "show", "--fields")
    assert shown == field_reference()
    assert shown == (ROOT / "docs" / "fields.md").read_text(), "make it anew: ddgd-ray show --fields > docs/fields.md"


def test_the_reference_names_every_field() -> None:
    text = field_reference()
    for section, _, spec in SECTIONS:
        names = set(spec.model_fields) - ({"images"} if section != "images" else set())
        for name in names - {"protocol"}:
            assert f"`{section}.{name}" in text
    for name in SweepSpec.model_fields:
        assert f"`{name}" in text
