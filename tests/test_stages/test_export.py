"""What is exported is what diffusers loads: the same transformer, the same decoder, samples without us."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages import finetune
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.adapters import load_finetuned
from ddgd_ray.stages.parts.backbone import Autoencoder, load_dit, save_dit, save_identity, set_timestep_shift
from ddgd_ray.stages.parts.pipeline import export_pipeline

LABELS = {0: "boot", 2: "bag"}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 px images, latents 2 x 4 x 4, standardised by channel."""
    folder = tmp_path_factory.mktemp("kl")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
        sample_size=8,
        latents_mean=[0.3, -1.0],
        latents_std=[0.5, 2.0],
    ).save_pretrained(folder)
    return folder


def tuned(inputs: dict[str, Path], folder: Path, **changes: object) -> Path:
    folder.mkdir()
    memory = MemorySpec(size=4)
    values = {
        "steps": 3,
        "batch_size": 12,
        "learning_rate": 1e-2,
        "memory_real": memory,
        "memory_gen": memory,
        "ema_decay": 0.5,
    }
    finetune.run(FinetuneSpec(**{**values, **changes}), inputs, folder, Context())  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("adapter", ["difffit", "bitfit", "full"])
@pytest.mark.parametrize("kind", ["plain", "variance"])
def test_the_exported_transformer_is_the_tuned_one_and_samples(
    latent_inputs: dict[str, Path], variance_inputs: dict[str, Path], autoencoder: Path, tmp_path: Path, adapter: str, kind: str
) -> None:
    inputs = latent_inputs if kind == "plain" else variance_inputs
    made = tuned(inputs, tmp_path / "adapter", adapter=adapter)
    target = tmp_path / "pipeline"
    export_pipeline(target, backbone=inputs["backbone"], adapter=made, autoencoder=autoencoder, weights="raw", labels=LABELS)
    pipeline = DiTPipeline.from_pretrained(target)
    ours = load_finetuned(inputs["backbone"], made, weights="raw")
    z_t, t = torch.randn(3, 2, 4, 4), torch.tensor([5, 500, 900])
    for own, theirs in ((torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])), (torch.full((3,), 3), torch.full((3,), 1000))):
        expected = ours(z_t, t, own, return_dict=False)[0]
        torch.testing.assert_close(pipeline.transformer(z_t, t, theirs, return_dict=False)[0], expected, rtol=1e-5, atol=1e-5)
    drawn = pipeline(class_labels=pipeline.get_label_ids(["boot", "bag"]), num_inference_steps=2, output_type="np").images
    assert drawn.shape == (2, 8, 8, 3)
    assert np.isfinite(drawn).all()


def test_the_exported_autoencoder_encodes_and_decodes_standardised_latents(
    latent_inputs: dict[str, Path], autoencoder: Path, tmp_path: Path
) -> None:
    made = tuned(latent_inputs, tmp_path / "adapter")
    target = tmp_path / "pipeline"
    folders = {"backbone": latent_inputs["backbone"], "adapter": made, "autoencoder": autoencoder}
    assert export_pipeline(target, **folders, weights="ema", labels=LABELS)
    exported, ours = AutoencoderKL.from_pretrained(target / "vae"), Autoencoder.load(autoencoder)
    exported.requires_grad_(False)
    assert exported.config.scaling_factor == 1
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    posterior = exported.encode(images).latent_dist
    mean, log_variance = (tensor.clone() for tensor in ours.posterior(images))
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(posterior.logvar, log_variance, rtol=1e-4, atol=1e-4)
    decoded = ((exported.decode(mean).sample.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert (decoded - ours.decode(mean).float()).abs().max() <= 0.5001


def test_weights_with_the_timesteps_of_dits_own_code_come_with_a_note(
    latent_inputs: dict[str, Path], autoencoder: Path, tmp_path: Path
) -> None:
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    model = load_dit(latent_inputs["backbone"])
    set_timestep_shift(model, 0)
    save_dit(model, shifted)
    inputs = latent_inputs | {"backbone": shifted}
    made = tuned(inputs, tmp_path / "adapter", steps=0)
    target = tmp_path / "pipeline"
    is_same = export_pipeline(target, backbone=shifted, adapter=made, autoencoder=autoencoder, weights="ema", labels=LABELS)
    assert not is_same
    assert "downscale_freq_shift = 0" in (target / "README.md").read_text()
    assert json.loads((target / "transformer" / "config.json").read_text())["timestep_shift"] == 0


def test_a_folder_in_use_and_pixel_latents_are_refused(
    latent_inputs: dict[str, Path], autoencoder: Path, tmp_path: Path
) -> None:
    made = tuned(latent_inputs, tmp_path / "adapter", steps=0)
    identity = tmp_path / "identity"
    identity.mkdir()
    save_identity(identity)
    folders = {"backbone": latent_inputs["backbone"], "adapter": made}
    with pytest.raises(StageError, match="not empty"):
        export_pipeline(made, **folders, autoencoder=autoencoder, weights="ema", labels=LABELS)
    with pytest.raises(StageError, match="pixels are the latents"):
        export_pipeline(tmp_path / "x", **folders, autoencoder=identity, weights="ema", labels=LABELS)
    assert not (tmp_path / "x").exists()
