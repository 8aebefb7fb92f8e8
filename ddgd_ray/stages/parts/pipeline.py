"""A fine-tuned model as a plain diffusers pipeline, for people who have diffusers alone."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from ddgd_ray.errors import StageError
from ddgd_ray.stages.parts.adapters import load_finetuned
from ddgd_ray.stages.parts.backbone import DIFFUSERS_SHIFT, TIMESTEP_SHIFT, Autoencoder, timestep_shift

PIPELINE_CLASSES = 1000  # DiTPipeline takes this label for "no class", whatever the model says
CARD = "README.md"
README = "A DiT fine-tuned and exported by ddgd-ray. Load it with `DiTPipeline.from_pretrained(FOLDER)`.\n"
SHIFT_NOTE = """
### Timesteps: set this before sampling

These weights compute timestep frequencies as DiT's own code does, which diffusers' class does not offer. After loading:

    for block in pipeline.transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
"""


def export_pipeline(
    target: Path,
    *,
    backbone: Path,
    adapter: Path,
    autoencoder: Path,
    weights: str,
    labels: Mapping[int, str],
    texts: Mapping[str, str] = MappingProxyType({CARD: README}),
) -> bool:
    """Whether plain diffusers computes the same timesteps as the written pipeline needs.

    Fills the new folder `target` with what DiTPipeline.from_pretrained loads; the folder appears whole or not at all.
    weights: `ema` or `raw`. labels: the generator's label of each class. texts: files to put beside, README.md among them.
    Where plain diffusers computes other timesteps, README.md says at its end what to set.
    Raises StageError when `target` holds something, or the autoencoder is the identity, which no pipeline knows.
    """
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise StageError("is there already and not empty", code="exists", where=str(target), fix="name another folder")
    kl = Autoencoder.load(autoencoder).kl
    if kl is None:
        raise StageError(
            "pixels are the latents of this model: there is no autoencoder, and a diffusers pipeline needs one",
            code="no-autoencoder",
            where=str(autoencoder),
            fix="export a model of a preset with an autoencoder",
        )
    tuned = load_finetuned(backbone, adapter, weights=weights)
    shift = timestep_shift(tuned)
    scheduler: Any = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipeline = DiTPipeline(_with_all_labels(tuned), _with_plain_latents(kl), scheduler)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        pipeline.save_pretrained(unfinished)
        _add(unfinished / "model_index.json", id2label={str(label): name for label, name in labels.items()})
        _add(unfinished / "transformer" / "config.json", **{TIMESTEP_SHIFT: shift})
        for name, text in texts.items():
            note = SHIFT_NOTE if name == CARD and shift != DIFFUSERS_SHIFT else ""
            (unfinished / name).write_text(text + note, encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return shift == DIFFUSERS_SHIFT


def _add(config: Path, **entries: Any) -> None:
    """Puts entries into a JSON file that save_pretrained leaves out."""
    config.write_text(json.dumps(json.loads(config.read_text()) | entries, indent=2) + "\n")


def _with_all_labels(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """The same model, its embedders untied, with 1,000 labels and the one for "no class" behind them; rows between are zero."""
    config: dict[str, Any] = dict(model.config)
    known = int(config["num_embeds_ada_norm"])
    if known > PIPELINE_CLASSES:
        what = f"the model knows {known} labels; DiTPipeline takes {PIPELINE_CLASSES} at most"
        raise StageError(what, code="out-of-range", where="export", fix="load it with DiTTransformer2DModel itself")
    names = [name for name in config if not name.startswith("_")]
    settings = {name: config[name] for name in names} | {
        "num_embeds_ada_norm": PIPELINE_CLASSES,
        "out_channels": model.out_channels,  # DiTPipeline compares it, and None is no number
    }
    wide = DiTTransformer2DModel(**settings)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, table in state.items():
        if name.endswith("class_embedder.embedding_table.weight"):
            state[name] = table.new_zeros(PIPELINE_CLASSES + 1, table.shape[1])
            state[name][:known], state[name][-1] = table[:known], table[known]
    wide.load_state_dict(state)
    return wide.eval()


@torch.no_grad()
def _with_plain_latents(kl: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder for standardised latents: mean and std of each channel move into the 1 x 1 convolutions.

    DiTPipeline knows one scaling factor alone.
    """
    config: Any = kl.config
    if config.latents_mean is None:
        return kl
    mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    settings = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    plain = AutoencoderKL(**settings | {"latents_mean": None, "latents_std": None, "scaling_factor": 1.0})
    plain.load_state_dict(kl.state_dict())
    encoded: Any = plain.quant_conv  # (2c, 2c, 1, 1): mean, then log-variance
    channels = len(mean)
    encoded.weight[:channels] /= std[:, None, None, None]
    encoded.bias[:channels] = (encoded.bias[:channels] - mean) / std
    encoded.bias[channels:] -= 2 * std.log()
    decoded: Any = plain.post_quant_conv
    decoded.bias += decoded.weight[:, :, 0, 0] @ mean
    decoded.weight *= std[None, :, None, None]
    return plain.eval()
