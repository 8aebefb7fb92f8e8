"""RDED's set: of each training image the crop that the teacher is surest of, the surest crops of a class in mosaics.

Shapes: N images, A crops of each, T tiles along a side, C channels, S side in pixels.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgd_ray.errors import StageError
from ddgd_ray.method.augment import normalize, resize_crops
from ddgd_ray.method.mosaic import crop_boxes, mosaic, realism, shrunk, surest_crops
from ddgd_ray.spec.pick import PickSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.classifier import load_network, spec_of
from ddgd_ray.stages.parts.images import Skipped, Split, check_skipped, joined, list_splits, read_all

SCALE = (0.08, 1.0)  # share of the area: that of RandomResizedCrop, as RDED's code leaves it
BATCH = 64  # a pass's crops; not ctx.chunk: the last digits of a score depend on it


@torch.inference_mode()
def mosaics(spec: PickSpec, inputs: dict[str, Path], ctx: Context) -> tuple[Split, list[str]]:
    """The pictures, class by class, and of each where its crops come from.

    Candidates are drawn by (seed, class). Departures from RDED's code: a crop is scored at the size of the whole image, not at
    that of its tile, and a tile is the mean of what it covers.
    """
    (train,) = list_splits(spec.images, inputs["images"], "train")
    teacher = load_network(inputs["teacher"], "last", ctx.device)
    of_teacher = spec_of(inputs["teacher"])
    seen = of_teacher.protocol.size or of_teacher.images.size
    wanted = spec.ipc * spec.tiles**2
    parts, origins, skipped = [], list[str](), list[Skipped]()
    for label, name in enumerate(spec.images.classes):
        mine = np.flatnonzero(train.labels == label)
        drawn = np.random.default_rng([spec.seed, label]).permutation(mine)[: spec.candidates]
        split = read_all(spec.images, train.take(np.sort(drawn)), num_threads=ctx.num_threads)
        skipped += split.skipped
        if len(split) < wanted:
            raise StageError(
                f"ipc {spec.ipc} needs {wanted} crops, one an image; {len(split)} images of class {name} are looked at",
                code="out-of-range",
                where="select.candidates" if len(mine) >= wanted else "select.tiles",
                fix="raise select.candidates" if len(mine) >= wanted else "lower select.tiles or ipc",
            )
        generator = torch.Generator().manual_seed(int(np.random.default_rng([spec.seed, label, 1]).integers(2**62)))
        crops, order = _surest(spec, split, label, teacher, seen, generator, ctx)
        tiles = shrunk(crops[order[:wanted]], spec.images.size // spec.tiles)
        pictures = (mosaic(tiles, spec.images.size) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        names = [split.names[row] for row in order[:wanted].tolist()]
        per_picture = spec.tiles**2
        origins += [f"crops of {', '.join(names[at : at + per_picture])}" for at in range(0, wanted, per_picture)]
        parts.append(Split(pictures.cpu().numpy(), np.full(len(pictures), label, np.int64), []))
        ctx.report(label + 1, {"classes": float(label + 1)})
    check_skipped(spec.images, inputs["images"], skipped, len(origins) * spec.tiles**2 + len(skipped))
    chosen = joined(parts)
    return Split(chosen.images, chosen.labels, [], skipped), origins


def _surest(
    spec: PickSpec, split: Split, label: int, teacher: nn.Module, seen: int, generator: torch.Generator, ctx: Context
) -> tuple[Tensor, Tensor]:
    """The best crop of each image, (N, C, S, S) in [0, 1], and the images by its score."""
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    num, size = len(images), spec.images.size
    boxes = crop_boxes(num * spec.crops, size, scale=SCALE, generator=generator).unflatten(0, (num, spec.crops))
    scores = []
    for crop in range(spec.crops):
        found = []
        for some, at in zip(images.split(BATCH), boxes[:, crop].split(BATCH), strict=True):
            cut = _cut(some, at).to(ctx.device)
            logits = teacher(normalize(F.interpolate(cut, size=(seen, seen), mode="bilinear") if seen != size else cut))
            found.append(realism(logits, torch.full((len(cut),), label, device=ctx.device)).cpu())
        scores.append(torch.cat(found))
    best, order = surest_crops(torch.stack(scores, dim=1))
    return _cut(images, boxes[torch.arange(num), best]), order


def _cut(images: Tensor, boxes: Tensor) -> Tensor:
    return resize_crops(images, boxes, mirrored=torch.zeros(len(images), dtype=torch.bool), size=images.shape[-1])
