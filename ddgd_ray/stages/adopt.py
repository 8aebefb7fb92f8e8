"""Pre-trained weights from outside, checked once and put into the store: later stages read one layout, on any machine."""

import json
import re
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import AdoptSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import declared_timestep_shift, from_pretrained, load_dit, save_dit, set_timestep_shift
from ddgd_ray.stages.parts.original_dit import load_original

# where the hub's cache keeps one commit of a repository
_CACHED = re.compile(r"models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")


def run(spec: AdoptSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The number of parameters.

    Writes a folder in diffusers layout, and origin.json with the commit where the hub's cache tells it.

    inputs["weights"]: a folder in diffusers layout, or a checkpoint file in DiT's own layout.
    """
    torch.set_num_threads(ctx.num_threads)
    source = inputs["weights"]
    model = _autoencoder(source, out) if spec.part == "autoencoder" else _dit(spec, source, out)
    (out / "origin.json").write_text(json.dumps(_origin(source)) + "\n")
    return {"num_parameters": float(model)}


def _autoencoder(source: Path, out: Path) -> int:
    kl = from_pretrained(AutoencoderKL, source)
    kl.save_pretrained(out, safe_serialization=True)
    return sum(tensor.numel() for tensor in kl.parameters())


def _dit(spec: AdoptSpec, source: Path, out: Path) -> int:
    """The number of parameters of the DiT written to `out`.

    Raises StageError when `source` declares other timesteps than `spec`.
    """
    if source.is_file():
        model = load_original(source, spec.heads)
    else:
        declared = declared_timestep_shift(source)
        if declared is not None and declared != spec.timestep_shift:
            raise StageError(
                f"these weights were trained with timestep_shift {declared}, as their config.json says; the preset says "
                f"{spec.timestep_shift}",
                code="weights-misfit",
                where=str(source),
                fix=f"--set backbone.timestep_shift={declared}",
            )
        model = load_dit(source)
    set_timestep_shift(model, spec.timestep_shift)
    save_dit(model, out)
    return sum(tensor.numel() for tensor in model.parameters())


def _origin(source: Path) -> dict[str, str]:
    """Repository and commit of weights from the hub; empty for a local file or folder, which the key knows by its content."""
    found = _CACHED.search(source.as_posix())
    return {"repo": f"{found['owner']}/{found['name']}", "commit": found["commit"]} if found else {}
