"""A control set of real training images."""

from pathlib import Path

import numpy as np

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import SelectSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.distilled import write_set
from ddgd_ray.stages.images import read_splits


def run(spec: SelectSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes spec.ipc images a class, drawn without replacement; a smaller ipc is a prefix. `all` takes every one."""
    (train,) = read_splits(spec.images, inputs["images"], "train")
    rows: list[int] = []
    for label, name in enumerate(spec.images.classes):
        mine = np.flatnonzero(train.labels == label)
        if spec.method == "random":
            if spec.ipc > len(mine):
                raise StageError(
                    f"ipc {spec.ipc} is more than the {len(mine)} training images of class {name}",
                    where="select.ipc",
                    fix=f"use ipc {len(mine)} or less",
                )
            mine = np.random.default_rng([spec.seed, label]).permutation(mine)[: spec.ipc]
        rows.extend(mine.tolist())
    chosen = train.take(np.array(rows, dtype=np.int64))
    write_set(out, spec.images, chosen.images, chosen.labels.tolist(), chosen.names)
    return {"num_images": float(len(chosen))}
