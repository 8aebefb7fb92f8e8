"""RDED (Sun et al. 2024, arXiv 2312.03526): of real images the crops that a teacher is surest of, several in one picture.

Shapes: N images, A crops of each, B batch, C channels, S side in pixels, Y classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def realism(logits_BY: Tensor, labels_B: Tensor) -> Tensor:
    """(B,): minus the cross-entropy of the true class, RDED's score of a crop (its Eq. 6); greater is surer."""
    return -F.cross_entropy(logits_BY.double(), labels_B, reduction="none")


def surest_crops(score_NA: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image its best crop (N,) int64, the first on a tie, and the images by that crop's score, (N,) falling."""
    best_N = score_NA.argmax(dim=1)
    value_N = score_NA.gather(1, best_N[:, None])[:, 0]
    return best_N, value_N.argsort(descending=True, stable=True)


def mosaic(crops: Tensor, side: int) -> Tensor:
    """Pictures (M, C, side, side) of f x f crops each, row by row, M = len(crops) / f^2; crops: (M f^2, C, t, t), f t = side.

    Raises ValueError where the tiles do not fill the pictures.
    """
    tile = crops.shape[-1]
    factor, rest = divmod(side, tile)
    if rest or len(crops) % factor**2:
        raise ValueError(f"{len(crops)} tiles of {tile} px: expected whole pictures of {side} px")
    grid = crops.unflatten(0, (-1, factor, factor))  # (M, row, column, C, t, t)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def shrunk(crops: Tensor, size: int) -> Tensor:
    """(B, C, size, size) by area: each pixel the mean of what it covers, so that a tile keeps its brightness."""
    return F.interpolate(crops, size=(size, size), mode="area")


def crop_boxes(num: int, size: int, *, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Square boxes (num, 4) float32 of top, left, height, width: torchvision's RandomResizedCrop with ratio 1, as RDED's code.

    The area's share is uniform in `scale`.
    """
    uniform = torch.rand(num, 3, generator=generator, dtype=torch.float64)
    side = ((scale[0] + (scale[1] - scale[0]) * uniform[:, 0]).sqrt() * size).round().clamp(1, size)
    offsets = (uniform[:, 1:] * (size - side + 1)[:, None]).floor()
    return torch.cat([offsets, side[:, None], side[:, None]], dim=1).float()
