"""False and missed verdicts, and seeds used, on planted truths: seeds until it is decided, a fixed table with Holm, a race.

    python -m benchmarks.verdicts [--quick] [--json]

A case is a field of arms and a reference: so many arms, a truth, a spread of paired differences, a shape of the noise. Means
are planted in units of the smallest effect (0.01, a point of accuracy). Spreads are those measured on the embedded data
(LOG.md): paired differences between arms .002 to .007, one arm of twenty .017; seeds .004 to .010, which pairing removes.

- until decided (ours): report.verdicts at every seed; a decided pair gets no more seeds, the reference runs to the last one.
- fixed: every arm at n seeds, then paired t tests and two one-sided tests, each family with Holm's correction.
- peeking: the fixed table looked at after every seed, as if each look were the only one: why that is not what we do.
- race: search.elimination, smallest effect as `min_effect`: it drops losers against the best and gives no other verdict.

A verdict is false where it contradicts the plant: better or worse of a difference that is zero or of the other sign, equivalent
of one as large as the smallest effect. Family-wise: a replay errs if any of its pairs does; stated: 0.05.

ratio: trials (one arm at one seed, the reference's too) of the fixed design over ours, mean over blocks of cases. The fixed
design has one n for all truths of its block, since the truth is not known when n is chosen: the least that leaves no more pairs
undecided than ours in any of them; a power above 95 % counts as 95 %. Ours ends at LIMIT seeds at the latest.
ratio_known_truth: n chosen for each case alone, by one who knows the truth. ratio_unknown_spread: one n for all spreads too.
Goal: false claims at or below the stated rate in every case, and a ratio of 2.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import measure
from ddgd_ray.report.verdicts import alpha_of_pair, critical, judge
from ddgd_ray.search.elimination import Elimination
from ddgd_ray.spec.fidelity_spec import RaceSpec

EFFECT, CONFIDENCE = 0.01, 0.95
LIMIT, MOST = 30, 90
"""Seeds at which ours gives up, and that a fixed design may have."""
LIMITS = (3, 5, 8, 16, 30)
BETTER, WORSE, EQUIVALENT, UNDECIDED = 1, -1, 2, 0
TRUTHS: Mapping[str, float] = {"equal": 0.0, "half": 0.5, "one": 1.0, "two": 2.0}
"""True difference of one arm to the reference in smallest effects; the others are equal to it."""
POWER_COUNTED = 0.95
SHAPES = ("normal", "heavy", "skewed", "coarse")
SEEDS_APART = 0.007


@dataclass(frozen=True)
class Case:
    """num_pairs: arms without the reference. spread: of paired differences. odd: the same of the arm that is planted."""

    num_pairs: int
    truth: str
    spread: float
    odd: float
    shape: str

    @property
    def block(self) -> tuple[Any, ...]:
        return (self.num_pairs, self.spread, self.odd, self.shape)

    @property
    def name(self) -> str:
        odd = f" one {self.odd:g}" if self.odd != self.spread else ""
        return f"{self.num_pairs + 1} arms, {self.truth}, spread {self.spread:g}{odd}, {self.shape}"

    @property
    def means(self) -> np.ndarray:
        return np.array([TRUTHS[self.truth], *[0.0] * (self.num_pairs - 1)]) * EFFECT


def cases(is_quick: bool) -> Iterator[Case]:
    """Blocks of one spread by number of arms, then unequal spreads, then shapes of noise."""
    sizes, spreads = ((2, 8), (0.004,)) if is_quick else ((2, 5, 8, 11), (0.002, 0.004, 0.007, 0.01))
    blocks = [(size, spread, spread, "normal") for size in sizes for spread in spreads]
    blocks += [(size, 0.004, 0.017, "normal") for size in sizes]
    blocks += [(size, 0.007, 0.007, shape) for shape in SHAPES[1:] for size in (sizes if is_quick else (2, 8))]
    blocks += [] if is_quick else [(8, 0.004, 0.004, shape) for shape in SHAPES[1:]]
    for num_pairs, spread, odd, shape in blocks:
        for truth in TRUTHS:
            yield Case(num_pairs, truth, spread, odd, shape)


def unit_noise(rng: np.random.Generator, shape: str, size: tuple[int, ...]) -> np.ndarray:
    """Of mean 0 and standard deviation 1: normal, t with 3 degrees of freedom, an exponential."""
    if shape == "heavy":
        return rng.standard_t(3, size) / math.sqrt(3)
    if shape == "skewed":
        return rng.exponential(size=size) - 1
    return rng.normal(size=size)


def field(case: Case, num_replays: int, rng: np.random.Generator) -> np.ndarray:
    """Accuracies, (replays, the reference and the other arms, MOST seeds). coarse: in steps of a thousandth."""
    # The reference and an ordinary arm share the spread of their difference; the odd arm has what is left of its own.
    ordinary = case.spread / math.sqrt(2)
    own = np.full(case.num_pairs + 1, ordinary)
    own[1] = math.sqrt(max(case.odd**2 - ordinary**2, 0.0))
    size = (num_replays, case.num_pairs + 1, MOST)
    values = 0.69 + SEEDS_APART * rng.normal(size=(num_replays, 1, MOST))
    values = values + np.concatenate([[0.0], case.means])[:, None] + own[:, None] * unit_noise(rng, case.shape, size)
    return np.round(values, 3) if case.shape == "coarse" else values


def running(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of the first n along the last axis, for every n; no error at n = 1."""
    n = np.arange(1, differences.shape[-1] + 1)
    mean = differences.cumsum(axis=-1) / n
    squares = np.maximum((differences**2).cumsum(axis=-1) - n * mean**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(squares / (n - 1) / n)
    return mean, np.where(np.nan_to_num(error) > 1e-9, error, np.nan)  # equal differences decide nothing


def sequential(mean: np.ndarray, error: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """First verdict of each pair and the seeds it took, up to `limit`: report.verdicts.judge at every seed."""
    mean, error = mean[..., :limit], error[..., :limit]
    alpha = alpha_of_pair(CONFIDENCE, mean.shape[1])
    one_sided, two_sided = (np.array([critical(n, level) for n in range(1, limit + 1)]) for level in (alpha, alpha / 2))
    with np.errstate(invalid="ignore"):
        is_equivalent = np.abs(mean) + one_sided * error < EFFECT
        sign = np.where(mean - two_sided * error > 0, BETTER, np.where(mean + two_sided * error < 0, WORSE, UNDECIDED))
    words = np.where(is_equivalent, EQUIVALENT, sign)
    return _first(words)


def check_against_judge() -> None:
    """The arrays above say what report.verdicts.judge says of each row."""
    rng = np.random.default_rng(0)
    rows = rng.choice([0.0, 0.005, 0.012], (60, 4, 1)) + 0.005 * rng.normal(size=(60, 4, LIMIT))
    words, seeds = sequential(*running(rows), LIMIT)
    names = {"better": BETTER, "worse": WORSE, "equivalent": EQUIVALENT, "undecided": UNDECIDED}
    for row, word, seed in zip(rows.reshape(-1, LIMIT), words.ravel(), seeds.ravel(), strict=True):
        said = [judge(row[:n].tolist(), EFFECT, alpha_of_pair(CONFIDENCE, 4)).word for n in range(1, seed + 1)]
        assert names[said[-1]] == word, (said, word)
        assert set(said[:-1]) <= {"undecided"}, said


def _first(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_decided = words != UNDECIDED
    look = np.where(is_decided.any(axis=-1), is_decided.argmax(axis=-1), words.shape[-1] - 1)
    return np.take_along_axis(words, look[..., None], axis=-1)[..., 0], look + 1


def fixed(mean: np.ndarray, error: np.ndarray, n: int) -> np.ndarray:
    """Verdicts of a table of n seeds: Holm over the t tests, Holm over the equivalence tests."""
    mean, error = mean[..., n - 1], error[..., n - 1]
    with np.errstate(invalid="ignore"):
        differs = 2 * stats.t.sf(np.abs(mean) / error, n - 1)
        equates = stats.t.sf((EFFECT - np.abs(mean)) / error, n - 1)
    is_told, is_equivalent = (holm(np.nan_to_num(p, nan=1.0)) < 1 - CONFIDENCE for p in (differs, equates))
    return np.where(is_equivalent, EQUIVALENT, np.where(is_told, np.sign(mean), UNDECIDED)).astype(int)


def holm(p: np.ndarray) -> np.ndarray:
    """Corrected along the last axis."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return found


def is_false(words: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Of each pair."""
    is_wrong_sign = ((words == BETTER) & (means <= 0)) | ((words == WORSE) & (means >= 0))
    return is_wrong_sign | ((words == EQUIVALENT) & (np.abs(means) >= EFFECT))


def told(words: np.ndarray, means: np.ndarray) -> dict[str, float]:
    """Shares: replays with a false sign, a false equivalence, either; pairs that are missed, that is undecided."""
    wrong = is_false(words, means)
    equal = wrong & (words == EQUIVALENT)
    return {
        "false_sign": float((wrong & ~equal).any(axis=1).mean()),
        "false_equivalent": float(equal.any(axis=1).mean()),
        "false": float(wrong.any(axis=1).mean()),
        "missed": float((words == UNDECIDED).mean()),
    }


def race(values: np.ndarray, limit: int) -> dict[str, float]:
    """Of all arms, the reference among them: trials, share of arms dropped, and of replays that dropped the best arm."""
    num_replays, num_arms, _ = values.shape
    spec = RaceSpec(confidence=CONFIDENCE, min_effect=EFFECT)
    trials = num_dropped = num_wrong = 0
    for rows in values:
        elimination = Elimination(spec, num_arms, limit - spec.first_seeds)
        live, n = list(range(num_arms)), spec.first_seeds
        while n < limit and len(live) > spec.keep:
            drops = elimination.look({str(arm): rows[arm, :n].tolist() for arm in live})
            trials += n * len(drops)
            live = [arm for arm in live if str(arm) not in {drop.arm for drop in drops}]
            n += len(live) > spec.keep
        trials += n * len(live)
        num_dropped += num_arms - len(live)
        num_wrong += 1 not in live
    shares = num_arms * num_replays
    return {"trials": trials / num_replays, "dropped": num_dropped / shares, "best_dropped": num_wrong / num_replays}


@dataclass(frozen=True)
class Outcome:
    case: Case
    ours: Mapping[int, Mapping[str, float]]
    """{limit: shares, and trials}."""
    fixed: Mapping[int, Mapping[str, float]]
    peeking: Mapping[str, float]
    race: Mapping[str, float]
    missed_by_n: Sequence[float]
    """Of the fixed table at n = 1, 2, ... seeds."""


def play(case: Case, num_replays: int, seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    values = field(case, num_replays, rng)
    means = case.means
    mean, error = running(values[:, 1:] - values[:, :1])
    ours, tables = {}, {}
    for limit in LIMITS:
        words, seeds = sequential(mean, error, limit)
        trials = (seeds.sum(axis=1) + seeds.max(axis=1)).mean()
        ours[limit] = told(words, means) | {"trials": float(trials)}
        tables[limit] = told(fixed(mean, error, limit), means) | {"trials": float(limit * (case.num_pairs + 1))}
    peeked, _ = _first(np.stack([fixed(mean, error, n) for n in range(2, LIMIT + 1)], axis=-1))
    missed = [1.0] + [told(fixed(mean, error, n), means)["missed"] for n in range(2, MOST + 1)]
    return Outcome(case, ours, tables, told(peeked, means), race(values, LIMIT), missed)


def seeds_of_equal_power(outcomes: Sequence[Outcome]) -> int:
    """The least n of a fixed table that misses no more than ours in every one of the cases; MOST where none does."""

    def is_enough(n: int) -> bool:
        allowed = (max(one.ours[LIMIT]["missed"], 1 - POWER_COUNTED) for one in outcomes)
        return all(one.missed_by_n[n - 1] <= most for one, most in zip(outcomes, allowed, strict=True))

    return next((n for n in range(2, MOST + 1) if is_enough(n)), MOST)


def ratio_of(groups: Sequence[Sequence[Outcome]]) -> list[float]:
    """Trials of a fixed design for each group over the mean of ours in it."""
    found = []
    for group in groups:
        n = seeds_of_equal_power(group)
        theirs = [n * (one.case.num_pairs + 1) for one in group]
        found.append(sum(theirs) / sum(one.ours[LIMIT]["trials"] for one in group))
    return found


def grouped(outcomes: Sequence[Outcome], key: Any) -> list[list[Outcome]]:
    groups: dict[Any, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(key(one.case), []).append(one)
    return list(groups.values())


def main() -> None:
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--replays", type=int, default=0, help="of each case; 0: 1000, or 200 with --quick")
    args = parser.parse_args()
    check_against_judge()
    num_replays = args.replays or (200 if args.quick else 1000)
    outcomes = []
    for number, case in enumerate(cases(args.quick)):
        outcomes.append(play(case, num_replays, number))
        if not args.json:
            print(line_of(outcomes[-1]), flush=True)
    report(outcomes, num_replays, args.json)


def line_of(one: Outcome) -> str:
    ours, table, arms = one.ours[LIMIT], one.fixed[LIMIT], one.case.num_pairs + 1
    said = [
        f"{one.case.name}: ours false {ours['false']:.3f} missed {ours['missed']:.3f} seeds {ours['trials'] / arms:.1f}",
        f"fixed at {LIMIT} false {table['false']:.3f} missed {table['missed']:.3f}",
        f"peeking false {one.peeking['false']:.3f}",
        f"race seeds {one.race['trials'] / arms:.1f} dropped {one.race['dropped']:.2f} the best {one.race['best_dropped']:.3f}",
    ]
    return "; ".join(said)


def report(outcomes: Sequence[Outcome], num_replays: int, as_json: bool) -> None:
    by_block = grouped(outcomes, lambda case: case.block)
    by_size = grouped([one for one in outcomes if one.case.shape == "normal"], lambda case: case.num_pairs)
    ratios, known = ratio_of(by_block), ratio_of([[one] for one in outcomes])
    parts: dict[str, Any] = {"replays_of_each_case": num_replays, "cases": len(outcomes), "limit": LIMIT}
    parts |= false_claims(outcomes, num_replays)
    parts["missed"] = {
        f"{name}_at_{limit}": mean_of(told[limit]["missed"] for told in every)
        for name, every in (("ours", [one.ours for one in outcomes]), ("fixed", [one.fixed for one in outcomes]))
        for limit in LIMITS
    }
    parts["race"] = {
        "trials_over_ours": mean_of(one.race["trials"] / one.ours[LIMIT]["trials"] for one in outcomes),
        "dropped_where_all_are_equal": mean_of(one.race["dropped"] for one in outcomes if one.case.truth == "equal"),
    }
    parts["ratio_of_blocks"], parts["ratio_known_truth"] = _spread(ratios), _spread(known)
    parts["ratio_unknown_spread"] = _spread(ratio_of(by_size))
    for truth in TRUTHS:
        found = [(one, ratio) for one, ratio in zip(outcomes, known, strict=True) if one.case.truth == truth]
        missed, ratio = mean_of(one.ours[LIMIT]["missed"] for one, _ in found), mean_of(ratio for _, ratio in found)
        parts[f"truth_{truth}"] = {"missed": missed, "ratio_known_truth": ratio}
    measure.Result(
        ratio=float(np.mean(ratios)),
        ours=float(np.mean([one.ours[LIMIT]["trials"] for one in outcomes])),
        baseline=float(
            np.mean([seeds_of_equal_power(group) * (one.case.num_pairs + 1) for group in by_block for one in group])
        ),
        unit="trials (one arm at one seed) until every pair has its verdict",
        device=measure.device_name("cpu"),
        parts=parts,
    ).print(as_json)


def false_claims(outcomes: Sequence[Outcome], num_replays: int) -> dict[str, Any]:
    """Of each way the worst case, and how many cases of ours, at any limit, lie above the stated rate."""
    stated = 1 - CONFIDENCE
    by_chance = stated + 3 * math.sqrt(stated * CONFIDENCE / num_replays)
    every = [told["false"] for one in outcomes for told in one.ours.values()]
    # with less than a whole smallest effect between them, the race may drop the best arm
    plain = [one for one in outcomes if TRUTHS[one.case.truth] >= 1]
    found = {f"ours_at_{limit}": worst(outcomes, "false", [one.ours[limit] for one in outcomes]) for limit in LIMITS}
    found[f"fixed_at_{LIMIT}"] = worst(outcomes, "false", [one.fixed[LIMIT] for one in outcomes])
    found["peeking"] = worst(outcomes, "false", [one.peeking for one in outcomes])
    found["race_drops_the_best"] = worst(plain, "best_dropped", [one.race for one in plain])
    return {
        "stated_rate": round(stated, 4),
        "cases_above_it": sum(rate > stated for rate in every),
        "cases_above_it_by_more_than_chance": sum(rate > by_chance for rate in every),
        "worst_false": found,
    }


def worst(outcomes: Sequence[Outcome], what: str, shares: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    place = max(range(len(outcomes)), key=lambda number: shares[number][what])
    return {"rate": round(shares[place][what], 4), "case": outcomes[place].case.name}


def mean_of(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = np.array(values)
    return {
        "mean": round(float(found.mean()), 3),
        "least": round(float(found.min()), 3),
        "median": round(float(np.median(found)), 3),
        "most": round(float(found.max()), 3),
    }


if __name__ == "__main__":
    main()
