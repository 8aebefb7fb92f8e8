"""Sweep files: overrides, what varies, and whether every mistake is told with its line."""

import re
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.method import classifiers
from ddgd_ray.plan.plan import arm_name, plan_controls
from ddgd_ray.spec.stages import NETWORKS
from ddgd_ray.spec.sweep import MAX_GRID, Sweep, read_sweep

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "ablations").glob("*.yaml"))
BASE = "name: a\nvary:\n  finetune.lambda_g: [0.0, 0.008]\n"


def sweep(folder: Path, text: str, overrides: dict[str, Any] | None = None, preset: str | None = None) -> Sweep:
    path = folder / "a.yaml"
    path.write_text(text)
    return read_sweep(path, overrides or {}, preset)


def refusal(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        sweep(folder, text, overrides)
    return [str(error).replace(f"{folder}/", "") for error in caught.value.errors]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("preset", [None, "imagewoof"])
def test_a_shipped_ablation_is_valid_and_named_as_its_file(path: Path, preset: str | None) -> None:
    assert read_sweep(path, {}, preset).spec.name == path.stem


def test_ablations_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"memory", "lambda_g", "lambda_r", "size", "recipes"}


def test_a_file_overrides_its_preset_and_the_command_line_both(tmp_path: Path) -> None:
    text = BASE + "set:\n  finetune.steps: 7\n  sample.steps: 8\n"
    preset = sweep(tmp_path, text, {"sample.steps": 9, "evaluate.protocol.steps": 10}).preset_with({"finetune.lambda_g": 1.5})
    assert (preset.finetune.steps, preset.sample.steps, preset.evaluate.protocol.steps) == (7, 9, 10)
    assert preset.finetune.lambda_g == 1.5
    assert preset.finetune.memory_real.size == 64


def test_the_command_line_overrides_fields_of_the_sweep(tmp_path: Path) -> None:
    changes = {"name": "b", "seeds.distill": (5,), "evaluate.networks": ("convnet3",), "vary.finetune.lambda_g": (0.5,)}
    spec = sweep(tmp_path, BASE, changes).spec
    assert (spec.name, spec.seeds.distill, spec.evaluate.networks) == ("b", (5,), ("convnet3",))
    assert spec.vary == {"finetune.lambda_g": (0.5,)}


def test_another_preset_is_one_argument(tmp_path: Path) -> None:
    assert sweep(tmp_path, BASE, preset="imagewoof").preset_with({}).images.labels == "imagenet"


def test_an_override_deep_in_a_section_leaves_its_neighbours(tmp_path: Path) -> None:
    preset = sweep(tmp_path, BASE, {"finetune.memory_real.pop": "fifo"}, "digits").preset_with({})
    assert (preset.finetune.memory_real.pop, preset.finetune.memory_real.size) == ("fifo", 32)


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("name: a\nvary: {finetune.lambda_g: [0, 0.0]}\n", "spec]: a.yaml:2 vary", "lists a value twice"),
        (BASE + "controls: [plain, plain]\n", "spec]: a.yaml:4 controls", "a control is listed twice"),
        (BASE + "evalute: {}\n", "unknown-key]: a.yaml:4 evalute", "did you mean evaluate?"),
        (BASE + "seeds:\n  distil: [0]\n", "unknown-key]: a.yaml:5 seeds.distil", "did you mean distill?"),
        (BASE + "preset: imagewof\n", "unknown-preset]: a.yaml:4 preset", "did you mean imagewoof?"),
        (BASE + "objective: {metric: top1}\n", "spec]: a.yaml:4 objective.metric", "known: val_top1, top1_last"),
        (BASE + "objective: {direction: up}\n", "out-of-range]: a.yaml:4 objective.direction", "'maximize' or 'minimize'"),
        (BASE + "controls: random_real\n", "wrong-type]: a.yaml:4 controls", "put the value in brackets"),
        (BASE + "controls: [random]\n", "out-of-range]: a.yaml:4 controls.0", "did you mean random_real?"),
        (BASE + "seeds: {distill: 3}\n", "wrong-type]: a.yaml:4 seeds.distill", "expected a list, got integer 3"),
        (BASE + "seeds: {distill: []}\n", "out-of-range]: a.yaml:4 seeds.distill", "expected a list of at least 1"),
        (BASE + "seeds: {distill: [0.5]}\n", "wrong-type]: a.yaml:4 seeds.distill.0", "expected an integer, got number 0.5"),
        (BASE + "seeds: {distill: [0, 0]}\n", "spec]: a.yaml:4 seeds.distill", "a seed is listed twice"),
        (BASE + "seeds: {distill: [-1]}\n", "spec]: a.yaml:4 seeds.distill", "a seed must lie in 0 .. 2^31 - 1"),
        (BASE + "evaluate: {ipc: [0]}\n", "spec]: a.yaml:4 evaluate.ipc", "each ipc must be 1 or more"),
        (
            BASE + "evaluate: {networks: [convnet3_slm]}\n",
            "spec]: a.yaml:4 evaluate.networks",
            "did you mean convnet3_slim?",
        ),
        (BASE + "resources: {cpus: 0}\n", "out-of-range]: a.yaml:4 resources.cpus", "expected a number > 0, got integer 0"),
        (BASE.replace("name: a", "name: ../a"), "out-of-range]: a.yaml:1 name", "got text '../a'"),
        (BASE.replace("name: a", "name: 5"), "wrong-type]: a.yaml:1 name", "expected text, got integer 5"),
        ("name: a\n", "spec]: a.yaml:1", "give one of `vary` (a grid), `parts` (of a method), `search`"),
        ("name: a\nvary: {finetune.steps: []}\n", "spec]: a.yaml:2 vary", "finetune.steps lists no value"),
        ("name: a\nvary: {finetune.steps: [1, 1]}\n", "spec]: a.yaml:2 vary", "finetune.steps lists a value twice"),
        ("name: a\nvary: {finetune.steps: 3}\n", "wrong-type]: a.yaml:2 vary.finetune.steps", "put the value in brackets"),
        ("name: a\nvary: [finetune.steps]\n", "wrong-type]: a.yaml:2 vary", "expected a mapping, got list"),
        (BASE + "set: {finetune.lambda_r: .nan}\n", "wrong-type]: a.yaml:4 set.finetune.lambda_r", "got number nan"),
        (BASE + "set: {finetune.lambda_r: -.inf}\n", "wrong-type]: a.yaml:4 set.finetune.lambda_r", "got number -inf"),
        (BASE + "set: {finetune.lambda_r: 1e999}\n", "wrong-type]: a.yaml:4 set.finetune.lambda_r", "got number inf"),
        (BASE + "set: {finetune.lambda_r: -1}\n", "out-of-range]: a.yaml:4 finetune.lambda_r", "expected a number >= 0"),
        (BASE + "set: {finetune.steps: null}\n", "wrong-type]: a.yaml:4 set.finetune.steps", "got nothing None"),
        (
            BASE + "set: {finetune.memory_real: {size: 3}}\n",
            "wrong-type]: a.yaml:4 set.finetune.memory_real",
            "e.g. finetune.memory_real.size: VALUE",
        ),
        (BASE + "set: {finetune.seed: 3}\n", "unknown-key]: a.yaml:4 finetune.seed", "use seeds.distill in its place"),
        (BASE + "set: {sample.ipc: 3}\n", "unknown-key]: a.yaml:4 sample.ipc", "use evaluate.ipc in its place"),
        (BASE + "set: {images.classes: [a, a]}\n", "spec]: a.yaml:4 images.classes", "a class is listed twice"),
        (BASE + "set: {autoencoder.widths: [a]}\n", "wrong-type]: a.yaml:4 autoencoder.widths.0", "expected an integer"),
    ],
)
def test_a_mistake_is_told_once_with_file_line_and_field(text: str, start: str, words: str, tmp_path: Path) -> None:
    (message,) = refusal(tmp_path, text)
    assert message.startswith(f"error[{start}: ")
    assert words in message


@pytest.mark.parametrize(
    ("overrides", "start", "words"),
    [
        ({"finetune.stps": 3}, "unknown-key]: --set finetune.stps", "did you mean steps?"),
        ({"finetune.steps": "many"}, "wrong-type]: --set finetune.steps", "expected an integer, got text 'many'"),
        ({"finetun.steps": 3}, "unknown-key]: --set", "did you mean finetune.steps?"),
        ({"steps": 3}, "unknown-key]: --set", "steps is not a field of a preset"),
        ({"seeds.distil": (0,)}, "unknown-key]: --set seeds.distil", "did you mean distill?"),
        ({"seeds.distill.x": 3}, "wrong-type]: --set seeds.distill", "expected a list, got mapping"),
        ({"evaluate.networks": "convnet3"}, "wrong-type]: --set evaluate.networks", "put the value in brackets"),
        ({"evaluate.protocol.steps": 0}, "spec]: --set evaluate.protocol.steps", "is left with neither epochs nor steps"),
        ({"evaluate.protocol.steps": -1}, "out-of-range]: --set evaluate.protocol.steps", "expected a number >= 0"),
        ({"evaluate.protocol": "icd"}, "spec]: --set evaluate.protocol", "did you mean idc?"),
        ({"evaluate.also": ("rdde",)}, "spec]: --set evaluate.also", "did you mean rded?"),
        ({"test": "finalists", "objective.metric": "top1_last"}, "spec]: a.yaml:1", "set objective.metric: val_top1"),
        ({"sets": {"random_real": "x"}}, "spec]: --set sets", "no name of a control"),
        ({"evaluate.seed": 0}, "unknown-key]: --set evaluate.seed", "use seeds.evaluate in its place"),
        ({"finetune.steps.x": 3}, "wrong-type]: --set finetune.steps", "expected an integer, got mapping"),
    ],
)
def test_a_wrong_override_is_told_as_such(overrides: dict[str, Any], start: str, words: str, tmp_path: Path) -> None:
    (message,) = refusal(tmp_path, BASE, overrides)
    assert message.startswith(f"error[{start}: ")
    assert words in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("finetune.memory_real.pop: [fifo, max_similarty]", "did you mean max_similarity?"),
        ("finetune.memory_real.size: [32, 64.5]", "expected an integer, got number 64.5"),
        ('finetune.memory_real.size: [32, "64"]', "remove the quotes"),
        ("finetune.memory_real.size: [32, yes]", "expected an integer, got text 'yes'"),
        ("finetune.lambda_r: [0.1, -0.1]", "expected a number >= 0, got number -0.1"),
        ("finetune.lambda_r: [0.1, .INF]", "finite"),
        (f"finetune.lambda_r: [0.1, {'9' * 5000}]", "finite"),
        ("finetune.lambda_gen: [0.1, 0.2]", "did you mean lambda_g?"),
        ("finetune: [1, 2]", "finetune is not a field of a preset"),
        ("evaluate.network: [convnet3, convnet6]", "use evaluate.networks in its place"),
    ],
)
def test_a_wrong_varied_value_names_the_line_of_the_sweep_file(line: str, words: str, tmp_path: Path) -> None:
    (message,) = refusal(tmp_path, f"{BASE}  {line}\n")
    assert "]: a.yaml:4" in message
    assert words in message


def test_values_that_are_fine_alone_and_not_together_are_refused_before_anything_runs(tmp_path: Path) -> None:
    text = "name: a\npreset: digits\nvary:\n  finetune.t_min: [0, 600]\n  finetune.t_max: [500, 1000]\n"
    (message,) = refusal(tmp_path, text)
    assert "a.yaml:5 finetune.t_max: expected more than t_min = 600, got 500" in message


def test_a_ready_made_set_may_not_have_the_name_of_an_arm(tmp_path: Path) -> None:
    text = "name: a\npreset: digits\nvary:\n  finetune.memory_real.pop: [fifo, random]\nsets: {fifo: nowhere}\n"
    with pytest.raises(SpecError, match=r"a\.yaml:5 sets\.fifo: fifo is also an arm of `vary`"):
        plan_controls(sweep(tmp_path, text))


def test_every_mistake_is_told_in_one_go(tmp_path: Path) -> None:
    text = """\
nme: a
vary:
  finetune.stps: [1]
  finetune.lambda_g: [0.1, high]
seeds:
  distil: [0]
objective: {metric: top1}
set:
  sample.steps: 0
"""
    messages = refusal(tmp_path, text)
    fields = {message.split("]: ")[1].split(": ")[0] for message in messages}
    assert fields == {
        "a.yaml:1 name",
        "a.yaml:1 nme",
        "a.yaml:3 finetune.stps",
        "a.yaml:4 finetune.lambda_g",
        "a.yaml:6 seeds.distil",
        "a.yaml:7 objective.metric",
        "a.yaml:9 sample.steps",
    }
    assert len(messages) == len(fields)


def test_a_grid_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    size = int(MAX_GRID**0.5)
    values = [list(range(1, size + 1)), list(range(1, size + 2))]
    with pytest.raises(SpecErrors, match=f"the grid has {size * (size + 1)} cells, the limit is {MAX_GRID}"):
        sweep(tmp_path, f"name: a\nvary:\n  finetune.steps: {values[0]}\n  sample.steps: {values[1]}\n")


def test_real_images_limit_the_ipc_of_their_control(tmp_path: Path) -> None:
    text = BASE + "preset: digits\ncontrols: [random_real]\nevaluate:\n  ipc: [5, 120]\n"
    assert len(plan_controls(sweep(tmp_path, text))) == 3  # 140 in the smallest class, 20 of them for validation
    with pytest.raises(SpecError) as caught:
        plan_controls(sweep(tmp_path, text.replace("120", "121")))
    assert "a.yaml:7 evaluate.ipc: control random_real needs 121 images a class" in str(caught.value)
    assert "help: use ipc 120 or less" in str(caught.value)
    assert len(plan_controls(sweep(tmp_path, text.replace("120", "121").replace("random_real", "plain")))) == 3


def test_arms_have_names_that_are_short_and_fit_for_files() -> None:
    assert arm_name({"a": "max_similarity", "b": "fifo"}) == "max_fifo"
    assert arm_name({"a": 0.002}) == "0.002"
    names = {arm_name({"a": text}) for text in ("x/y", "x-y", "x y", "../x", "é" * 300)}
    assert len(names) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9.+_-]{1,60}", name) for name in names)


def test_the_known_networks_are_those_that_can_be_built() -> None:
    assert set(NETWORKS) == set(classifiers.NETWORKS)


def test_a_field_of_the_classifiers_is_the_presets_and_one_of_the_evaluators_the_sweeps(tmp_path: Path) -> None:
    checked = sweep(tmp_path, BASE, {"evaluate.dtype": "bfloat16", "evaluate.ipc": (3,), "evaluate.also": ("noaug",)})
    assert checked.preset_with({}).evaluate.dtype == "bfloat16"
    assert (checked.spec.evaluate.ipc, checked.spec.evaluate.also) == ((3,), ("noaug",))
