"""Measures of a small set in a given feature space: PRDC, Vendi score, cosines, Frechet distance, copies of real rows.

Shapes: N real rows, M set rows, F features, R rows and X columns of a table of distances, C rows of one chunk of it.

Everything is computed in float64 on the device of the real rows. Tables of squared distances come chunk by chunk, each
(chunk, N or M): 256 rows against 100,000 are 200 MB. Features must be finite; otherwise ValueError.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A squared distance is |x|^2 + |y|^2 - 2xy, which float64 knows to about 1e-15 of |x|^2: equal rows are not 0 apart, and which
# of two equal distances is the smaller depends on the chunk. Balls are smaller by 1e-12 of their squares so that neither shows.
_SLACK = 1e-12


class Prdc(NamedTuple):
    """Precision, recall and coverage are shares. Density is 0 or more, 1 expected when the set is drawn like the real rows."""

    precision: float
    recall: float
    density: float
    coverage: float


class Copies(NamedTuple):
    """Rows of the set beside their nearest real rows.

    distance_M: to that row. nearest_M: int64, that row. share: rows of the set with distance <= threshold.
    """

    distance_M: Tensor
    nearest_M: Tensor
    threshold: float
    share: float


class Neighbours(NamedTuple):
    """Distances of real rows among themselves, computed once for all sets.

    square_NK: squared distances to the K nearest other rows, rising. nearest_N: int64, the nearest other row.
    """

    square_NK: Tensor
    nearest_N: Tensor


@torch.no_grad()
def neighbours(real_NF: Tensor, k: int, *, chunk: int = 256) -> Neighbours:
    """The k nearest other rows of each real row. Raises ValueError unless 1 <= k < N."""
    (real_NF,) = _checked(real_NF)
    if not 1 <= k < len(real_NF):
        raise ValueError(f"neighbours: expected 1 <= k < {len(real_NF)} rows, got k={k}")
    centred_NF = real_NF - real_NF.mean(dim=0)
    found = [square.topk(k, dim=1, largest=False) for _, square in _squared_distances_to_others(centred_NF, chunk)]
    return Neighbours(torch.cat([one.values for one in found]), torch.cat([one.indices[:, 0] for one in found]))


@torch.no_grad()
def prdc(real_NF: Tensor, set_MF: Tensor, *, k: int = 5, chunk: int = 256, real_neighbours: Neighbours | None = None) -> Prdc:
    """The improved precision and recall (Kynkäänniemi et al. 2019, Eq. 1-2), density and coverage (Naeem et al. 2020).

    A row's ball reaches to its k-th nearest neighbour among the others of its own kind; its border does not belong to it, as in
    the code of the latter and unlike Eq. 1 of the former. A ball without radius, of a row that repeats k times, holds nothing.
    Balls of M rows are large when M is small: recall, and less so the others, compare only at equal M, N and k.
    real_neighbours: those of `neighbours` with at least k, so that they are not searched again for every set.
    Raises ValueError unless 1 <= k < min(N, M).
    """
    real_NF, set_MF = _checked(real_NF, set_MF)
    if not 1 <= k < min(len(real_NF), len(set_MF)):
        sizes = f"{len(real_NF)} real rows and {len(set_MF)} of the set"
        raise ValueError(f"prdc: expected 1 <= k < number of rows, got k={k} for {sizes}; lower k or bring more rows")
    real_NF, set_MF = _centred(real_NF, set_MF)
    square_N = real_neighbours.square_NK[:, k - 1] if real_neighbours is not None else None
    real_ball_N, set_ball_M = _squared_radii(real_NF, k, chunk, square_N), _squared_radii(set_MF, k, chunk)
    num_balls_M = set_ball_M.new_zeros(len(set_MF), dtype=torch.int64)  # of real rows, around each row of the set
    num_recalled = num_covered = num_balls_M.new_zeros(())
    for start, square_CM in _squared_distances(real_NF, set_MF, chunk):
        is_in_real_CM = square_CM < real_ball_N[start : start + len(square_CM), None]
        num_balls_M += is_in_real_CM.sum(dim=0)
        num_covered = num_covered + is_in_real_CM.any(dim=1).sum()
        num_recalled = num_recalled + (square_CM < set_ball_M).any(dim=1).sum()
    return Prdc(
        precision=float((num_balls_M > 0).double().mean()),
        recall=float(num_recalled) / len(real_NF),
        density=float(num_balls_M.sum()) / (k * len(set_MF)),
        coverage=float(num_covered) / len(real_NF),
    )


@torch.no_grad()
def vendi(set_MF: Tensor) -> float:
    """Vendi score (Friedman & Dieng 2023): exp of the entropy of the eigenvalues of K / M, K the cosines; 1 to min(M, F).

    Raises ValueError on a row of zeros: it has no cosine.
    """
    unit_MF = _unit(set_MF)
    is_wide = len(unit_MF) <= unit_MF.shape[1]
    product = unit_MF @ unit_MF.T if is_wide else unit_MF.T @ unit_MF  # the same eigenvalues, but for zeros
    eigenvalues = torch.linalg.eigvalsh(product).clamp(min=0)
    return float(torch.special.entr(eigenvalues / eigenvalues.sum()).sum().exp())


@torch.no_grad()
def mean_pairwise_similarity(set_MF: Tensor) -> float:
    """Mean cosine over the pairs of different rows. Raises ValueError when M < 2 or on a row of zeros."""
    if len(set_MF) < 2:
        raise ValueError(f"mean cosine over pairs: expected 2 rows or more, got {len(set_MF)}")
    return class_similarities(set_MF, torch.zeros(len(set_MF), dtype=torch.int64))[0]


@torch.no_grad()
def class_similarities(set_MF: Tensor, labels_M: Tensor) -> dict[int, float]:
    """Mean cosine over the pairs of different rows of each class, by ascending label; a class of one row has no pair, no entry.

    labels_M: (M,) int64. Raises ValueError when it has another shape, or on a row of zeros.
    """
    unit_MF = _unit(set_MF)
    if labels_M.shape != (len(unit_MF),):
        raise ValueError(f"labels: expected one for each of {len(unit_MF)} rows, got shape {tuple(labels_M.shape)}")
    labels, group_M, size = labels_M.to(unit_MF.device).unique(return_inverse=True, return_counts=True)
    sums = unit_MF.new_zeros(len(labels), unit_MF.shape[1]).index_add_(0, group_M, unit_MF)
    mean = (sums.square().sum(dim=1) - size) / (size * (size - 1))  # the square of a sum holds each pair twice
    return {label: value for label, value, n in zip(labels.tolist(), mean.tolist(), size.tolist(), strict=True) if n > 1}


@torch.no_grad()
def frechet_distance(real_NF: Tensor, set_MF: Tensor) -> float:
    """The distance |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2), the S unbiased (Heusel et al. 2017), squared.

    Biased upward for small M, by more than most differences between methods: compare only at equal M and N. Fewer rows than
    features are no obstacle. Raises ValueError when N or M < 2: one row has no covariance.
    """
    real_NF, set_MF = _checked(real_NF, set_MF)
    if min(len(real_NF), len(set_MF)) < 2:
        raise ValueError(f"Frechet distance: expected 2 rows or more, got {len(real_NF)} real and {len(set_MF)} of the set")
    mean_F, set_mean_F = real_NF.mean(dim=0), set_MF.mean(dim=0)
    root, set_root = _covariance_root(real_NF - mean_F), _covariance_root(set_MF - set_mean_F)
    # with S = root^T root, these singular values are the square roots of the eigenvalues of S_1^1/2 S_2 S_1^1/2, which a rank
    # below F leaves at 1e-16 instead of 0 and their square roots at 1e-8
    cross = torch.linalg.svdvals(set_root @ root.T).sum()
    square = (mean_F - set_mean_F).square().sum() + root.square().sum() + set_root.square().sum() - 2 * cross
    return float(square.clamp(min=0))  # equal Gaussians: the terms cancel, and what is left is rounding of either sign


@torch.no_grad()
def copies(
    real_NF: Tensor,
    set_MF: Tensor,
    *,
    chunk: int = 256,
    quantile: float = 0.01,
    real_neighbours: Neighbours | None = None,
) -> Copies:
    """The rows of the set that lie suspiciously near a real row: a set of real rows has share 1, fresh draws about `quantile`.

    The threshold is that quantile of the distances of the real rows to their nearest other real row; it is 0 where more than
    that share of them repeats another exactly. Raises ValueError when N < 2 or quantile is outside 0..1.
    """
    real_NF, set_MF = _checked(real_NF, set_MF)
    if len(real_NF) < 2:
        raise ValueError(f"copies: expected 2 real rows or more, for their distances to each other; got {len(real_NF)}")
    if not 0 <= quantile <= 1:
        raise ValueError(f"copies: expected a quantile in 0..1, got {quantile}")
    centred_NF, centred_MF = _centred(real_NF, set_MF)
    nearest_M = torch.cat([square.argmin(dim=1) for _, square in _squared_distances(centred_MF, centred_NF, chunk)])
    if real_neighbours is not None:
        other_N = real_neighbours.nearest_N
    else:
        other_N = torch.cat([square.argmin(dim=1) for _, square in _squared_distances_to_others(centred_NF, chunk)])
    distance_M = _distances_to(real_NF, nearest_M, set_MF, chunk)
    distance_N = _distances_to(real_NF, other_N, real_NF, chunk).sort().values
    place = quantile * (len(distance_N) - 1)  # torch.quantile refuses more than 2^24 rows
    below, above = distance_N[int(place)], distance_N[min(int(place) + 1, len(distance_N) - 1)]
    threshold = torch.lerp(below, above, place - int(place))
    return Copies(distance_M, nearest_M, float(threshold), float((distance_M <= threshold).double().mean()))


def _checked(*tables: Tensor) -> tuple[Tensor, ...]:
    """The tables in float64 on the device of the first. Raises ValueError for shapes that do not fit and for nan or inf."""
    for table in tables:
        if table.dim() != 2 or 0 in table.shape or table.shape[1] != tables[0].shape[1]:
            shapes = " and ".join(str(tuple(table.shape)) for table in tables)
            raise ValueError(f"features: expected (rows, features), none empty and as many features in each; got {shapes}")
        if not table.isfinite().all():
            raise ValueError("features: expected finite numbers, got nan or inf; look at the network that computed them")
    return tuple(table.to(tables[0].device).double() for table in tables)


def _unit(set_MF: Tensor) -> Tensor:
    (set_MF,) = _checked(set_MF)
    norm_M1 = set_MF.norm(dim=1, keepdim=True)
    if not norm_M1.all():
        raise ValueError(f"features: row {int(norm_M1.argmin())} is all zeros and has no cosine; leave it out")
    return set_MF / norm_M1


def _centred(real_NF: Tensor, set_MF: Tensor) -> tuple[Tensor, Tensor]:
    """Both tables minus the real mean: distances stay and lose fewer digits, as features after a ReLU lie far from 0."""
    mean_F = real_NF.mean(dim=0)
    return real_NF - mean_F, set_MF - mean_F


def _squared_distances(rows_RF: Tensor, columns_XF: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """The first row of each chunk and its squared distances to all columns, (C, X); may be below 0 by rounding."""
    if chunk < 1:
        raise ValueError(f"chunk: expected 1 row or more, got {chunk}")
    square_X = columns_XF.square().sum(dim=1)
    for start in range(0, len(rows_RF), chunk):
        rows_CF = rows_RF[start : start + chunk]
        distance_CX = torch.addmm(square_X, rows_CF, columns_XF.T, alpha=-2)
        yield start, distance_CX.add_(rows_CF.square().sum(dim=1, keepdim=True))


def _squared_distances_to_others(rows_RF: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
    for start, square_CR in _squared_distances(rows_RF, rows_RF, chunk):
        square_CR.diagonal(start).fill_(torch.inf)
        yield start, square_CR


def _squared_radii(rows_RF: Tensor, k: int, chunk: int, radius_R: Tensor | None = None) -> Tensor:
    """The squared distance (R,) to the k-th nearest other row (radius_R where it is known), without the slack."""
    if radius_R is None:
        chunks = _squared_distances_to_others(rows_RF, chunk)
        radius_R = torch.cat([square_CR.topk(k, dim=1, largest=False).values[:, -1] for _, square_CR in chunks])
    return radius_R - _SLACK * (radius_R + rows_RF.square().sum(dim=1))


def _distances_to(real_NF: Tensor, nearest: Tensor, rows_RF: Tensor, chunk: int) -> Tensor:
    """The distances (R,), from differences, so that a copy is exactly 0 away."""
    parts = zip(rows_RF.split(chunk), nearest.split(chunk), strict=True)
    return torch.cat([(rows_CF - real_NF[nearest_C]).norm(dim=1) for rows_CF, nearest_C in parts])


def _covariance_root(centred_RF: Tensor) -> Tensor:
    """A matrix (min(R, F), F) whose root^T root is the unbiased covariance."""
    num_rows, num_features = centred_RF.shape
    if num_rows <= num_features:
        return centred_RF / (num_rows - 1) ** 0.5
    eigenvalues, vectors = torch.linalg.eigh(centred_RF.T @ centred_RF / (num_rows - 1))
    return eigenvalues.clamp(min=0).sqrt()[:, None] * vectors.T
