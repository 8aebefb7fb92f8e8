"""Statistics: what textbooks publish comes out, and nothing comes out where nothing can be known."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddgd_ray.report.statistics import bca_interval, holm, mean_interval, seeds_needed, sign_flip_p, smallest_p
from ddgd_ray.run.results import stat_of

# Darwin's cross- minus self-fertilised Zea mays, eighths of an inch; Fisher, The Design of Experiments (1935), section 21
ZEA_MAYS = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
# spatial test data, column A; Efron and Tibshirani, An Introduction to the Bootstrap (1993), table 14.1
SPATIAL_A = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]


def test_sign_flips_give_fishers_exact_p_of_darwins_maize() -> None:
    assert sign_flip_p(ZEA_MAYS) == pytest.approx(1726 / 32768, abs=1e-12)


def test_sign_flips_do_not_care_which_arm_is_called_first() -> None:
    assert sign_flip_p(ZEA_MAYS) == sign_flip_p([-difference for difference in ZEA_MAYS])


def test_equal_arms_have_p_one() -> None:
    assert sign_flip_p([0.0] * 6) == 1.0


def test_six_seeds_of_one_sign_give_the_smallest_p_there_is() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3, 0.1, 0.5, 0.2]) == pytest.approx(2 / 64)
    assert smallest_p(6, 1) == 2 / 64


def test_more_seeds_than_can_be_enumerated_are_drawn_and_drawn_alike() -> None:
    differences = [0.1 + 0.01 * seed for seed in range(20)]
    assert sign_flip_p(differences) < 1e-3
    assert sign_flip_p(tuple(differences)) == sign_flip_p(differences)


def test_bca_gives_efrons_interval_of_a_variance() -> None:
    found = bca_interval(SPATIAL_A, np.var, confidence=0.9)
    assert found is not None
    # (115.8, 259.6) in the book from 2,000 resamples; other seeds differ by about 1 below and 4 above, where the tail is thin
    assert found.low == pytest.approx(115.8, abs=2)
    assert found.high == pytest.approx(259.6, abs=6)


def test_intervals_are_the_same_each_time() -> None:
    assert bca_interval(SPATIAL_A, np.mean) == bca_interval(SPATIAL_A, np.mean)


@pytest.mark.parametrize("n", [3, 4, 6, 12, 26])
def test_the_interval_of_a_mean_is_scipys(n: int) -> None:
    values = [0.7 + 0.001 * value for value in SPATIAL_A[:n]]
    slow, quick = bca_interval(values, np.mean), mean_interval(values)
    assert slow is not None
    assert quick is not None
    assert (quick.low, quick.high) == pytest.approx((slow.low, slow.high), abs=1e-12)  # sums in another order


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6], [0.7] * 6, [0.1 + 0.2, 0.3, 0.3, 0.3]])
def test_too_few_or_equal_values_have_no_interval(values: list[float]) -> None:
    assert mean_interval(values) is None


def test_holm_gives_the_textbook_example() -> None:
    # Holm's step-down on four hypotheses, as in R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[place] for place in order] == sorted(adjusted)
    for raw, corrected in zip(p_values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw)


def test_spread_is_the_sample_standard_deviation() -> None:
    values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]
    stat = stat_of(values)
    assert stat is not None
    assert stat.std == pytest.approx((32 / 7) ** 0.5) == statistics.stdev(values)  # 2 with ddof = 0
    assert stat.n == 8


@pytest.mark.parametrize(("num_compared", "seeds"), [(1, 6), (2, 7), (3, 7), (4, 8), (8, 9)])
def test_the_seeds_needed_are_the_first_that_can_reach_significance(num_compared: int, seeds: int) -> None:
    assert seeds_needed(num_compared) == seeds
    assert smallest_p(seeds, num_compared) < 0.05 <= smallest_p(seeds - 1, num_compared)
