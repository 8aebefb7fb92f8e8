"""Verdicts on the arms of a table against its reference; without `claims`, what these seeds could have told."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddgd_ray.report.compare import choose_control
from ddgd_ray.report.power import POWER, seeds_to_tell, smallest_told
from ddgd_ray.report.statistics import ALPHA
from ddgd_ray.report.verdicts import Verdict, Word, alpha_of_pair, judge_all, least_seeds
from ddgd_ray.run.results import CEILING, Row, by_arm, paired_differences
from ddgd_ray.spec.claims_spec import ClaimsSpec

WORDS: tuple[Word, ...] = ("better", "worse", "equivalent", "undecided")
POINT, HALF = 0.01, 0.005


@dataclass(frozen=True)
class Reach:
    """What paired seeds can tell at 80 % power. spread: root mean square over `num_pairs` of their differences' deviations.

    told: the smallest difference that n seeds find. The test of a pair is at 0.05 / num_pairs, Holm's first step.
    """

    spread: float
    num_pairs: int
    n: int
    told: float
    for_point: int | None
    for_half: int | None

    def __str__(self) -> str:
        said = [f"{_seeds(n)} for {what}" for what, n in (("a point", self.for_point), ("half a point", self.for_half))]
        return (
            f"Paired differences have a standard deviation of {self.spread:.4f} (root mean square over {self.num_pairs} arms): "
            f"{self.n} seeds find a difference of {self.told:.4f} with {POWER:.0%} power (paired t test at {ALPHA:g} / "
            f"{self.num_pairs}); it takes {' and '.join(said)}."
        )


def _seeds(n: int | None) -> str:
    return "more than 100,000 seeds" if n is None else f"{n} seeds"


def reference_of(rows: Sequence[Row], claims: ClaimsSpec | None) -> str:
    """The arm that others are compared with: the one of `claims` where it has results, else the control of the table."""
    named = claims.reference if claims else ""
    return named if named in by_arm(rows) else choose_control(rows)


def differences_to(arms: Mapping[str, Sequence[Row]], reference: str, metric: str) -> dict[str, list[float]]:
    """{arm: its differences to the reference over the seeds that both have, in their order}, the ceiling aside."""
    if reference not in arms:
        return {}
    found = {
        arm: list(paired_differences(rows, arms[reference], metric).values())
        for arm, rows in arms.items()
        if arm not in (reference, CEILING)
    }
    return {arm: differences for arm, differences in found.items() if differences}


def verdicts_of(arms: Mapping[str, Sequence[Row]], reference: str, metric: str, claims: ClaimsSpec) -> dict[str, Verdict]:
    """{arm: verdict against the reference}, right together with probability `claims.confidence` or more."""
    return judge_all(differences_to(arms, reference, metric), claims.smallest_effect, claims.confidence)


def reach_of(differences: Mapping[str, Sequence[float]]) -> Reach | None:
    """What could have been told; None where no arm has two seeds or nothing varies. n: the most that an arm shares."""
    from statistics import fmean, variance

    spreads = [variance(found) for found in differences.values() if len(found) > 1]
    spread = math.sqrt(fmean(spreads)) if spreads else 0.0
    if spread <= 1e-12:
        return None
    num_pairs, n = len(differences), max(map(len, differences.values()))
    alpha = ALPHA / num_pairs
    needed = (seeds_to_tell(effect, spread, alpha=alpha) for effect in (POINT, HALF))
    return Reach(spread, num_pairs, n, smallest_told(n, spread, alpha=alpha), *needed)


def tally(verdicts: Mapping[str, Verdict]) -> str:
    """`1 better, 2 worse, 5 equivalent, 1 undecided`, words without an arm left out."""
    counts = Counter(verdict.word for verdict in verdicts.values())
    return ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])


def verdict_note(arms: Mapping[str, Sequence[Row]], reference: str, metric: str, claims: ClaimsSpec | None) -> str:
    """The sentence under a table: verdicts and how sure they are, or what so many seeds can tell; "" with nothing to say."""
    differences = differences_to(arms, reference, metric)
    if claims is None:
        reach = reach_of(differences)
        return str(reach) if reach else ""
    verdicts = judge_all(differences, claims.smallest_effect, claims.confidence)
    if not verdicts:
        return ""
    least = least_seeds(alpha_of_pair(claims.confidence, len(verdicts)))
    if all(verdict.n < least for verdict in verdicts.values()):
        return (
            f"No verdict against {reference} is possible: over {len(verdicts)} arms it takes {least} seeds at least, however "
            f"often one looks. {reach_of(differences) or ''}".rstrip()
        )
    return (
        f"Against {reference}, equivalent meaning within {claims.smallest_effect:g}: {tally(verdicts)}. All {len(verdicts)} "
        f"verdicts are right together with probability {claims.confidence:g} or more, if differences are normal, however often "
        f"one looks and whenever one stops."
    )
