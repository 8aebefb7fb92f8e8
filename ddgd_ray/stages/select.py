"""A control set of real training images: drawn, picked by their features, or all of them."""

from pathlib import Path

import numpy as np
import torch

from ddgd_ray.errors import StageError
from ddgd_ray.method.coresets import herding, k_center
from ddgd_ray.spec.evaluation import SelectSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.distilled import write_set
from ddgd_ray.stages.parts.images import Split, check_skipped, joined, list_splits, read_all, read_splits, record_skipped
from ddgd_ray.stages.parts.readers import Int64, Listing


def run(spec: SelectSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The number of images. Writes spec.ipc images a class, of which a smaller ipc is a prefix; `all` takes every image."""
    if spec.method == "all":
        (chosen,) = read_splits(spec.images, inputs["images"], "train", num_threads=ctx.num_threads)
        chosen = chosen.take(np.argsort(chosen.labels, kind="stable"))
    else:
        (train,) = list_splits(spec.images, inputs["images"], "train")
        ranked = _by_features(spec, inputs["features"]) if "features" in inputs else _at_random(spec, train)
        chosen = joined([_decoded(spec, train, label, order, ctx) for label, order in enumerate(ranked)])
        check_skipped(spec.images, inputs["images"], chosen.skipped, len(chosen) + len(chosen.skipped))
    write_set(out, spec.images, chosen.images, chosen.labels.tolist(), chosen.names)
    return {"num_images": float(len(chosen))} | record_skipped(out, spec.images, chosen.skipped)


def _at_random(spec: SelectSpec, train: Listing) -> list[Int64]:
    """Every row of each class, in random order: a later row stands in for one that cannot be decoded."""
    rows = [np.flatnonzero(train.labels == label) for label in range(len(spec.images.classes))]
    return [np.random.default_rng([spec.seed, label]).permutation(mine) for label, mine in enumerate(rows)]


def _by_features(spec: SelectSpec, folder: Path) -> list[Int64]:
    """Rows of each class in the order of the picks. k-center starts at an image that the seed draws."""
    features, labels, rows = (np.load(folder / f"{name}.npy") for name in ("features", "labels", "rows"))
    ranked = []
    for label, name in enumerate(spec.images.classes):
        mine = np.flatnonzero(labels == label)
        if len(mine) < spec.ipc:
            raise _too_many(spec, len(mine), name)
        own = torch.from_numpy(features[mine])
        if spec.method in ("herding", "herding_idc"):
            picked = herding(own, spec.ipc, normalized=spec.method == "herding")
        else:
            first = int(np.random.default_rng([spec.seed, label]).integers(len(mine)))
            picked = k_center(own, spec.ipc, first=first)
        ranked.append(rows[mine[picked.numpy()]])
    return ranked


def _decoded(spec: SelectSpec, train: Listing, label: int, order: Int64, ctx: Context) -> Split:
    """The first spec.ipc images of `order` that can be decoded; nothing else is decoded."""
    split = read_all(spec.images, train.take(order[: spec.ipc]), num_threads=ctx.num_threads)
    taken = spec.ipc
    while len(split) < spec.ipc and taken < len(order):  # the next ones stand in for those that were skipped
        more = order[taken : taken + spec.ipc - len(split)]
        split = joined([split, read_all(spec.images, train.take(more), num_threads=ctx.num_threads)])
        taken += len(more)
    if len(split) < spec.ipc:
        raise _too_many(spec, len(split), spec.images.classes[label])
    return split


def _too_many(spec: SelectSpec, available: int, name: str) -> StageError:
    return StageError(
        f"ipc {spec.ipc} is more than the {available} training images of class {name}",
        where="select.ipc",
        fix=f"use ipc {available} or less",
    )
