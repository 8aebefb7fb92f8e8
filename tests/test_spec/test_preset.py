"""The shipped presets, and what of them enters a key."""

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.inputs.fingerprints import images_source, index_classes
from ddgd_ray.inputs.imagefolder import image_files
from ddgd_ray.inputs.weights import weights_source
from ddgd_ray.plan.plan import common_calls, plan_arm
from ddgd_ray.spec.preset import DitWeightsSpec, Preset, build_preset, preset_names, read_preset, with_overrides
from ddgd_ray.spec.stages import TRAIN_PER_CLASS, ImagesSpec
from ddgd_ray.spec.sweep import read_sweep
from ddgd_ray.stages.parts.images import read_splits

# WordNet id [ImageNet-1k index] of the ten classes, as published with the data sets
INDEX = {
    "imagewoof": "n02096294[193] n02093754[182] n02111889[258] n02088364[162] n02086240[155] n02089973[167] n02087394[159] "
    "n02115641[273] n02099601[207] n02105641[229]",
    "imagenette": "n01440764[0] n02102040[217] n02979186[482] n03000684[491] n03028079[497] n03394916[566] n03417042[569] "
    "n03425413[571] n03445777[574] n03888257[701]",
    "imageidc": "n02869837[452] n01749939[64] n02488291[374] n02107142[236] n13037406[993] n02091831[176] n04517823[882] "
    "n04589890[904] n03062245[503] n01773797[74]",
}


def build(name: str, overrides: dict[str, Any] | None = None) -> Preset:
    errors: list[SpecError] = []
    placed = {path: (value, "--set") for path, value in (overrides or {}).items()}
    preset = build_preset(with_overrides(read_preset(name), placed, errors), errors)
    assert preset is not None, "\n".join(map(str, errors))
    return preset


def keys(overrides: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """{stage: key} of one trial of the digits."""
    file = tmp_path / "a.yaml"
    file.write_text("name: a\npreset: digits\nvary: {finetune.t_max: [1000]}\nseeds: {distill: [0], evaluate: [0]}\n")
    (trial,) = plan_arm(read_sweep(file, {"evaluate.networks": ("convnet3",), **overrides}), "a", {})
    return {call.stage: call.key for call in trial.calls()}


def write_images(root: Path, classes: tuple[str, ...], per_class: int = 3) -> ImagesSpec:
    for split in ("train", "val"):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                Image.fromarray(np.full((8, 8), 40 * label + number, np.uint8)).save(folder / f"{number}.png")
    return ImagesSpec(source="imagefolder", classes=classes, size=8, channels=1, root=str(root))


@pytest.mark.parametrize("name", preset_names())
def test_a_shipped_preset_is_valid_without_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEWOOF", raising=False)
    classes = {"images.classes": tuple("abcdefghij")} if name == "imagefolder" else {}
    assert len(build(name, classes).images.classes) == (100 if name == "imagenet100" else 10)


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_wordnet_id_has_the_imagenet_index_of_the_paper(name: str) -> None:
    pairs = re.findall(r"(n\d{8})\[(\d+)\]", INDEX[name])
    images = build(name).images
    assert images.labels == "imagenet"
    assert images.classes == tuple(wnid for wnid, _ in pairs)
    assert index_classes(images.classes) == [int(index) for _, index in pairs]


def test_imagenet100_has_the_hundred_classes_of_cmc() -> None:
    images = build("imagenet100").images
    assert len(set(index_classes(images.classes))) == 100
    assert images.classes[:10] == build("imageidc").images.classes
    # of the published list, one id a line
    text = "\n".join(images.classes)
    assert hashlib.sha256(text.encode()).hexdigest() == "b06db93f7ac2851ef476c162d6c4cbba17197be0269c88005add46486f682cb0"


def test_lora_without_peft_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(StageError, match=r"needs the package peft\n  help: pip install 'ddgd-ray\[lora\]'"):
        keys({"finetune.adapter": "lora"}, tmp_path)
    assert keys({"finetune.adapter": "bitfit"}, tmp_path) != keys({}, tmp_path)


@pytest.mark.parametrize("field", ["lora_rank", "lora_alpha"])
def test_fields_of_lora_need_that_adapter(field: str) -> None:
    with pytest.raises(AssertionError, match=f"--set finetune.{field}: {field} means something with adapter: lora only"):
        build("fashion", {f"finetune.{field}": 5})
    assert getattr(build("fashion", {"finetune.adapter": "lora", f"finetune.{field}": 5}).finetune, field) == 5


def test_a_word_that_is_no_wordnet_id_is_refused() -> None:
    with pytest.raises(SpecError, match="not an ImageNet-1k WordNet id: beagle"):
        index_classes(("n02088364", "beagle"))


def test_an_unknown_preset_names_all_and_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        read_preset("imagewof")
    assert caught.value.code == "unknown-preset"
    assert caught.value.fix == "did you mean imagewoof?"
    assert all(name in caught.value.what for name in preset_names())


def test_all_sections_are_checked_at_once() -> None:
    errors: list[SpecError] = []
    changes = {"finetune.stps": 3, "sample.steps": 0, "evaluate.protocol.optimizer": "adam", "images.size": 32.5}
    document = with_overrides(
        read_preset("fashion"), {path: (value, f"b.yaml:{path}") for path, value in changes.items()}, errors
    )
    assert build_preset(document, errors) is None
    assert "images.size: expected an integer, got number 32.5" in str(errors[0])  # all sections hold the images: no more now
    document = with_overrides(document, {"images.size": (32, "b.yaml")}, errors := [])
    assert build_preset(document, errors) is None
    assert [error.where.split()[-1] for error in errors] == ["finetune.stps", "sample.steps", "evaluate.protocol.optimizer"]


def test_a_field_of_no_section_is_refused() -> None:
    errors: list[SpecError] = []
    with_overrides(read_preset("fashion"), {"finetun.steps": (3, "a.yaml:7")}, errors)
    assert str(errors[0]).startswith("error[unknown-key]: a.yaml:7: finetun.steps is not a field of a preset")
    assert errors[0].fix == "did you mean finetune.steps?"


def test_a_class_listed_twice_is_refused_where_it_was_written() -> None:
    errors: list[SpecError] = []
    document = with_overrides(read_preset("fashion"), {"images.classes": (("a", "a"), "--set")}, errors)
    assert build_preset(document, errors) is None
    assert str(errors[0]) == "error[spec]: --set images.classes: a class is listed twice\n  help: remove one of the two"


def test_local_ranks_need_a_local_scope() -> None:
    assert build("fashion", {"finetune.memory_scope": "local", "finetune.local_ranks": 2}).finetune.local_ranks == 2
    with pytest.raises(
        AssertionError, match=r"--set finetune\.local_ranks: local_ranks means something with memory_scope: local"
    ):
        build("fashion", {"finetune.local_ranks": 2})


def test_the_smallest_class_has_the_size_that_specs_are_checked_by() -> None:
    for name in ("fashion", "digits"):
        images = build(name).images.model_copy(update={"validation_per_class": 0})
        (train,) = read_splits(images, Path(), "train")
        assert np.bincount(train.labels).min() == TRAIN_PER_CLASS[name]


def test_something_is_left_beside_the_validation_images() -> None:
    assert build("digits", {"images.validation_per_class": 139}).images.validation_per_class == 139
    with pytest.raises(AssertionError, match="expected less than the 140 training images of a class, got 140"):
        build("digits", {"images.validation_per_class": 140})


def test_a_loss_weight_changes_what_follows_it_and_nothing_before(tmp_path: Path) -> None:
    before, after = keys({"finetune.lambda_g": 0.008}, tmp_path), keys({"finetune.lambda_g": 0.016}, tmp_path)
    changed = {stage for stage in before if before[stage] != after[stage]}
    assert changed == {"finetune", "sample", "evaluate"}
    assert before.keys() == {"autoencoder", "encode", "pretrain", "finetune", "sample", "decode", "evaluate"}


def test_the_held_out_images_change_every_key(tmp_path: Path) -> None:
    before, after = keys({}, tmp_path), keys({"images.validation_per_class": 21}, tmp_path)
    assert all(before[stage] != after[stage] for stage in before)


def test_the_evaluators_protocol_changes_the_evaluators_alone(tmp_path: Path) -> None:
    before, after = keys({}, tmp_path), keys({"evaluate.protocol.steps": 101}, tmp_path)
    assert {stage for stage in before if before[stage] != after[stage]} == {"evaluate"}


def test_resources_change_no_key(tmp_path: Path) -> None:
    assert keys({}, tmp_path) == keys({"resources.cpus": 2, "resources.chunk": 7}, tmp_path)


def test_a_value_written_as_its_default_gives_the_same_key(tmp_path: Path) -> None:
    assert keys({}, tmp_path) == keys({"finetune.reduction": "joint", "finetune.lambda_g": 8e-3}, tmp_path)


def test_the_folder_of_the_images_never_enters_a_key(tmp_path: Path) -> None:
    classes = ("a", "b")
    first, second = (write_images(tmp_path / name, classes) for name in ("one", "another place"))
    assert first.canonical() == second.canonical()
    (one, _), (two, _) = images_source(first), images_source(second)
    assert one == two
    changes = {"images.source": "imagefolder", "images.classes": classes, "images.validation_per_class": 1}
    stages = [common_calls(build("digits", changes | {"images.root": str(spec.root)})) for spec in (first, second)]
    assert [call.key for call in stages[0]] == [call.key for call in stages[1]]


def test_another_pixel_gives_another_fingerprint(tmp_path: Path) -> None:
    spec = write_images(tmp_path, ("a", "b"))
    before, _ = images_source(spec)
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "train" / "a" / "0.png")
    assert images_source(spec)[0] != before


def test_a_variable_in_the_root_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_images(tmp_path / "images", ("a", "b"))
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert images_source(spec.model_copy(update={"root": "$SOME_FOLDER/images"}))[1] == tmp_path / "images"


def test_a_variable_that_is_not_set_is_named_with_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    images = ImagesSpec(source="imagefolder", classes=("a", "b"), size=8, root="${NO_SUCH_FOLDER}/x")
    with pytest.raises(StageError, match=r"images\.root: the variable (.|\n)*\n  help: export NO_SUCH_FOLDER="):
        images_source(images)
    with pytest.raises(StageError, match=r"backbone\.folder: the variable .*\n  help: export NO_SUCH_FOLDER="):
        weights_source(DitWeightsSpec(repo="a/b", folder="$NO_SUCH_FOLDER"))


def test_a_folder_with_an_images_name_is_no_image(tmp_path: Path) -> None:
    spec = write_images(tmp_path, ("a", "b"))
    (tmp_path / "train" / "a" / "thumbnails.png").mkdir()
    assert len(image_files(spec, tmp_path).train["a"]) == 3
    assert images_source(spec)[0].startswith("sha256:")


def test_a_class_within_the_validation_images_is_refused(tmp_path: Path) -> None:
    spec = write_images(tmp_path, ("a", "b"))
    with pytest.raises(StageError, match="class a has 3 training images, needs more than validation_per_class = 3"):
        images_source(spec.model_copy(update={"validation_per_class": 3}))


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"], ids=["empty", "web page"])
def test_files_that_are_no_images_are_listed_before_any_work(content: bytes, tmp_path: Path) -> None:
    spec = write_images(tmp_path, ("a", "b"))
    bad = tmp_path / "val" / "b" / "1.png"
    bad.write_bytes(content)
    with pytest.raises(StageError, match=f"1 of 12 files are no images:\n    {re.escape(str(bad))}\n"):
        images_source(spec)


def test_weights_that_are_not_here_come_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    backbone = build("imagewoof", {"backbone.folder": str(tmp_path)}).backbone
    assert isinstance(backbone, DitWeightsSpec)
    (tmp_path / "config.json").write_text("{not json")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(StageError, match="help: hf download facebook/DiT-XL-2-256 --revision main, or set backbone"):
        weights_source(backbone)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".hidden", "a\nb", "a\0b", "x" * 201])
def test_a_class_that_cannot_name_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        ImagesSpec(source="digits", classes=(name, "b"), size=8, channels=1)
