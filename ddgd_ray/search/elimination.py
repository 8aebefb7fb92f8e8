"""The arms of a race that cannot be the best, by one-sided paired t tests with a family-wise error rate. Numbers alone.

At a look all live arms have values at the same n seeds. The incumbent i is the arm of the best mean. With d_s the difference of
arm a to i at seed s, its mean d and standard error e, a is dropped when the upper bound

    u(a, i) = d + t(1 - alpha', df) e  <  min_effect

and the same holds for every arm that was dropped on a's account, on the seeds that it has: no chain of small losses adds up.
alpha' = (1 - confidence) / ((arms - 1) looks): Bonferroni over the opponents, whoever becomes the incumbent, and the same share
of the error spent at each look (Lan & DeMets 1983, without credit for the correlation of looks: conservative). If differences
are normal, a kept arm is as good as the best up to min_effect with probability >= confidence: for the best arm b to lose its
place to an arm i of mu_i < mu_b - min_effect, one of the (arms - 1) looks tests of b must have erred.

e and df: from a's own differences, n - 1; or pooled, from the residuals of arms x seeds without interaction, (arms - 1)(n - 1),
which is the same for two arms. Equal differences at all seeds show no spread and drop nobody: accuracies of few images are
coarse.

Racing: Maron & Moore 1994 (Hoeffding races), Birattari et al. 2002 (F-Race, whose tests are not corrected over looks).
Indifference zone with common random numbers: Kim & Nelson 2001.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ddgd_ray.spec.fidelity_spec import RaceSpec


@dataclass(frozen=True)
class Drop:
    """An arm that was dropped against the incumbent. difference: mean of arm - incumbent; larger is better.

    statistic: (difference - min_effect) / standard error, dropped below -critical.
    """

    arm: str
    against: str
    num_seeds: int
    difference: float
    bound: float
    statistic: float
    critical: float


@dataclass
class Elimination:
    """The state of a race of `num_arms` arms with at most `num_looks` looks; each `look` has one more seed."""

    race: RaceSpec
    num_arms: int
    num_looks: int
    dropped: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """{arm: values at its seeds} of the arms that are out."""
    wards: dict[str, list[str]] = field(default_factory=dict)
    """{arm: arms that were dropped on its account, directly or through one that was}."""

    def __post_init__(self) -> None:
        self._pooled: dict[int, tuple[float, int]] = {}  # {n: standard error of a difference, df}

    @property
    def alpha(self) -> float:
        """The error rate of one test."""
        return (1 - self.race.confidence) / max(1, (self.num_arms - 1) * self.num_looks)

    def look(self, values: Mapping[str, Sequence[float]]) -> list[Drop]:
        """The arms that this look drops, the worst first. values: {live arm: values at the same seeds}, larger is better."""
        means = {arm: statistics.fmean(found) for arm, found in values.items()}
        ranked = sorted(means, key=means.__getitem__)  # stable: the first of equals keeps its place
        incumbent = max(means, key=means.__getitem__)
        if self.race.pool_variance and len(values) > 1:
            self._pooled[len(values[incumbent])] = pooled_error(list(values.values()))
        drops: list[Drop] = []
        for arm in ranked:
            if arm == incumbent or len(values) - len(drops) <= self.race.keep:
                continue
            found = {arm: values[arm], **{ward: self.dropped[ward] for ward in self.wards.get(arm, ())}}
            tests = {name: self._test(name, of, incumbent, values[incumbent]) for name, of in found.items()}
            if all(test is not None and test.bound < self.race.min_effect for test in tests.values()):
                own = tests[arm]
                assert own is not None
                drops.append(own)
        for drop in drops:
            self.dropped[drop.arm] = tuple(values[drop.arm])
            self.wards.setdefault(incumbent, []).extend([drop.arm, *self.wards.pop(drop.arm, ())])
        return drops

    def _test(self, arm: str, values: Sequence[float], incumbent: str, others: Sequence[float]) -> Drop | None:
        """The test of an arm against the incumbent on the seeds that both have; None where these show no spread."""
        differences = [own - other for own, other in zip(values, others, strict=False)]
        n, mean = len(differences), statistics.fmean(differences)
        if self.race.pool_variance:
            error, freedom = self._pooled[n]
        else:
            error, freedom = math.sqrt(sum((value - mean) ** 2 for value in differences) / (n - 1) / n), n - 1
        if error <= 1e-12:
            return None
        critical = critical_t(self.alpha, freedom)
        bound, statistic = mean + critical * error, (mean - self.race.min_effect) / error
        return Drop(arm, incumbent, n, mean, bound, statistic, critical)


def pooled_error(rows: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The standard error of the difference of two arms' means over n seeds, and its degrees of freedom. rows: (arms, n)."""
    num_arms, n = len(rows), len(rows[0])
    of_arm = [statistics.fmean(row) for row in rows]
    of_seed = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    all_mean = statistics.fmean(of_arm)
    squares = sum((rows[a][s] - of_arm[a] - of_seed[s] + all_mean) ** 2 for a in range(num_arms) for s in range(n))
    freedom = (num_arms - 1) * (n - 1)
    return math.sqrt(2 * squares / freedom / n), freedom


@lru_cache(maxsize=4096)
def critical_t(alpha: float, freedom: int) -> float:
    from scipy import stats  # takes a second: only a race pays it

    return float(stats.t.isf(alpha, freedom))
