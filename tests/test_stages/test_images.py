"""Readers of real images, and a tiny full-size chain: an ImageFolder named by WordNet ids with weights from folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.conduct.sweep import planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import images_source
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.spec.sweep import read_sweep
from ddgd_ray.stages.parts.images import generator_labels, read_splits

WNIDS = ("n02096294", "n02093754", "n02111889")  # the first three of ImageWoof: 193, 182, 258
MODES = ("RGB", "L", "RGBA", "CMYK", "P", "I;16")


def save(path: Path, mode: str, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (40, 52, 3), dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65535, (40, 52), dtype=np.uint16)).save(path.with_suffix(".png"))
        return
    image = Image.fromarray(pixels).convert(mode)
    image.save(path.with_suffix(".jpeg" if mode in ("RGB", "L", "CMYK") else ".png"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for wnid in WNIDS:
            for index in range(6):
                save(tmp_path / "images" / split / wnid / f"{wnid}_{index}", MODES[index], rng)
    return tmp_path / "images"


def spec(**changes: Any) -> ImagesSpec:
    values = {"source": "imagefolder", "classes": WNIDS, "labels": "imagenet", "size": 32, "validation_per_class": 2}
    return ImagesSpec(**{**values, **changes})


def test_all_kinds_of_pictures_are_read_to_one_shape(folder: Path) -> None:
    train, validation, test = read_splits(spec(), folder, "train", "validation", "test")
    assert (len(train), len(validation), len(test)) == (12, 6, 18)
    assert train.images.shape == (12, 32, 32, 3)
    assert not set(train.names) & set(validation.names)


def test_labels_follow_the_wordnet_id_and_not_the_place_of_the_folder(folder: Path) -> None:
    assert generator_labels(spec()) == [193, 182, 258]
    assert generator_labels(spec(classes=WNIDS[::-1])) == [258, 182, 193]


def test_the_fingerprint_changes_with_one_byte_of_one_image_of_the_same_size(folder: Path) -> None:
    before, _ = images_source(spec(root=str(folder)))
    path = sorted((folder / "train" / WNIDS[0]).iterdir())[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert images_source(spec(root=str(folder)))[0] != before


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    before, _ = images_source(spec(root=str(folder)))
    folder.rename(tmp_path / "moved")
    assert images_source(spec(root=str(tmp_path / "moved")))[0] == before


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None], ids=["empty", "html", "truncated"])
def test_every_corrupt_image_is_listed(folder: Path, content: bytes | None) -> None:
    paths = [next((folder / "train" / wnid).glob("*_0.jpeg")) for wnid in WNIDS[:2]]
    for path in paths:
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(StageError, match=r"2 of 12 images cannot be decoded") as caught:
        read_splits(spec(), folder, "train")
    assert all(str(path) in str(caught.value) for path in paths)


def test_a_class_smaller_than_its_validation_slice_is_refused(folder: Path) -> None:
    with pytest.raises(StageError, match="has 6 training images, needs more than validation_per_class = 6"):
        read_splits(spec(validation_per_class=6), folder, "train")


def write_weights(folder: Path) -> None:
    """A random DiT that predicts a variance, and a random VAE, both tiny, in diffusers layout; blocks share their embedder."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    torch.manual_seed(0)
    dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
                                sample_size=16, num_embeds_ada_norm=1000)  # fmt: skip
    dit.transformer_blocks[1].norm1.emb.load_state_dict(dit.transformer_blocks[0].norm1.emb.state_dict())
    dit.save_pretrained(folder / "transformer")
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
                  down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                  ).save_pretrained(folder / "vae")  # fmt: skip


def test_the_full_size_path_runs_on_an_imagefolder_with_weights_from_folders(folder: Path, tmp_path: Path) -> None:
    write_weights(tmp_path)
    file = tmp_path / "woof.yaml"
    file.write_text(f"""
name: woof
preset: imagewoof
set:
  images.root: {folder}
  images.classes: [{", ".join(WNIDS)}]
  images.size: 32
  images.validation_per_class: 2
  autoencoder.folder: {tmp_path / "vae"}
  backbone.folder: {tmp_path / "transformer"}
  finetune.steps: 3
  finetune.batch_size: 4
  finetune.dtype: float32
  sample.steps: 3
  evaluate.protocol.steps: 4
  evaluate.protocol.num_tests: 2
  evaluate.protocol.shift: 2
vary:
  finetune.memory_real.pop: [max_similarity]
seeds: {{distill: [0], evaluate: [0]}}
evaluate: {{networks: [resnet_slim], ipc: [2]}}
controls: [random_real, pretrained]
""")
    sweep = read_sweep(file, {})
    result = run_sweep(sweep, tmp_path / "runs", run_in_process)
    assert result.exit_code == 0, [record.errors for record in result.failed]
    made = next(trial for trial in planned_trials(sweep) if trial.arm == "max").build[1]
    pictures = sorted((tmp_path / "runs" / "store" / "sample" / made.key / "images").rglob("*.png"))
    assert [path.parent.name for path in pictures] == sorted(WNIDS * 2)
    assert Image.open(pictures[0]).size == (32, 32)


def test_weights_that_do_not_fit_are_named_tensor_by_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ddgd_ray.stages.parts.backbone import load_dit

    write_weights(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["stranger"] = state.pop("proj_out_1.bias")
    save_file(state, path)
    with pytest.raises(StageError, match="proj_out_1.bias is missing") as caught:
        load_dit(tmp_path / "transformer")
    assert "stranger is not part of it" in str(caught.value)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    from ddgd_ray.stages.parts.backbone import load_dit

    write_weights(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match="cannot be read"):
        load_dit(tmp_path / "transformer")
