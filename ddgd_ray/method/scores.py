"""One number an image by which it is picked from a pool.

Shapes: N images, E looks at them during a training, K trainings, Y classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def confidence(logits_NY: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) in [0, 1]: probability of the true class by a reference network, less 1 where it takes the image for another class.

    CaO2 (arXiv 2506.22637) keeps what the network gets right and goes by its confidence there: so those come first in either
    direction when `picked` is told so.
    """
    probability_NY = F.softmax(logits_NY.double(), dim=1)
    return probability_NY.gather(1, labels_N[:, None])[:, 0]


def is_right(logits_NY: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) bool; the lowest class wins a tie of logits."""
    return logits_NY.argmax(dim=1) == labels_N


def el2n(probability_KNY: Tensor, labels_N: Tensor) -> Tensor:
    """(N,): |p - onehot(y)|, its mean over K trainings looked at early (Paul et al. 2021, Def. 2.3); great is hard."""
    onehot_NY = F.one_hot(labels_N, probability_KNY.shape[2]).to(probability_KNY)
    return (probability_KNY - onehot_NY).norm(dim=2).mean(dim=0)


def forgetting(is_right_KEN: Tensor) -> Tensor:
    """(N,): how often an image went from right to wrong between looks, its mean over K trainings (Toneva et al. 2019, Alg. 1).

    One that was never right counts E, more than any other can: it is never learned.
    """
    right = is_right_KEN.double()
    events_KN = (right[:, :-1] * (1 - right[:, 1:])).sum(dim=1)
    return torch.where(right.any(dim=1), events_KN, float(right.shape[1])).mean(dim=0)


def by_score(score_N: Tensor, num: int, *, descending: bool, first_N: Tensor | None = None) -> Tensor:
    """The num rows with the greatest score, falling, or the least, rising; the lowest index on a tie; (num,) int64.

    first_N: bool, rows that come before all others whatever the direction. Raises ValueError unless 1 <= num <= N.
    """
    if not 1 <= num <= len(score_N):
        raise ValueError(f"a selection of {num} rows: expected 1 to {len(score_N)}")
    order = score_N.argsort(descending=descending, stable=True)
    if first_N is not None:
        order = order[(~first_N[order]).byte().argsort(stable=True)]
    return order[:num]
