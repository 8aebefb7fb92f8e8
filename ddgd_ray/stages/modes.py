"""The modes of each class: k-means centres of its latents, the real latents nearest to them, tangent spaces around them.

Shapes: Y classes, K centres, D = c s s flat latent, d tangent directions, c latent channels, s side of the latent.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from ddgd_ray.errors import StageError
from ddgd_ray.method.guidance import tangent_directions
from ddgd_ray.spec.ways import ModesSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.images import generator_labels
from ddgd_ray.stages.parts.latents import LatentCache

FILE = "modes.safetensors"
NUM_STARTS = 10  # of k-means++, the best of which counts: scikit-learn's own number until version 1.4, and MGD3's


class Modes(NamedTuple):
    """The modes of all classes, clusters by falling size.

    centres: (Y, K, c, s, s) float32. nearest: the same, the real latent nearest to each. weights_YK: share of the class's
    latents. rows_YK: int64, the nearest one's row of the latent cache. tangents: (Y, K, d, D) float32, orthonormal; d may be 0.
    """

    centres: Tensor
    nearest: Tensor
    weights_YK: Tensor
    rows_YK: Tensor
    tangents: Tensor


def run(spec: ModesSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes modes.safetensors. inertia: mean squared distance of a latent to its centre, over that to its class's mean."""
    torch.set_num_threads(ctx.num_threads)
    cache = LatentCache(inputs["latents"])
    found, within, around = [], 0.0, 0.0
    for label, name in zip(generator_labels(spec.images), spec.images.classes, strict=True):
        rows = (cache.labels == label).nonzero()[:, 0]
        if len(rows) < max(spec.num, spec.tangents + 1):
            raise StageError(
                f"{spec.num} modes with {spec.tangents} tangents need more than the {len(rows)} latents of class {name}",
                code="out-of-range",
                where="sample.modes.num",
                fix=f"use {len(rows)} or fewer",
            )
        latents = cache.means(rows)
        own, inertia = _of_class(spec, latents, rows)
        found.append(own)
        within += inertia
        around += float((latents.double() - latents.double().mean(dim=0)).square().sum())
        ctx.report(len(found), {"classes": float(len(found))})
    stacked = {name: torch.stack([getattr(one, name) for one in found]).contiguous() for name in Modes._fields}
    save_file(stacked, out / FILE)
    return {"num_modes": float(spec.num), "inertia": within / around if around else 0.0}


def _of_class(spec: ModesSpec, latents: Tensor, rows: Tensor) -> tuple[Modes, float]:
    """The modes of one class, without the first dimension, and the sum of squared distances to the centres."""
    flat_ND = latents.flatten(1).double()
    with threadpool_limits(1):  # each thread adds up a part: their number would show in the last digits
        fitted = KMeans(spec.num, n_init=NUM_STARTS, random_state=spec.seed).fit(flat_ND.numpy())
    sizes_K = np.bincount(fitted.labels_, minlength=spec.num)
    order = np.argsort(-sizes_K, kind="stable")
    centres_KD = torch.from_numpy(fitted.cluster_centers_[order])
    nearest_K = torch.cdist(centres_KD, flat_ND, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
    tangents = [tangent_directions(flat_ND, c_D, radius=spec.radius, num=spec.tangents) for c_D in centres_KD if spec.tangents]
    shape = latents.shape[1:]
    own = Modes(
        centres_KD.float().unflatten(1, shape),
        latents[nearest_K],
        torch.from_numpy(sizes_K[order] / len(rows)).float(),
        rows[nearest_K],
        torch.stack(tangents).float() if tangents else torch.empty(spec.num, 0, flat_ND.shape[1]),
    )
    return own, float(fitted.inertia_)


def read_modes(folder: Path, device: str = "cpu") -> Modes:
    """What `run` wrote."""
    return Modes(**load_file(folder / FILE, device=device))
