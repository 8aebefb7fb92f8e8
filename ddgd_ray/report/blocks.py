"""Permutation p of a contrast that is made inside blocks: exact where the patterns can be counted, Monte Carlo above.

A block is what is alike but for the factor in question: one seed, and one level of every other factor. Under the null
hypothesis the labels inside a block could have fallen otherwise, so the block's share of the contrast is one of a few numbers,
each as likely, whatever the other blocks have.

legend: B blocks, K numbers that a block's share could have been
"""

from typing import Any

NUM_COUNTED = 2**22
"""Patterns of one half of the blocks that are counted at most: 3 levels in 26 blocks, signs in 44."""
NUM_DRAWN = 99_999
TOLERANCE = 1e-9
"""Of the sum of all sizes: sums of the same numbers in another order differ by less, accuracies of few images by more."""


def permutation_p(values_B: Any, choices_BK: Any) -> tuple[float, bool]:
    """Two-sided p of the sum of `values_B`, and whether it is exact. choices_BK: what each block could have contributed.

    The share of patterns whose sum is at least as far from zero. Drawn patterns count the observed one too (Phipson and Smyth
    2010), so p is never 0. 1.0 without a block, and where all is equal.
    """
    import numpy as np

    values, choices = np.asarray(values_B, dtype=float), np.asarray(choices_BK, dtype=float)
    num_blocks = len(values)
    if not num_blocks:
        return 1.0, True
    slack = TOLERANCE * np.abs(choices).max(axis=1).sum()
    bound = abs(values.sum()) - slack
    if bound <= 0:
        return 1.0, True
    half = (num_blocks + 1) // 2
    if choices.shape[1] ** half <= NUM_COUNTED:
        first, second = _sums(choices[:half]), np.sort(_sums(choices[half:]))
        above = len(second) - np.searchsorted(second, bound - first, side="left")
        below = np.searchsorted(second, -bound - first, side="right")
        return float((above.sum() + below.sum()) / (len(first) * len(second))), True
    rng = np.random.default_rng(0)
    picked = rng.integers(0, choices.shape[1], (NUM_DRAWN, num_blocks))
    drawn = np.take_along_axis(choices.T, picked, axis=0).sum(axis=1)
    return float((1 + np.count_nonzero(np.abs(drawn) >= bound)) / (1 + NUM_DRAWN)), False


def _sums(choices_BK: Any) -> Any:
    """Sums of every pattern, (K**B,); of no block, the empty sum."""
    import numpy as np

    sums = np.zeros(1)
    for choices in choices_BK:
        sums = (sums[:, None] + choices[None, :]).ravel()
    return sums
