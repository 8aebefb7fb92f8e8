"""Rows of one class that stand for it, in the order they are picked: a smaller selection is a prefix of a larger one.

Shapes: N rows, F features. Computed in float64 on the device of the features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_TIE = 1e-12  # scores nearer than this part of their scale are equal: even products of equal rows differ by rounding


@torch.no_grad()
def herding(features_NF: Tensor, num: int, *, normalized: bool = True) -> Tensor:
    """Rows whose running mean stays nearest to the mean of all (Welling 2009; iCaRL, Alg. 4), without replacement.

    Rows are L2-normalised first, as in iCaRL, unless `normalized` is False, as in IDC's code; a row of zeros stays one.
    Departure: means are not normalised again, so that selections match how far rows spread and not their direction alone.
    Returns (num,) int64; on a tie, the lowest index. Raises ValueError unless 1 <= num <= N.
    """
    _check(features_NF, num)
    unit_NF = features_NF.double()
    if normalized:
        unit_NF = F.normalize(unit_NF, dim=1)
    square_N = unit_NF.square().sum(dim=1)
    slack = square_N.new_tensor(_TIE) if normalized else _TIE * square_N.max()
    mean_F = unit_NF.mean(dim=0)
    behind_F = torch.zeros_like(mean_F)  # n mean - sum of the n - 1 picked
    is_picked_N = torch.zeros_like(square_N, dtype=torch.bool)
    picks = []
    for _ in range(num):
        behind_F = behind_F + mean_F
        gain_N = 2 * (unit_NF @ behind_F) - square_N  # |behind|^2 - |behind - row|^2
        picks.append(_first_of_greatest(gain_N, is_picked_N, slack=slack))
        is_picked_N[picks[-1]] = True
        behind_F = behind_F - unit_NF[picks[-1]]
    return torch.stack(picks)


@torch.no_grad()
def k_center(features_NF: Tensor, num: int, *, first: int) -> Tensor:
    """Rows picked by greedy k-center (Sener & Savarese 2018, Alg. 1): each is the one farthest from its nearest pick.

    Distances are Euclidean. first: the row to start from. A row is at most twice as far from its nearest pick as the
    best `num` rows allow. Returns (num,) int64; on a tie, the lowest index. Raises ValueError unless 1 <= num <= N and
    0 <= first < N.
    """
    _check(features_NF, num)
    if not 0 <= first < len(features_NF):
        raise ValueError(f"k_center: expected a first row in 0..{len(features_NF) - 1}, got {first}")
    exact_NF = features_NF.double()
    is_picked_N = torch.zeros(len(exact_NF), dtype=torch.bool, device=exact_NF.device)
    square_N = exact_NF.new_full((len(exact_NF),), torch.inf)  # to the nearest pick
    picks = [torch.tensor(first, device=exact_NF.device)]
    while True:
        is_picked_N[picks[-1]] = True
        if len(picks) == num:
            return torch.stack(picks)
        square_N = torch.minimum(square_N, (exact_NF - exact_NF[picks[-1]]).square().sum(dim=1))
        picks.append(_first_of_greatest(square_N, is_picked_N, slack=_TIE * square_N.max()))


@torch.no_grad()
def farthest_first(features_NF: Tensor, num: int) -> Tensor:
    """The row nearest to the mean, then always the one whose greatest cosine to those picked is the least; nothing is drawn.

    k-center on the sphere (Gonzalez 1985's traversal), from the middle outward: a small selection is typical, a larger one
    reaches the edges. Returns (num,) int64; on a tie, the lowest index. Raises ValueError
    unless 1 <= num <= N.
    """
    _check(features_NF, num)
    unit_NF = F.normalize(features_NF.double(), dim=1)
    toward_N = unit_NF @ unit_NF.mean(dim=0)
    return k_center(unit_NF, num, first=int((toward_N >= toward_N.max() - _TIE).byte().argmax()))


def _check(features_NF: Tensor, num: int) -> None:
    if features_NF.dim() != 2 or not features_NF.isfinite().all():
        raise ValueError(
            f"features: expected finite numbers (rows, features), got shape {tuple(features_NF.shape)}, nan or inf"
        )
    if not 1 <= num <= len(features_NF):
        raise ValueError(f"a selection of {num} rows: expected 1 to {len(features_NF)}, as many as the class has")


def _first_of_greatest(score_N: Tensor, is_picked_N: Tensor, *, slack: Tensor) -> Tensor:
    """The lowest index, 0-d int64, of those not picked whose score is the greatest or less than it by no more than `slack`."""
    open_N = score_N.masked_fill(is_picked_N, -torch.inf)
    return (open_N >= open_N.max() - slack).byte().argmax()
