"""A set picked from a pool by a rule; images per class are exact, and the record says which pool image became which."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddgd_ray.errors import StageError
from ddgd_ray.method.coresets import farthest_first, herding, k_center
from ddgd_ray.method.scores import by_score
from ddgd_ray.spec.pick import FEATURE_RULES, PickSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.distilled import write_set
from ddgd_ray.stages.parts.images import record_skipped
from ddgd_ray.stages.parts.mosaics import mosaics
from ddgd_ray.stages.parts.pools import origins_of, read_pools, read_rows
from ddgd_ray.stages.parts.readers import Int64


def run(spec: PickSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes spec.ipc images a class; a smaller ipc is a prefix. real_share: share of the set that is real images.

    Inputs: `generated` and `real`, the pools, with `generated_features` and `real_features` or with `scores`; for rded `images`
    and `teacher`.
    """
    torch.set_num_threads(ctx.num_threads)
    if spec.rule == "rded":
        pictures, origins = mosaics(spec, inputs, ctx)
        write_set(out, spec.images, pictures.images, pictures.labels.tolist(), origins)
        return {"num_images": float(len(pictures)), "real_share": 1.0} | record_skipped(out, spec.images, pictures.skipped)
    pool = read_pools(inputs, spec.images, num_threads=ctx.num_threads)
    rows = np.concatenate([_picked(spec, inputs, pool.labels, label) for label in range(len(spec.images.classes))])
    chosen = pool.take(rows)
    write_set(out, spec.images, chosen.images, chosen.labels.tolist(), origins_of(inputs, chosen.names))
    num_real = sum(name.startswith("real/") for name in chosen.names)
    return {
        "num_images": float(len(chosen)),
        "num_pool": float(len(pool)),
        "real_share": num_real / len(chosen),
    }


def _picked(spec: PickSpec, inputs: dict[str, Path], labels: Int64, label: int) -> Int64:
    """The rows of one class in the order of the picks; those of a pool that is no larger than the set in their own order."""
    mine = np.flatnonzero(labels == label)
    if len(mine) < spec.ipc:
        raise StageError(
            f"ipc {spec.ipc} is more than the {len(mine)} pool images of class {spec.images.classes[label]}",
            code="out-of-range",
            where="select.pool",
            fix=f"use ipc {len(mine)} or less, or a larger pool",
        )
    if len(mine) == spec.ipc:
        return mine
    return mine[_ranked(spec, inputs, mine, label).numpy()]


def _ranked(spec: PickSpec, inputs: dict[str, Path], mine: Int64, label: int) -> Tensor:
    """The first spec.ipc places of `mine`, by the rule. What is random goes by (seed, class)."""
    rng = np.random.default_rng([spec.seed, label])
    if spec.rule == "random":
        return torch.from_numpy(rng.permutation(len(mine))[: spec.ipc])
    if spec.rule in FEATURE_RULES:
        own = torch.from_numpy(read_rows(inputs, "features")[mine])
        if spec.rule == "herding":
            return herding(own, spec.ipc, normalized=spec.normalized)
        if spec.rule == "farthest":
            return farthest_first(own, spec.ipc)
        return k_center(own, spec.ipc, first=int(rng.integers(len(mine))))
    score, is_right = (torch.from_numpy(np.load(inputs["scores"] / f"{name}.npy")[mine]) for name in ("scores", "right"))
    # CaO2 keeps what the network gets right, whichever end it then takes
    first = is_right if spec.rule == "confidence" else None
    return by_score(score, spec.ipc, descending=spec.order == "descending", first_N=first)
