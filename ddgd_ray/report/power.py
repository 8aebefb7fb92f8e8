"""What so many seeds can tell, and how many seeds it takes: power of the paired t test and of two one-sided tests.

std is that of paired differences between two arms over seeds, in the units of the effect. Noncentral t: Cohen 1988, section
2.4; two one-sided tests: Schuirmann 1987, whose power is Owen's integral over the measured spread (Phillips 1990).
"""

import math
from collections.abc import Callable

from ddgd_ray.report.statistics import ALPHA, Interval

POWER = 0.8
MAX_SEEDS = 100_000


def paired_power(n: int, effect: float, std: float, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t test over n seeds finds a true difference of `effect`."""
    if n < 2 or std <= 0:
        return math.nan if n < 2 else 1.0
    return _paired_power(n, effect / std, alpha)


def _paired_power(n: float, standardized: float, alpha: float) -> float:
    from scipy.special import nctdtr, stdtrit

    freedom, shift = n - 1, abs(standardized) * math.sqrt(n)
    critical = float(stdtrit(freedom, 1 - alpha / 2))
    below, far_below = (float(nctdtr(freedom, shift, bound)) for bound in (critical, -critical))
    # scipy has NaN for a left tail too small for its series: it is zero to all digits
    return 1 - (0.0 if math.isnan(below) else below) + (0.0 if math.isnan(far_below) else far_below)


def smallest_told(n: int, std: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """The true difference that n seeds find with probability `power`; inf below two seeds."""
    if n < 2:
        return math.inf
    from scipy.optimize import brentq

    reach = 1.0
    while _paired_power(n, reach, alpha) < power:
        reach *= 2
    return std * float(brentq(lambda size: _paired_power(n, size, alpha) - power, 0.0, reach, xtol=1e-12))


def seeds_to_tell(effect: float, std: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """The fewest seeds that find a true difference of `effect` with probability `power`; None above MAX_SEEDS."""
    return _fewest(lambda n: paired_power(n, effect, std, alpha), power)


def tost_power(error: float, freedom: int, margin: float, true: float = 0.0, alpha: float = ALPHA) -> float:
    """Probability that two one-sided tests, each at `alpha`, find a true difference `true` to lie within +- margin.

    error: the true standard error of the estimated difference. The claim is made where estimate +- t s lies inside; the
    integral runs over the spread s that is measured, whose square is chi-squared with `freedom` degrees.
    """
    import numpy as np
    from scipy import special, stats

    if error <= 0:
        return float(abs(true) < margin)
    critical = float(special.stdtrit(freedom, 1 - alpha))
    top = (margin / (critical * error)) ** 2  # above it even an estimate of zero is no claim
    nodes, weights = np.polynomial.legendre.leggauss(200)
    upper = special.chdtr(freedom, freedom * top)  # integrate over the measured variance's quantile: smooth in it
    quantile = (nodes + 1) / 2 * upper
    measured = error * np.sqrt(special.chdtri(freedom, 1 - quantile) / freedom)
    room = margin - critical * measured
    inside = stats.norm.cdf((room - true) / error) - stats.norm.cdf((-room - true) / error)
    return float(np.sum(weights / 2 * upper * np.maximum(inside, 0.0)))


def seeds_to_equate(margin: float, std: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """The fewest seeds that find two equal arms equivalent within `margin` with probability `power`; None above MAX_SEEDS."""
    return _fewest(lambda n: tost_power(std / math.sqrt(n), n - 1, margin, alpha=alpha), power)


def tost(mean: float, error: float, freedom: int, margin: float) -> float:
    """p of two one-sided tests: the larger of the two (Schuirmann 1987). error: standard error of `mean`."""
    from scipy.special import stdtr

    if error <= 0:
        return float(abs(mean) >= margin)
    return float(max(stdtr(freedom, (mean - margin) / error), stdtr(freedom, -(mean + margin) / error)))


def tost_interval(mean: float, error: float, freedom: int, alpha: float = ALPHA) -> Interval:
    """1 - 2 alpha: it lies within the margins exactly where the p of the two one-sided tests is below `alpha`."""
    from scipy.special import stdtrit

    reach = float(stdtrit(freedom, 1 - alpha)) * error
    return Interval(mean - reach, mean + reach)


def _fewest(power_of: Callable[[int], float], power: float) -> int | None:
    """The first n >= 2 from which the power is reached; it grows with n."""
    high = 2
    while not power_of(high) >= power:
        high *= 2
        if high > MAX_SEEDS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle >= 2 and power_of(middle) >= power else (middle, high)
    return high
