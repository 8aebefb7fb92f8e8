"""What a card says: method, numbers with n, keys, and the terms that follow from what the set was made from."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.exporting.choose import choose
from ddgd_ray.exporting.export_set import export_set
from ddgd_ray.exporting.licences import Note, licence_of
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run

WOOF = ("n02096294", "n02093754")
KEY = re.compile(r"`[0-9a-f]{64}`")


def exported(run: Path, to: Path, arm: str = "", ipc: int = 0) -> Path:
    return export_set(choose(read_run(run, open_store(run.parent)), arm), "imagefolder", to, ipc=ipc).path


def card(run: Path, to: Path, arm: str = "") -> str:
    return (exported(run, to, arm) / "README.md").read_text()


@pytest.fixture(scope="module")
def run(made_run: Callable[..., Path]) -> Path:
    return made_run()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Overrides that name images of two ImageNet classes and weights in diffusers' layout."""
    for split, count in (("train", 5), ("val", 2)):
        for name in WOOF:
            (tmp_path / "woof" / split / name).mkdir(parents=True)
            for index in range(count):
                noise = np.random.default_rng([index, count]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "woof" / split / name / f"{index}.png")
    for part, name in (("autoencoder", "AutoencoderKL"), ("backbone", "DiTTransformer2DModel")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": name}))
        (tmp_path / part / "diffusion_pytorch_model.safetensors").write_text(part)
    return {
        "preset": "imagewoof",
        "images.root": str(tmp_path / "woof"),
        "images.classes": WOOF,
        "images.size": 32,
        "images.validation_per_class": 1,
        "autoencoder.folder": str(tmp_path / "autoencoder"),
        "backbone.folder": str(tmp_path / "backbone"),
        "quality": (),
        "seeds.distill": (0,),
    }


def adopted(repo: str) -> Callable[[Any, Path], None]:
    def write(call: Any, out: Path) -> None:
        name = repo or ("facebook/DiT-XL-2-256" if call.spec.part == "backbone" else "stabilityai/sd-vae-ft-mse")
        content = {} if repo == "none" else {"repo": name, "commit": "ab" * 20}
        (out / "origin.json").write_text(json.dumps(content))

    return write


def test_a_card_holds_method_numbers_keys_and_command(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out")
    assert "fine-tuned on the real images for 100 steps of 32 images (adapter difffit, learning rate 0.001, seed 0)" in text
    assert "weight 0.008, pushes them from the most similar entry of a memory of 32 generated latents" in text
    assert "The run's objective prefers this arm: 0.307 ± 0.001 (n=3) by val_top1" in text
    assert "### Measured, 2 images per class, protocol quick-digits" in text
    assert "### Measured, 3 images per class, protocol quick-digits" in text
    assert "| validation (selects) | convnet3_slim | 0.307 ± 0.001 | 3 | [0.306, 0.308] | 0.306 |" in text
    assert "| random_real (control) | 0.301 ± 0.001 (n=3) |" in text
    assert len(KEY.findall(text)) == 5
    assert "    ddgd-ray export runs/made --format imagefolder --arm 0.008 --seed 0 --ipc 3" in text


def test_a_card_of_another_arm_says_which_one_the_objective_prefers(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", "0.0")
    assert "The run's objective prefers another arm, 0.008: 0.307 ± 0.001 (n=3)" in text
    assert "### All arms of the run" in text


def test_a_card_tells_an_objective_that_no_image_measured_as_what_it_is(made_run: Callable[..., Path], tmp_path: Path) -> None:
    """Seconds are no accuracy: neither on held-out images nor on the test images."""
    quick = ({"metric": "seconds", "direction": "minimize"},)
    found = made_run({"objective.also": quick, "seeds.distill": (0, 1)})
    text = card(found, tmp_path / "two")
    assert "by val_top1, maximized at 2 and 3 images per class, measured on held-out training images" in text
    cheap = made_run({"objective": quick[0], "seeds.distill": (0, 1)})
    text = card(cheap, tmp_path / "one")
    seconds = 2 * len(choose(read_run(cheap, open_store(cheap.parent))).trial.own_refs())  # each took 2 s
    assert f"prefers this arm: {seconds} ± 0 (n=2) by seconds, minimized, what making and judging the sets of one seed" in text
    assert "TEST images" not in text


def test_no_card_holds_a_path_or_the_name_of_the_machine(run: Path, tmp_path: Path) -> None:
    import socket

    out = exported(run, tmp_path / "out")
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".md", ".json", ".jsonl")]
    assert len(texts) == 4
    assert not any(str(tmp_path) in text or str(run.parent) in text or f'"{socket.gethostname()}"' in text for text in texts)


def test_provenance_lists_every_setting_behind_the_set(run: Path, tmp_path: Path) -> None:
    found = json.loads((exported(run, tmp_path / "out") / "provenance.json").read_text())
    assert [stage["stage"] for stage in found["stages"]] == ["autoencoder", "encode", "pretrain", "finetune", "sample"]
    assert found["stages"][3]["spec"]["lambda_g"] == 0.008
    assert found["outside"] == {"scikit-learn:digits": "real images"}
    assert found["trial"]["params"] == {"finetune.lambda_g": 0.008}


def test_digits_stand_under_their_own_licence_and_nothing_else(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out")
    assert "license: cc-by-4.0\n" in text
    assert "Optical Recognition of Handwritten Digits" in text
    assert "no weights from outside" in text
    assert "DiT (" not in text.partition("## Licence")[2]


def test_a_control_of_real_images_says_so(run: Path, tmp_path: Path) -> None:
    text = card(run, tmp_path / "out", "random_real")
    assert "A control: real training images, drawn at random, seed 0. Nothing here is generated." in text
    assert "generative model" not in text


def test_a_selection_by_features_is_called_by_its_own_name(made_run: Callable[..., Path], tmp_path: Path) -> None:
    picked = made_run({"controls": ("herding",), "quality": (), "seeds.distill": (0,)})
    out = exported(picked, tmp_path / "out", "herding")
    assert "A control: real training images, picked by herding, seed 0." in (out / "README.md").read_text()
    stages = [stage["stage"] for stage in json.loads((out / "provenance.json").read_text())["stages"]]
    assert stages == ["decode", "select", "evaluate", "features", "select"]


def test_fashion_mnist_brings_its_mit_notice(made_run: Callable[..., Path], tmp_path: Path) -> None:
    fashion = made_run({"preset": "fashion", "quality": (), "seeds.distill": (0,)})
    out = exported(fashion, tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "license: mit\n" in text
    assert "copyright (c) 2017 Zalando SE, MIT licence" in text
    assert (out / "NOTICE").read_text().splitlines()[2].startswith("Copyright (c) 2017 Zalando SE")
    assert "  NOTICE\n" in (out / "SHA256SUMS").read_text()


def test_published_dit_weights_and_imagenet_bring_their_terms(
    outside: dict[str, Any], made_run: Callable[..., Path], tmp_path: Path
) -> None:
    text = card(made_run(outside, fill={"adopt": adopted("")}), tmp_path / "out")
    assert "license: other\n" in text
    assert f"DiT (facebook/DiT-XL-2-256@{'ab' * 20}), which are CC-BY-NC-4.0: no commercial use" in text
    assert f"Autoencoder: stabilityai/sd-vae-ft-mse@{'ab' * 20}, MIT licence." in text
    assert "Its terms of access allow non-commercial research and education alone" in text
    assert "Fashion" not in text
    assert not (tmp_path / "out" / "NOTICE").exists()


@pytest.mark.parametrize("repo", ["none", "somebody/else"])
def test_weights_of_unknown_origin_are_taken_for_dits(
    repo: str, outside: dict[str, Any], made_run: Callable[..., Path], tmp_path: Path
) -> None:
    text = card(made_run(outside, fill={"adopt": adopted(repo)}), tmp_path / "out")
    origin = r"sha256:[0-9a-f]{64}" if repo == "none" else f"{repo}@{'ab' * 20}"
    assert re.search(rf"weights that came from outside \(content {origin}\)\. The published weights of DiT are CC-BY-NC", text)
    assert re.search(rf"Autoencoder: weights that came from outside \(content {origin}\); their own terms hold", text)


@pytest.mark.parametrize(
    ("parts", "licence"),
    [
        (["mit"], "mit"),
        (["mit", "mit"], "mit"),
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["", "cc-by-nc-4.0"], "other"),
        ([""], "other"),
    ],
)
def test_the_licence_of_a_whole_is_never_laxer_than_that_of_a_part(parts: list[str], licence: str) -> None:
    assert licence_of([Note(part, "") for part in parts]) == licence
