"""Better, worse, equivalent or undecided: a verdict on paired differences that may be looked at after every seed.

With mean m and standard error e of the differences at the first n seeds, and critical values c_n(alpha) that hold for all n
together (below), a pair is judged at any n, as often as one likes:

    equivalent    |m| + c_n(alpha) e < smallest effect         two one-sided tests, each at alpha
    better        m - c_n(alpha / 2) e > 0
    worse         m + c_n(alpha / 2) e < 0
    undecided     otherwise

A false verdict needs a bound on the true difference to fail: where that is zero, either bound of `better` and `worse`,
alpha / 2 each; where it is as large as the smallest effect or larger, a bound on one side only, at alpha. So a pair errs with
probability at most alpha, at whatever seed the looking stops, and several pairs at (1 - confidence) / pairs each err together
at most at 1 - confidence: Bonferroni, which holds for arms that share a reference. Holm's further step is not taken: it would
hand on the error of a decided pair, and an arm that was found equivalent has spent its own on the way.

c_n(alpha): let the differences be normal with unknown spread. The likelihood of the t statistic under a mixture of true
effects, normal with variance g = PRIOR in units of the spread, over its likelihood under none, is

    E_n = (1 + n g)^(-1/2) ((1 + t^2 / (n - 1)) / (1 + t^2 / ((n - 1) (1 + n g))))^(n/2)

a nonnegative martingale of mean 1 under no effect, whatever the spread, so P(any n: E_n >= 1 / (2 alpha)) <= 2 alpha (Ville),
half of it on either side by symmetry, apart from paths that cross both bounds: 26 in a million at alpha = .05 and 60 looks,
none at .00625. c_n is the t at which E_n = 1 / (2 alpha); infinite at the few n at which no t is enough. Lai 1976; Rouder et
al. 2009, the same Bayes factor; Wang & Ramdas 2023, Anytime-valid t-tests and confidence sequences for Gaussian means.

PRIOR was chosen by simulation among 1 to 30 for few seeds in the mean: differences that matter here are one to five times
the paired spread. Its choice changes how soon a verdict falls, never its error rate.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ddgd_ray.report.statistics import Interval

Word = Literal["better", "worse", "equivalent", "undecided"]
PRIOR = 4.0


@dataclass(frozen=True)
class Verdict:
    """On one pair. difference: mean over n seeds, larger is better. interval: simultaneous over pairs and looks, None while n
    is too small for any. within: the least bound on the size of the true difference that these seeds support, or inf.
    """

    word: Word
    difference: float
    n: int
    interval: Interval | None
    within: float

    @property
    def is_decided(self) -> bool:
        return self.word != "undecided"


def alpha_of_pair(confidence: float, num_pairs: int) -> float:
    """Error rate of one pair, so that all together have 1 - confidence at most."""
    return (1 - confidence) / max(1, num_pairs)


@lru_cache(maxsize=2**14)
def critical(n: int, alpha: float) -> float:
    """c_n(alpha), one-sided, valid at all n together; inf where n seeds cannot carry a verdict."""
    if n < 2:
        return math.inf
    wide = 1 + n * PRIOR
    ratio = (math.sqrt(wide) / (2 * alpha)) ** (2 / n)
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / wide)) if ratio < wide else math.inf


def judge(differences: Sequence[float], smallest_effect: float, alpha: float) -> Verdict:
    """The verdict on one pair at an error rate of `alpha`. differences: one a seed, in order of the seeds, larger is better.

    Equal differences at all seeds show no spread and decide nothing: accuracies of few images are coarse.
    """
    n = len(differences)
    mean = statistics.fmean(differences) if n else math.nan
    error = statistics.stdev(differences) / math.sqrt(n) if n > 1 else 0.0
    if error <= 1e-12 or math.isinf(critical(n, alpha)):
        return Verdict("undecided", mean, n, None, math.inf)
    within = abs(mean) + critical(n, alpha) * error
    reach = critical(n, alpha / 2) * error
    interval = Interval(mean - reach, mean + reach) if math.isfinite(reach) else None
    word: Word = "undecided"
    if within < smallest_effect:
        word = "equivalent"
    elif interval is not None and (interval.low > 0 or interval.high < 0):
        word = "better" if interval.low > 0 else "worse"
    return Verdict(word, mean, n, interval, within)


def judge_all(differences: Mapping[str, Sequence[float]], smallest_effect: float, confidence: float) -> dict[str, Verdict]:
    """{arm: verdict}, all of them true together with probability `confidence` or more."""
    alpha = alpha_of_pair(confidence, len(differences))
    return {arm: judge(found, smallest_effect, alpha) for arm, found in differences.items()}


def least_seeds(alpha: float) -> int:
    """The fewest seeds at which a pair may be decided at an error rate of `alpha`: some four to six."""
    return next(n for n in itertools.count(2) if math.isfinite(critical(n, alpha)))


def seeds_until_decided(effect: float, std: float, alpha: float, limit: int = 10_000) -> int | None:
    """Seeds at which equal arms, their differences of spread `std`, become equivalent within `effect`; None above `limit`.

    By the critical value alone, as if mean and spread were measured without error: half of the pairs take longer.
    """
    return next((n for n in range(2, limit + 1) if critical(n, alpha) * std / math.sqrt(n) < effect), None)
