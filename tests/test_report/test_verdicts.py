"""Verdicts: what they say of planted truths, how often they err when one looks after every seed, and that no label matters."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgd_ray.report.verdicts import alpha_of_pair, critical, judge, judge_all, seeds_until_decided

LOOKS = 30


def evidence(t: float, n: int, variance: float) -> float:
    """Likelihood of t under true effects of normal distribution over that under none, by the noncentral t itself."""
    from scipy import integrate, stats

    def weight(effect: float) -> float:
        prior = stats.norm.pdf(effect, scale=math.sqrt(variance))
        return float(prior * stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) / stats.t.pdf(t, n - 1))

    edge = 8 * math.sqrt(variance)
    return float(integrate.quad(weight, -edge, edge, points=[0.0, t / math.sqrt(n)], limit=400)[0])


@pytest.mark.parametrize("n", [4, 6, 10, 25])
def test_the_critical_value_is_where_the_mixture_of_noncentral_t_reaches_its_bound(n: int) -> None:
    alpha = 0.05
    assert evidence(critical(n, alpha), n, 4.0) == pytest.approx(1 / (2 * alpha), rel=1e-3)


def first_words(differences: np.ndarray, smallest_effect: float, alpha: float) -> list[str]:
    """Of each row, the first verdict that falls when it is looked at after every seed."""
    found = []
    for row in differences:
        looks = (judge(row[:n].tolist(), smallest_effect, alpha).word for n in range(2, len(row) + 1))
        found.append(next((word for word in looks if word != "undecided"), "undecided"))
    return found


def draw(rng: np.random.Generator, kind: str, num: int) -> np.ndarray:
    """(num, LOOKS) of mean 0 and spread 1."""
    if kind == "normal":
        return rng.normal(size=(num, LOOKS))
    if kind == "heavy":
        return rng.standard_t(3, size=(num, LOOKS)) / math.sqrt(3)
    return np.round(rng.normal(size=(num, LOOKS)) * 4) / 4  # accuracies of few images


@pytest.mark.parametrize("kind", ["normal", "heavy", "coarse"])
@pytest.mark.parametrize(
    ("true", "wrong"), [(0.0, {"better", "worse"}), (1.0, {"equivalent", "worse"}), (-1.0, {"equivalent", "better"})]
)
def test_looking_after_every_seed_errs_no_more_often_than_stated(kind: str, true: float, wrong: set[str]) -> None:
    """The least favourable truths: none, where either sign is wrong, and exactly the smallest effect, where equivalence is."""
    num, alpha = 1500, 0.1
    words = first_words(true + draw(np.random.default_rng(1), kind, num) * 0.8, 1.0, alpha)
    rate = np.mean([word in wrong for word in words])
    assert rate <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / num)


@pytest.mark.parametrize(("true", "word"), [(0.0, "equivalent"), (0.02, "better"), (-0.02, "worse")])
def test_what_is_plain_is_said(true: float, word: str) -> None:
    words = first_words(true + 0.004 * draw(np.random.default_rng(2), "normal", 200), 0.01, 0.05 / 8)
    assert np.mean([one == word for one in words]) > 0.98


def test_pairs_with_one_reference_err_together_no_more_often_than_stated() -> None:
    num, arms, confidence = 300, 5, 0.9
    rng = np.random.default_rng(3)
    values = 0.003 * rng.normal(size=(num, arms + 1, LOOKS))
    alpha = alpha_of_pair(confidence, arms)
    wrong = [bool({"better", "worse"} & set(first_words(table[1:] - table[0], 0.002, alpha))) for table in values]
    assert np.mean(wrong) <= 0.1 + 3 * math.sqrt(0.09 / num)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=12), st.floats(0.01, 0.5))
def test_the_arm_that_is_better_is_worse_seen_from_the_other(differences: list[float], smallest_effect: float) -> None:
    mirror = {"better": "worse", "worse": "better", "equivalent": "equivalent", "undecided": "undecided"}
    one = judge(differences, smallest_effect, 0.05)
    other = judge([-value for value in differences], smallest_effect, 0.05)
    assert other.word == mirror[one.word]
    assert other.within == pytest.approx(one.within)


@given(st.lists(st.integers(-50, 50), min_size=5, max_size=10), st.permutations(["a", "b", "c"]))
@settings(max_examples=30)
def test_names_and_the_order_of_arms_change_no_verdict(values: list[int], names: list[str]) -> None:
    rows = [[value * scale / 1000 for value in values] for scale in (1, 2, 3)]
    found = judge_all(dict(zip("abc", rows, strict=True)), 0.01, 0.95)
    again = judge_all(dict(zip(names, rows, strict=True)), 0.01, 0.95)
    assert list(found.values()) == list(again.values())


def test_more_pairs_make_each_harder_to_decide() -> None:
    differences = [0.011, 0.013, 0.009, 0.014, 0.010, 0.012]
    alone = judge(differences, 0.005, alpha_of_pair(0.95, 1))
    among_many = judge(differences, 0.005, alpha_of_pair(0.95, 20))
    assert alone.interval is not None
    assert among_many.interval is not None
    assert among_many.interval.low < alone.interval.low < alone.difference
    assert alone.word == "better"


def test_equal_differences_decide_nothing() -> None:
    verdict = judge([0.02] * 8, 0.01, 0.05)
    assert (verdict.word, verdict.interval) == ("undecided", None)
    assert judge([], 0.01, 0.05).n == 0


def test_critical_values_fall_with_seeds_and_grow_with_what_is_asked() -> None:
    for alpha in (0.05, 0.005):
        values = [critical(n, alpha) for n in range(2, 25)]
        assert all(one >= other for one, other in itertools.pairwise(values))
        assert math.isinf(critical(1, alpha))
    assert critical(10, 0.005) > critical(10, 0.05)


def test_seeds_until_decided_is_where_half_of_equal_pairs_are() -> None:
    alpha, std, effect = 0.05 / 8, 0.004, 0.01
    expected = seeds_until_decided(effect, std, alpha)
    assert expected is not None
    rows = std * np.random.default_rng(5).normal(size=(400, LOOKS))
    decided = [judge(row[: expected + 1].tolist(), effect, alpha).word == "equivalent" for row in rows]
    assert 0.3 < np.mean(decided) < 0.9
    assert seeds_until_decided(0.01, 100.0, alpha) is None
