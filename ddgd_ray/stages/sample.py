"""Draw the distilled set from the fine-tuned model."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddgd_ray.method.noise import linear_schedule
from ddgd_ray.method.sampling import noise_stream, sample
from ddgd_ray.spec.stages import SampleSpec
from ddgd_ray.stages.adapters import load_finetuned
from ddgd_ray.stages.backbone import Autoencoder
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.distilled import write_set
from ddgd_ray.stages.images import generator_labels


def run(spec: SampleSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes spec.ipc images a class. Each depends on (seed, class, index) alone, not on the batch it was drawn in."""
    torch.set_num_threads(ctx.num_threads)
    model = load_finetuned(inputs["backbone"], inputs["adapter"], weights=spec.weights).to(ctx.device)
    autoencoder = Autoencoder.load(inputs["autoencoder"], ctx.device)
    config = model.config
    side = int(config["sample_size"])

    def denoise(z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        predicted: Tensor = model(z_t, t, labels, return_dict=False)[0]
        return predicted

    wanted = [(label, index) for label in range(len(spec.images.classes)) for index in range(spec.ipc)]
    known = generator_labels(spec.images)
    decoded = []
    for start in range(0, len(wanted), ctx.chunk):
        part = wanted[start : start + ctx.chunk]
        latents = sample(
            denoise,
            linear_schedule(),
            torch.tensor([known[label] for label, _ in part], device=ctx.device),
            [noise_stream(spec.seed, spec.images.classes[label], index) for label, index in part],
            latent_shape=(int(config["in_channels"]), side, side),
            sampler=spec.sampler,
            num_steps=spec.steps,
            guidance=spec.guidance,
            cfg_channels=spec.cfg_channels,
            null_label=int(config["num_embeds_ada_norm"]),
        )
        decoded.append(autoencoder.decode(latents).cpu().numpy())
        ctx.report(start + len(part), {"num_images": start + len(part)})
    origins = [f"seed {spec.seed}, class {spec.images.classes[label]}, index {index}" for label, index in wanted]
    write_set(out, spec.images, np.concatenate(decoded), [label for label, _ in wanted], origins)
    return {"num_images": float(len(wanted))}
