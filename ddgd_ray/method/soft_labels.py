"""Labels that a teacher gives, stored beside the images: few numbers an image, or as many as there are classes.

Shapes: N images, B batch, Y classes, k kept classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def softened(logits_NY: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) (Hinton et al. 2015), (N, Y) float32."""
    return F.softmax(logits_NY.float() / temperature, dim=1)


def kept(logits_NY: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest logits of each image, falling, (N, k), and their classes, (N, k) int64; the lower class first on a tie.

    Raises ValueError unless 1 <= k <= Y.
    """
    num_classes = logits_NY.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"labels of {num_classes} classes: expected 1 to {num_classes} kept, got {k}")
    order = logits_NY.argsort(dim=1, descending=True, stable=True)[:, :k]
    return logits_NY.gather(1, order), order


def spread(values_Nk: Tensor, classes_Nk: Tensor, rest_N: Tensor, num_classes: int) -> Tensor:
    """The logits (N, Y) that `kept` values stand for: each class that was left out has `rest_N`.

    With rest_N = `rest_of` the same, the softmax at its temperature keeps the mass of the classes left out.
    """
    full = rest_N[:, None].expand(-1, num_classes).clone()
    return full.scatter_(1, classes_Nk, values_Nk)


def rest_of(logits_NY: Tensor, classes_Nk: Tensor, temperature: float) -> Tensor:
    """(N,): the equal logit that gives the classes left out the mass that they have together at this temperature.

    -inf where none is left out.
    """
    num_left = logits_NY.shape[1] - classes_Nk.shape[1]
    left = logits_NY.scatter(1, classes_Nk, -torch.inf)
    if not num_left:
        return left.amax(dim=1)
    return temperature * ((left / temperature).logsumexp(dim=1) - math.log(num_left))


def mixed(own_BY: Tensor, partner_BY: Tensor, kept_share: Tensor) -> Tensor:
    """kept_share own + (1 - kept_share) partner, kept_share 0-d or (B, 1): a CutMix image's target (Yun et al. 2019, Eq. 1)."""
    return kept_share * own_BY + (1 - kept_share) * partner_BY


def divergence(logits_BY: Tensor, target_BY: Tensor, temperature: float) -> Tensor:
    """KL(target || softmax(logits / T)) of each image, (B,); target: probabilities at that temperature."""
    guess_BY = F.log_softmax(logits_BY / temperature, dim=1)
    return F.kl_div(guess_BY, target_BY, reduction="none").sum(dim=1)


def num_bytes(num_images: int, num_classes: int, k: int, value_bytes: int) -> int:
    """What stored labels weigh: k values and the rest's, and for k < Y the classes' numbers, 1, 2 or 4 bytes each."""
    if k == num_classes:
        return num_images * num_classes * value_bytes
    class_bytes = 1 if num_classes <= 256 else 2 if num_classes <= 32768 else 4
    return num_images * (k * (value_bytes + class_bytes) + value_bytes)
