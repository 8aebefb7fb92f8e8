"""Power and two one-sided tests against values that others published."""

import itertools
import math

import numpy as np
import pytest

from ddgd_ray.report.power import (
    paired_power,
    seeds_to_equate,
    seeds_to_tell,
    smallest_told,
    tost,
    tost_interval,
    tost_power,
)


def test_dalgaards_paired_example_needs_twenty_pairs() -> None:
    """Introductory Statistics with R, section 8.3: power.t.test(delta=10, sd=10*sqrt(2), power=0.85, paired): n = 19.96892."""
    assert seeds_to_tell(10, 10 * math.sqrt(2), power=0.85) == 20


def test_the_power_of_ten_pairs_is_what_r_prints() -> None:
    """power.t.test(delta=.5, sd=.3088401, n=10, type="paired"): 0.9947832."""
    assert paired_power(10, 0.5, 0.3088401) == pytest.approx(0.9947832, abs=1e-6)


def test_the_smallest_effect_is_where_the_power_is_reached() -> None:
    assert smallest_told(10, 0.3088401, power=0.9947832) == pytest.approx(0.5, abs=1e-5)
    assert smallest_told(6, 0.008) == pytest.approx(2 * smallest_told(6, 0.004))
    assert math.isinf(smallest_told(1, 0.004))


@pytest.mark.parametrize(("cv", "n", "power"), [(0.2, 20, 0.8346802), (0.3, 40, 0.8158456)])
def test_the_power_of_two_one_sided_tests_is_that_of_powertost(cv: float, n: int, power: float) -> None:
    """R's PowerTOST, power.TOST(CV, n, theta0=0.95), crossover design of two periods: error sd sqrt(2 / n), n - 2 degrees."""
    error = math.sqrt(math.log(1 + cv**2)) * math.sqrt(2 / n)
    assert tost_power(error, n - 2, math.log(1.25), math.log(0.95)) == pytest.approx(power, abs=1e-6)


def test_the_interval_of_two_one_sided_tests_is_that_of_powertost() -> None:
    """CI.BE(pe=0.95, CV=0.20, n=20): 0.8522362, 1.0589787."""
    error = math.sqrt(math.log(1.04)) * math.sqrt(2 / 20)
    found = tost_interval(math.log(0.95), error, 18)
    assert (math.exp(found.low), math.exp(found.high)) == pytest.approx((0.8522362, 1.0589787), abs=1e-7)


def test_two_one_sided_tests_give_the_p_of_statsmodels() -> None:
    """ttost_paired([4, 7, 8, 6, 3, 2], [6, 8, 7, 10, 11, 9], -0.5, 0.5): 0.9548544, the documented example of pingouin."""
    differences = np.array([4, 7, 8, 6, 3, 2]) - np.array([6, 8, 7, 10, 11, 9])
    error = differences.std(ddof=1) / math.sqrt(6)
    assert tost(differences.mean(), error, 5, 0.5) == pytest.approx(0.9548543554, abs=1e-9)


@pytest.mark.parametrize("mean", [0.0, 0.3, -0.8])
def test_the_interval_lies_within_the_margins_exactly_where_p_is_below_alpha(mean: float) -> None:
    for error in (0.05, 0.1, 0.2, 0.4):
        found = tost_interval(mean, error, 7)
        assert (tost(mean, error, 7, 1.0) < 0.05) == (found.low > -1.0 and found.high < 1.0)


def test_the_power_to_equate_is_what_simulation_counts() -> None:
    rng = np.random.default_rng(0)
    rows = 0.002 + 0.006 * rng.normal(size=(20_000, 9))
    errors = rows.std(axis=1, ddof=1) / 3
    counted = np.mean([tost(mean, error, 8, 0.01) < 0.05 for mean, error in zip(rows.mean(axis=1), errors, strict=True)])
    assert tost_power(0.002, 8, 0.01, 0.002) == pytest.approx(counted, abs=4 * math.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("std", [0.002, 0.004, 0.01])
def test_seeds_are_the_fewest_that_reach_the_power(std: float) -> None:
    n = seeds_to_tell(0.005, std)
    assert n is not None
    assert paired_power(n, 0.005, std) >= 0.8
    assert n == 2 or paired_power(n - 1, 0.005, std) < 0.8
    m = seeds_to_equate(0.005, std)
    assert m is not None
    assert tost_power(std / math.sqrt(m), m - 1, 0.005) >= 0.8
    assert m == 2 or tost_power(std / math.sqrt(m - 1), m - 2, 0.005) < 0.8


def test_what_no_reasonable_number_of_seeds_tells_has_no_number() -> None:
    assert seeds_to_tell(1e-6, 1.0) is None


@pytest.mark.parametrize("n", [2, 3, 5, 11])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12, 0.0005])
def test_power_is_known_and_grows_however_large_the_effect(n: int, alpha: float) -> None:
    powers = [paired_power(n, effect, 1.0, alpha) for effect in (0.5, 1.0, 2.0, 8.0, 16.0, 64.0, 512.0)]
    assert all(one <= other + 1e-12 for one, other in itertools.pairwise(powers))
    assert powers[-1] > powers[0]
    assert paired_power(n, smallest_told(n, 0.004, alpha=alpha), 0.004, alpha) == pytest.approx(0.8)
