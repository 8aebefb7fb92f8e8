"""Pools of images that a set is picked from: samples, real images, or both, one after the other.

Shapes: N images of all pools, S side in pixels, C channels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.distilled import origins, read_set
from ddgd_ray.stages.parts.images import Split, joined
from ddgd_ray.stages.parts.readers import Int64

KINDS = ("generated", "real")


def read_pools(inputs: Mapping[str, Path], images: ImagesSpec, *, size: int = 0, num_threads: int = 1) -> Split:
    """All images of the pools among the inputs, names `KIND/CLASS/FILE`; a pool's classes one after the other."""
    splits = []
    for kind in (kind for kind in KINDS if kind in inputs):
        split = read_set(inputs[kind], images, 0, size=size, num_threads=num_threads)
        splits.append(Split(split.images, split.labels, [f"{kind}/{name}" for name in split.names]))
    return joined(splits)


def read_rows(inputs: Mapping[str, Path], name: str) -> Int64 | np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """An array that stage features wrote of each pool, the pools one after the other."""
    return np.concatenate([np.load(inputs[f"{kind}_features"] / f"{name}.npy") for kind in KINDS if kind in inputs])


def origins_of(inputs: Mapping[str, Path], names: list[str]) -> list[str]:
    """`KIND/CLASS/FILE, which is ORIGIN` for each name, with what the pool itself says of the image."""
    told = {f"{kind}/{name}": origin for kind in KINDS if kind in inputs for name, origin in origins(inputs[kind]).items()}
    return [f"{name}, which is {told[name]}" for name in names]
