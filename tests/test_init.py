"""From a folder of images to a sweep that works at once: `init`, and `--images`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.cli import main
from ddgd_ray.spec.sweep import read_sweep

ROOT = Path(__file__).parent.parent
MEMORY = str(ROOT / "ablations" / "memory.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 12 noisy pictures, without a split."""
    for label, name in enumerate(("apple", "pear", "plum")):
        (tmp_path / "fruit" / name).mkdir(parents=True)
        for number in range(12):
            noise = np.random.default_rng([label, number]).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "fruit" / name / f"{number}.png")
    return tmp_path / "fruit"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def plan(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> tuple[int, str, str]:
    return run(capsys, "plan", *words, "--run-dir", str(tmp_path / "runs"))


def test_init_writes_a_file_that_is_planned_as_it_stands(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    code, out, _ = run(capsys, "init", str(folder), "--minutes", "0.1", "--run-dir", str(tmp_path / "runs"))
    assert code == 0
    assert "3 classes of 12" in out
    assert "written   " + str(tmp_path / "fruit.yaml") in out
    assert "next      ddgd-ray sweep fruit.yaml" in out
    assert "more than the 0.1 minutes asked for" in out
    sweep = read_sweep(tmp_path / "fruit.yaml", {})
    assert sweep.preset_with({}).images.classes == ("apple", "pear", "plum")
    code, out, _ = plan(capsys, tmp_path, "fruit.yaml")
    assert code == 0
    assert "never measured" not in out, "what init has measured, plan knows"
    code, _, err = run(capsys, "init", str(folder))
    assert code == 2
    assert "error[exists]" in err


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache that holds DiT-XL/2 and the VAE, as far as anybody looks who does not load them."""
    parts = {
        "facebook/DiT-XL-2-256": ("transformer", "DiTTransformer2DModel"),
        "stabilityai/sd-vae-ft-mse": ("", "AutoencoderKL"),
    }
    for repo, (folder, name) in parts.items():
        cached = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        inner = cached / "snapshots" / ("c" * 40) / folder
        inner.mkdir(parents=True)
        (inner / "config.json").write_text(json.dumps({"_class_name": name}))
        (inner / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


class Fitted(BaseException):
    """It went on as on a machine without a GPU. The command line takes any Exception for a bug and tells it."""


def fitted(writer: Any) -> Any:
    raise Fitted


@pytest.mark.parametrize("has_weights", [True, False])
def test_with_a_gpu_weights_and_imagenets_classes_it_is_the_full_size_recipe(
    has_weights: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if has_weights:
        request.getfixturevalue("weights")
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    for name in ("n02096294", "n02093754"):
        (tmp_path / "dogs" / name).mkdir(parents=True)
        for number in range(40):
            noise = np.random.default_rng(number).integers(0, 255, (300, 300, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "dogs" / name / f"{number}.jpg")
    monkeypatch.setattr("ddgd_ray.doctor.machine.seen_gpus", lambda: [("H100", 80 * 2**30)])
    monkeypatch.setattr("ddgd_ray.commands.init._Writer.fitted", fitted)
    words = ["init", str(tmp_path / "dogs"), "--to", str(tmp_path / "dogs.yaml"), "--run-dir", str(tmp_path / "runs")]
    if not has_weights:
        with pytest.raises(Fitted):
            main(words)
        said = capsys.readouterr().out
        assert "DiT-XL/2 would know them" in said
        assert "hf download" in said
        return
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "256 px, DiT-XL/2 and the recipe of the paper" in out
    sweep = read_sweep(tmp_path / "dogs.yaml", {})
    preset = sweep.preset_with({})
    assert (sweep.spec.preset, preset.images.labels, preset.images.size) == ("imagewoof", "imagenet", 256)
    assert preset.finetune.memory_real.size == 14, "half of the 28 images that are left of a class"
    assert sweep.spec.resources.of("finetune").gpus == 1
    code, out, err = plan(capsys, tmp_path, str(tmp_path / "dogs.yaml"), "--cores", "8", "--gpus", "1")
    assert code == 0, err
    assert out.count("warning[") == out.count("warning[other-split]") == 1, "noise is not ImageNet's validation split"


def test_more_images_than_a_class_has_are_refused_before_anything_is_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, "init", str(folder), "--ipc", "11", "--to", str(tmp_path / "a.yaml"))
    assert code == 2
    assert "11 images a class are more than the 10" in err


def keys(out: str) -> list[str]:
    return [line for line in out.splitlines() if "finetune" in line]


@pytest.mark.parametrize("words", [["--images"], ["--preset", "imagefolder", "--set", "images.root="]])
def test_a_folder_is_enough_for_any_sweep_file(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words[:-1], words[-1] + str(folder)] if words[-1].endswith("=") else [*words, str(folder)]
    code, out, err = plan(capsys, tmp_path, MEMORY, *given, "--set", "evaluate.ipc=[5]")
    assert code == 0, err
    assert "memory: preset imagefolder, 37 trials" in out


def test_the_same_folder_gives_the_same_keys_wherever_it_lies(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = plan(capsys, tmp_path, MEMORY, "--images", str(folder), "--set", "evaluate.ipc=[5]")[1]
    folder.rename(tmp_path / "elsewhere")
    second = plan(capsys, tmp_path, MEMORY, "--images", str(tmp_path / "elsewhere"), "--set", "evaluate.ipc=[5]")[1]
    assert keys(first) == keys(second)


def test_what_is_set_stays(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nset: {images.size: 16, autoencoder.kind: identity}\nvary: {finetune.steps: [7, 9]}\n")
    asked = ["--images", str(folder), "--set", "images.validation_per_class=3", "--set", "evaluate.ipc=[2]", "--json"]
    code, out, err = plan(capsys, tmp_path, str(file), *asked)
    assert code == 0, err
    assert json.loads(out)["trials"] == 6


def test_images_with_another_preset_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, tmp_path, MEMORY, "--images", str(folder), "--preset", "digits")
    assert code == 2
    assert "--images goes with preset imagefolder" in err


def test_a_published_set_is_judged_as_before(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`evaluate --real` keeps the size and the protocol of the published tables, whatever suits a first try."""
    from ddgd_ray.commands import sweeps

    seen: list[Any] = []
    monkeypatch.setattr(sweeps, "_run", lambda sweep, args: seen.append(sweep) or 0)
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--real", str(folder), "--run-dir", str(tmp_path)])
    preset = seen[0].preset_with({})
    assert (preset.images.size, preset.evaluate.protocol.label) == (256, "idc")
