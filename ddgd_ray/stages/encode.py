"""The latent cache: each training image is encoded once, not once a step.

Shapes: N images, 2 image and mirror image, 2c posterior mean then log-variance, s side of the latent.
"""

from pathlib import Path

import numpy as np
import torch

from ddgd_ray.spec.stages import EncodeSpec
from ddgd_ray.stages.backbone import Autoencoder, to_unit_range
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.images import generator_labels, read_splits


def run(spec: EncodeSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes posterior.npy (N, 2, 2c, s, s) float16 and labels.npy (N,) int64, labels as the generative model knows them."""
    torch.set_num_threads(ctx.num_threads)
    (train,) = read_splits(spec.images, inputs["images"], "train")
    autoencoder = Autoencoder.load(inputs["autoencoder"], ctx.device)
    np.save(out / "labels.npy", np.array(generator_labels(spec.images))[train.labels])
    cache = None
    for start in range(0, len(train), ctx.chunk):
        images = to_unit_range(torch.from_numpy(train.images[start : start + ctx.chunk])).to(ctx.device)
        both = torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)  # a mirrored latent is not the mirror's latent
        packed = torch.cat(autoencoder.posterior(both), dim=1).unflatten(0, (-1, 2)).to(torch.float16).cpu().numpy()
        if cache is None:
            shape = (len(train), *packed.shape[1:])
            cache = np.lib.format.open_memmap(out / "posterior.npy", mode="w+", dtype=np.float16, shape=shape)
        cache[start : start + len(packed)] = packed
    assert cache is not None
    cache.flush()
    return {"num_images": float(len(train)), "cache_bytes": float(cache.nbytes)}
