"""Augmentation of a whole batch where it lies, each image with parameters of its own.

Shapes: B batch, C channels, S side in pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def random_shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to `max_shift` pixels in both directions; the edge is filled with the image's least value."""
    size = images.shape[-1]
    fill = images.amin(dim=(1, 2, 3), keepdim=True)
    padded = F.pad(images - fill, (max_shift,) * 4) + fill
    offsets = torch.randint(2 * max_shift + 1, (2, len(images)), generator=generator).to(images.device)
    span = torch.arange(size, device=images.device)
    rows, columns = offsets[0][:, None] + span, offsets[1][:, None] + span
    picked = padded[torch.arange(len(images), device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def cutmix(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """CutMix with beta = 1: one box for the batch (Yun et al. 2019). Returns images, partner of each (B,), share kept."""
    size = images.shape[-1]
    kept = float(torch.rand(1, generator=generator))  # Beta(1, 1) is uniform
    side = round(size * (1 - kept) ** 0.5)
    center = torch.randint(size, (2,), generator=generator)
    low, high = (center - side // 2).clamp(0, size), (center + (side + 1) // 2).clamp(0, size)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = images.clone()
    (top, left), (bottom, right) = low.tolist(), high.tolist()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / size**2
