"""Recipes: what they set, what overrides them, and how they vary."""

from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cli import main
from ddgd_ray.errors import SpecErrors
from ddgd_ray.plan.plan import Trial, arm_name, plan_arm, plan_controls
from ddgd_ray.spec.preset import Preset, preset_names
from ddgd_ray.spec.published import differences
from ddgd_ray.spec.recipe import read_recipe, recipe_names
from ddgd_ray.spec.sweep import Sweep, read_sweep

VARIED = "name: a\npreset: digits\nvary: {recipe: [paper, minimax, plain]}\nseeds: {distill: [0], evaluate: [0]}\n"
FIXED = "name: a\npreset: digits\nvary: {sample.steps: [20]}\nseeds: {distill: [0], evaluate: [0]}\n"
NO_TRAINING = ("finetune.steps", 0)
DATA_SETS_OWN = {"steps", "batch_size", "learning_rate", "ema_decay", "dtype", "seed"}


def sweep(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> Sweep:
    (folder / "a.yaml").write_text(text)
    return read_sweep(folder / "a.yaml", overrides or {})


def refusal(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(SpecErrors) as caught:
        sweep(folder, text, overrides)
    (error,) = caught.value.errors
    return str(error).replace(f"{folder}/", "")


def pops(preset: Preset) -> tuple[str, str]:
    return preset.finetune.memory_real.pop, preset.finetune.memory_gen.pop


def keys(trial: Trial) -> list[str]:
    return [call.key for call in trial.calls()]


def test_the_recipes_are_those_of_the_literature_and_its_controls() -> None:
    memories = ["minimax", "minimax-code", "paper", "plain", "pretrained", "public-code"]
    others = ["cao2-select", "d3hr", "d4m-like", "manifold", "mgd3", "rded"]
    real = ["el2n-real", "herding-real", "random-real"]
    assert recipe_names() == sorted(memories + others + real)


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("preset", preset_names())
def test_a_recipe_fits_every_preset(name: str, preset: str, tmp_path: Path) -> None:
    classes = {"images.classes": ("a", "b")} if preset == "imagefolder" else {}
    sweep(tmp_path, FIXED, {"recipe": name, "preset": preset} | classes)


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - {"pretrained"}))
def test_a_recipe_leaves_the_data_sets_own_numbers_to_the_preset(name: str) -> None:
    of_scripts = {"dtype"} if name in ("public-code", "minimax-code") else set()
    own = {path.partition(".")[2] for path, (value, _) in read_recipe(name, "").items() if (path, value) != NO_TRAINING}
    assert not own & (DATA_SETS_OWN - of_scripts)


def test_recipes_set_what_their_papers_say(tmp_path: Path) -> None:
    varied = sweep(tmp_path, VARIED.replace("plain]", "plain, public-code]"))
    paper, minimax, plain, code = (varied.preset_with(params) for params in varied.spec.grid())
    assert pops(paper) == ("max_similarity", "max_similarity")
    assert pops(minimax) == ("fifo", "fifo")
    assert (minimax.finetune.lambda_r, minimax.finetune.lambda_g) == (0.002, 0.008)
    assert (plain.finetune.lambda_r, plain.finetune.lambda_g) == (0, 0)
    assert (code.finetune.class_aggregation, code.finetune.memory_scope) == ("cumulative", "local")


@pytest.mark.parametrize(("name", "protocol"), [("public-code", "idc-256"), ("minimax-code", "idc")])
def test_on_imagenet_subsets_nothing_is_left_that_differs_from_the_scripts(tmp_path: Path, name: str, protocol: str) -> None:
    preset = sweep(
        tmp_path, FIXED.replace("{sample.steps: [20]}", "{sample.steps: [50]}"), {"preset": "imagewoof", "recipe": name}
    )
    chosen = preset.preset_with({})
    assert differences(chosen, name) == []
    assert (chosen.evaluate.protocol.label, chosen.images.validation_per_class) == (protocol, 0)
    assert {chosen.finetune.dtype, chosen.sample.dtype, chosen.evaluate.dtype} == {"tf32"}


def test_differences_from_the_scripts_are_named_field_by_field(tmp_path: Path) -> None:
    text = "name: a\npreset: imagewoof\nrecipe: paper\nvary: {finetune.steps: [500]}\n"
    found = {one.field: (one.here, one.published) for one in differences(sweep(tmp_path, text).preset_with({}), "paper")}
    assert found["images.validation_per_class"] == (50, 0)
    assert found["finetune.memory_scope"] == ("global", "local")
    assert found["finetune.class_aggregation"] == ("mean", "cumulative")
    assert found["evaluate.protocol.size"] == (224, 256)
    assert found["finetune.dtype"] == ("bfloat16", "tf32")
    assert "finetune.steps" not in found, "what varies is not in the preset"


def test_a_varied_recipe_names_its_arms(tmp_path: Path) -> None:
    assert [arm_name(params) for params in sweep(tmp_path, VARIED).spec.grid()] == ["paper", "minimax", "plain"]


@pytest.mark.parametrize("text", [FIXED + "recipe: minimax\n", FIXED])
def test_a_fixed_recipe_is_a_base_that_overrides_change(text: str, tmp_path: Path) -> None:
    overrides = {} if "recipe" in text else {"recipe": "minimax"}
    assert pops(sweep(tmp_path, text, overrides).preset_with({})) == ("fifo", "fifo")
    changed = sweep(tmp_path, text, overrides | {"finetune.memory_gen.pop": "random"})
    assert pops(changed.preset_with({})) == ("fifo", "random")
    assert pops(changed.preset_with({"finetune.memory_real.pop": "kcenter"})) == ("kcenter", "random")


@pytest.mark.parametrize("name", ["plain", "pretrained"])
def test_a_control_has_the_keys_of_the_recipe_of_its_name(name: str, tmp_path: Path) -> None:
    (control,) = plan_controls(sweep(tmp_path, FIXED + f"controls: [{name}]\n"))
    varied = sweep(tmp_path, VARIED.replace("plain]", "plain, pretrained]"))
    (arm,) = plan_arm(varied, name, {"recipe": name})
    assert keys(control) == keys(arm)


def test_a_recipe_can_be_searched(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "recipe: {type: choice, values: [paper, minimax]}\nfinetune.memory_real.size: {type: int, low: 4, high: 9}\n"
    )
    searched = sweep(tmp_path, "name: a\npreset: digits\nsearch: {space: space.yaml}\n")
    preset = searched.preset_with({"recipe": "minimax", "finetune.memory_real.size": 5})
    assert (pops(preset), preset.finetune.memory_real.size) == (("fifo", "fifo"), 5)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (VARIED.replace("minimax", "minmax"), "unknown-recipe]: a.yaml:3 recipe: unknown recipe 'minmax'"),
        (FIXED + "recipe: minmax\n", "unknown-recipe]: a.yaml:5 recipe: unknown recipe 'minmax'"),
    ],
)
def test_an_unknown_recipe_names_the_nearest(text: str, start: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"error[{start}")
    assert "did you mean minimax?" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (VARIED + "set: {finetune.lambda_g: 0.5}\n", "a.yaml:5 finetune.lambda_g: the varied recipe"),
        (VARIED + "recipe: minimax\n", "a.yaml:5 recipe: recipe is given and varied"),
        (VARIED + "controls: [plain]\n", "a.yaml:5 controls: plain is a control and a varied recipe"),
        (VARIED.replace("]}", "], finetune.memory_gen.pop: [fifo]}", 1), "a.yaml:3 finetune.memory_gen.pop: the varied recipe"),
    ],
)
def test_what_contradicts_a_varied_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecErrors, match="recipe-conflict") as caught:
        sweep(tmp_path, text)
    assert words in str(caught.value).replace(f"{tmp_path}/", "")


def test_plan_prints_where_each_varied_recipe_differs_from_its_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("name: a\npreset: imagewoof\nvary: {recipe: [paper, minimax-code]}\n")
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "a.yaml"), "--recipe-diff", "--run-dir", str(tmp_path / "runs")])
    assert ended.value.code == 0
    answer = capsys.readouterr().out
    assert "images.validation_per_class        here 50; published 0" in answer
    assert "recipe minimax-code: " in answer
    assert not (tmp_path / "runs").exists(), "nothing is made, and no image is needed"


def test_a_method_without_training_joined_with_a_memory_keeps_its_own_part_alone(tmp_path: Path) -> None:
    alone, both = (sweep(tmp_path, FIXED, {"recipe": name}).preset_with({}) for name in ("mgd3", ("paper", "mgd3")))
    assert (alone.finetune.steps, alone.sample.guide.name) == (0, "mode")
    assert (both.finetune.steps, both.sample.guide) == (100, alone.sample.guide)
    assert pops(both) == ("max_similarity", "max_similarity")


def test_joined_recipes_vary_and_name_their_arms(tmp_path: Path) -> None:
    text = VARIED.replace("[paper, minimax, plain]", "[paper, paper+mgd3, minimax+cao2-select+mgd3]")
    varied = sweep(tmp_path, text)
    assert [arm_name(params) for params in varied.spec.grid()] == ["paper", "paper+mgd3", "minimax+cao2-select+mgd3"]
    last = varied.preset_with(varied.spec.grid()[-1])
    assert (pops(last), last.select.rule, last.sample.guide.name) == (("fifo", "fifo"), "confidence", "mode")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("paper+minimax", "paper and minimax both set finetune.memory_real.pop, to 'max_similarity' and 'fifo'"),
        ("paper+pretrained", "pretrained fine-tunes nothing, paper says how to"),
        ("mgd3+manifold", "mgd3 and manifold both set sample.guide, to 'mode' and 'manifold'"),
        ("d3hr+d4m-like", "d3hr and d4m-like both set sample.start"),
        ("rded+cao2-select", "rded and cao2-select both set select.rule"),
        ("rded+mgd3", "select.of: real draws no samples: sample.guide would do nothing"),
        ("mgd3+mgd3", "mgd3+mgd3 names a recipe twice"),
        ("paper+mgd", "unknown recipe 'mgd'"),
    ],
)
def test_recipes_that_contradict_each_other_are_refused_with_the_reason(name: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, FIXED + f"recipe: {name}\n")


def test_steps_that_are_set_are_those_of_the_recipes_that_fine_tune(tmp_path: Path) -> None:
    varied = sweep(tmp_path, VARIED.replace("minimax", "mgd3") + "set: {finetune.steps: 7}\n")
    steps = {params["recipe"]: varied.preset_with(params).finetune.steps for params in varied.spec.grid()}
    assert steps == {"paper": 7, "mgd3": 0, "plain": 7}


def test_fields_beside_a_varied_combination_are_refused(tmp_path: Path) -> None:
    text = VARIED.replace("[paper, minimax, plain]", "[paper+mgd3]") + "set: {sample.guide.stop: 0.2}\n"
    assert "the varied recipe paper+mgd3 sets sample.guide.stop too" in refusal(tmp_path, text)
