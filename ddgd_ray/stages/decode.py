"""Test and validation images, decoded once for all evaluators.

Shapes: N images, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

from pathlib import Path

import numpy as np

from ddgd_ray.spec.evaluation import DecodeSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.images import Split, check_classes, check_skipped, list_splits, read_all, record_skipped

SPLITS = ("test", "validation")


def run(spec: DecodeSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The numbers of images. Writes SPLIT.npy (N, S, S, C) uint8 and SPLIT-labels.npy (N,) int64, SPLIT test and validation."""
    fitted = spec.images.model_copy(update={"size": spec.size})
    listings = list_splits(spec.images, inputs["images"], *SPLITS)
    splits = [
        read_all(fitted, listing.for_classifier(spec.resize, spec.size), num_threads=ctx.num_threads) for listing in listings
    ]
    skipped = [one for split in splits for one in split.skipped]
    check_skipped(spec.images, inputs["images"], skipped, sum(map(len, listings)))
    for name, listing, split in zip(SPLITS, listings, splits, strict=True):
        check_classes(spec.images, inputs["images"], name, listing.labels, split.labels)
        np.save(out / f"{name}.npy", split.images)
        np.save(out / f"{name}-labels.npy", split.labels)
    counts = {f"num_{name}": float(len(split)) for name, split in zip(SPLITS, splits, strict=True)}
    return counts | record_skipped(out, spec.images, skipped)


def read_decoded(folder: Path, split: str) -> Split:
    """The images that `run` wrote of `test` or `validation`, mapped into memory: an image is read when it is used."""
    labels = np.load(folder / f"{split}-labels.npy")
    return Split(np.load(folder / f"{split}.npy", mmap_mode="r" if len(labels) else None), labels, [])
