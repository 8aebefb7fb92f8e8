"""Each class as a Gaussian at the noise level where a sampling starts: its latents, taken there by DDIM inversion.

Shapes: Y classes, N latents of a class, B batch, D = c s s flat latent, c latent channels, s side.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddgd_ray.method.dit import denoise
from ddgd_ray.method.inversion import Moments, inverted, moments
from ddgd_ray.method.noise import linear_schedule
from ddgd_ray.spec.ways import InvertSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.adapters import load_finetuned
from ddgd_ray.stages.parts.images import generator_labels
from ddgd_ray.stages.parts.latents import LatentCache

FILE = "moments.safetensors"
BATCH = 64  # not ctx.chunk: the last digits depend on it


@torch.inference_mode()
def run(spec: InvertSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes moments.safetensors: mean, std and skew, each (Y, D) float64, over the class's latents at the level.

    The noise is that of the class's own label, unguided: guidance has no inverse that stays near the data.
    """
    torch.set_num_threads(ctx.num_threads)
    cache = LatentCache(inputs["latents"])
    model = load_finetuned(inputs["backbone"], inputs["adapter"], weights=spec.weights).to(ctx.device)
    channels, found, done = cache.latent_shape[0], list[Moments](), 0
    for label in generator_labels(spec.images):
        parts = []
        for ids in (cache.labels == label).nonzero()[:, 0].split(BATCH):

            def noise_in(z: Tensor, t_B: Tensor, label: int = label) -> Tensor:
                return denoise(model, z, t_B, torch.full_like(t_B, label))[:, :channels]

            z0 = cache.means(ids).to(ctx.device)
            parts.append(inverted(noise_in, linear_schedule(), z0, strength=spec.strength, num_steps=spec.steps).cpu())
            done += len(ids)
            ctx.report(done, {"latents": float(done)})
        found.append(moments(torch.cat(parts).flatten(1)))
    save_file({name: torch.stack([getattr(one, name) for one in found]) for name in Moments._fields}, out / FILE)
    return {"num_latents": float(done), "mean_std": float(torch.stack([one.std_D for one in found]).mean())}


def read_moments(folder: Path) -> list[Moments]:
    """What `run` wrote, class by class."""
    tensors = load_file(folder / FILE)
    return [Moments(*rows) for rows in zip(*(tensors[name] for name in Moments._fields), strict=True)]
