"""A control set of real training images."""

from pathlib import Path

import numpy as np

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import SelectSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.distilled import write_set
from ddgd_ray.stages.images import Split, check_skipped, joined, list_splits, read_all, read_splits, record_skipped
from ddgd_ray.stages.readers import Listing


def run(spec: SelectSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes spec.ipc images a class, drawn without replacement; a smaller ipc is a prefix. `all` takes every one."""
    if spec.method == "all":
        (chosen,) = read_splits(spec.images, inputs["images"], "train", num_threads=ctx.num_threads)
        chosen = chosen.take(np.argsort(chosen.labels, kind="stable"))
    else:
        (train,) = list_splits(spec.images, inputs["images"], "train")
        drawn = [_drawn(spec, train, label, ctx) for label in range(len(spec.images.classes))]
        chosen = joined(drawn)
        check_skipped(spec.images, inputs["images"], chosen.skipped, len(chosen) + len(chosen.skipped))
    write_set(out, spec.images, chosen.images, chosen.labels.tolist(), chosen.names)
    return {"num_images": float(len(chosen))} | record_skipped(out, spec.images, chosen.skipped)


def _drawn(spec: SelectSpec, train: Listing, label: int, ctx: Context) -> Split:
    """The first spec.ipc images of the class, in random order, that can be decoded; nothing else is decoded."""
    mine = np.flatnonzero(train.labels == label)
    order = np.random.default_rng([spec.seed, label]).permutation(mine)
    split = read_all(spec.images, train.take(order[: spec.ipc]), num_threads=ctx.num_threads)
    taken = spec.ipc
    while len(split) < spec.ipc and taken < len(order):  # the next ones stand in for those that were skipped
        more = order[taken : taken + spec.ipc - len(split)]
        split = joined([split, read_all(spec.images, train.take(more), num_threads=ctx.num_threads)])
        taken += len(more)
    if len(split) < spec.ipc:
        raise StageError(
            f"ipc {spec.ipc} is more than the {len(split)} training images of class {spec.images.classes[label]}",
            where="select.ipc",
            fix=f"use ipc {len(split)} or less",
        )
    return split
