"""Latents and small DiTs that the fine-tuning tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from ddgd_ray.method.difffit import tie_embedders
from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.stages import pretrain
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import save_dit


@pytest.fixture(scope="session")
def latent_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Latents of three classes around three means, and a DiT trained on them for a moment."""
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    mean = rng.normal(size=(3, 1, 2, 4, 4))[labels] + 0.3 * rng.normal(size=(120, 2, 2, 4, 4))
    np.save(folder / "posterior.npy", np.concatenate([mean, np.full_like(mean, -8)], axis=2).astype(np.float16))
    np.save(folder / "labels.npy", labels)
    backbone = tmp_path_factory.mktemp("dit")
    spec = PretrainSpec(layers=2, heads=2, head_dim=8, steps=40, batch_size=32)
    pretrain.run(spec, {"latents": folder}, backbone, Context())
    return {"latents": folder, "backbone": backbone}


@pytest.fixture(scope="session")
def variance_inputs(latent_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same latents with a random DiT that predicts a variance, as DiT-XL/2 does."""
    folder = tmp_path_factory.mktemp("variance-dit")
    torch.manual_seed(3)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=3,
    )
    model.transformer_blocks[1].norm1.emb = model.transformer_blocks[0].norm1.emb
    tie_embedders(model)
    save_dit(model, folder)
    return {"latents": latent_inputs["latents"], "backbone": folder}
