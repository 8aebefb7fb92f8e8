"""The memory losses (paper Eq. 4-6).

Shapes: B batch, S slots, P classes of the batch in ascending order, D flat latent.
"""

import torch
from torch import Tensor


def per_sample_extreme(cosine_BS: Tensor, valid_BS: Tensor, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Greatest (or least) cosine of each latent to its class's memory, (B,), and whether that memory holds a row, (B,) bool.

    A latent without rows gets 0.
    """
    masked_BS = cosine_BS.masked_fill(~valid_BS, -torch.inf if largest else torch.inf)
    extreme_B = masked_BS.max(dim=1).values if largest else masked_BS.min(dim=1).values
    has_row_B = valid_BS.any(dim=1)
    return torch.where(has_row_B, extreme_B, 0.0), has_row_B


def per_class(
    extreme_B: Tensor, has_row_B: Tensor, member_PB: Tensor, *, largest: bool, reduction: str = "joint"
) -> tuple[Tensor, Tensor]:
    """One value for each class of the batch, (P,), and whether it has one, (P,) bool; a class without gets 0.

    member_PB: which samples belong to which class. reduction: `joint` takes the one extreme pair of the class, the gradient
    flows to it alone; `per_sample` takes the mean over the class's samples.
    """
    member_PB = member_PB & has_row_B[None, :]
    has_value_P = member_PB.any(dim=1)
    if reduction == "per_sample":
        value_P = torch.where(member_PB, extreme_B[None, :], 0.0).sum(dim=1) / member_PB.sum(dim=1).clamp(min=1)
    else:
        masked_PB = torch.where(member_PB, extreme_B[None, :], -torch.inf if largest else torch.inf)
        value_P = masked_PB.max(dim=1).values if largest else masked_PB.min(dim=1).values
    return torch.where(has_value_P, value_P, 0.0), has_value_P


def class_weights(num_present: int, aggregation: str, like: Tensor) -> Tensor:
    """The weight of each class of the batch, (P,): 1/P, so that classes with an empty memory count in the divisor.

    `cumulative` multiplies class k of n (ascending label, from 1) by n - k + 1: the public code of arXiv 2505.19469 adds the
    running sum inside its class loop.
    """
    weights = torch.full((num_present,), 1.0 / num_present, dtype=like.dtype, device=like.device)
    if aggregation == "cumulative":
        weights = weights * torch.arange(num_present, 0, -1, dtype=like.dtype, device=like.device)
    return weights


def real_loss(min_cosine_P: Tensor, has_value_P: Tensor, weights_P: Tensor) -> Tensor:
    """L_real, which raises the similarity to the least similar real latent (paper Eq. 4), weighted over classes."""
    return (weights_P * torch.where(has_value_P, 1 - min_cosine_P, 0.0)).sum()


def gen_loss(max_cosine_P: Tensor, has_value_P: Tensor, weights_P: Tensor) -> Tensor:
    """L_gen, which lowers the similarity to the most similar generated latent (paper Eq. 5), weighted over classes."""
    return (weights_P * torch.where(has_value_P, max_cosine_P, 0.0)).sum()
