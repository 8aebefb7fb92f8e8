"""The race's test, simulated: how often it drops the best arm, against the rate that it states."""

import math
from typing import Any

import numpy as np
import pytest

from ddgd_ray.search.elimination import Elimination, pooled_error
from ddgd_ray.spec.fidelity_spec import RaceSpec

NUM_RACES = 1500


def race(rows: Any, spec: RaceSpec) -> Elimination:
    """A whole race over (arms, seeds)."""
    num_arms, num_seeds = rows.shape
    elimination = Elimination(spec, num_arms, num_seeds - spec.first_seeds)
    live = [str(arm) for arm in range(num_arms)]
    for n in range(spec.first_seeds, num_seeds):
        for drop in elimination.look({arm: rows[int(arm), :n].tolist() for arm in live}):
            live.remove(drop.arm)
        if len(live) <= spec.keep:
            break
    return elimination


def races(means: list[float], spec: RaceSpec, stds: list[float], num_seeds: int = 8, seed: int = 0) -> list[set[str]]:
    """The dropped arms of each of NUM_RACES races. Seeds shift all arms alike, as seeds do."""
    rng = np.random.default_rng(seed)
    shape = (NUM_RACES, len(means), num_seeds)
    values = np.array(means)[:, None] + rng.normal(size=shape) * np.array(stds)[:, None]
    values += 0.02 * rng.normal(size=(NUM_RACES, 1, num_seeds))
    return [set(race(rows, spec).dropped) for rows in values]


def share(found: list[bool]) -> tuple[float, float]:
    """Of true ones, and three standard errors at the rate of 5 %."""
    return float(np.mean(found)), 3 * math.sqrt(0.05 * 0.95 / len(found))


@pytest.mark.parametrize("pool", [False, True])
def test_the_best_of_almost_equal_arms_is_dropped_no_more_often_than_stated(pool: bool) -> None:
    """The least favourable case: the more alike, the more often chance makes the best look worse."""
    dropped = races([0.0001, *[0.0] * 5], RaceSpec(pool_variance=pool), [0.01] * 6)
    rate, margin = share(["0" in one for one in dropped])
    assert rate <= 0.05 + margin


def test_arms_of_different_spread_keep_the_rate_of_own_differences() -> None:
    rate, margin = share(["0" in one for one in races([0.0001, *[0.0] * 5], RaceSpec(), [0.03, *[0.004] * 5])])
    assert rate <= 0.05 + margin


def test_a_pooled_variance_loses_its_rate_when_the_spreads_differ() -> None:
    """Why it is not the default."""
    spec = RaceSpec(pool_variance=True)
    rate, margin = share(["0" in one for one in races([0.0001, *[0.0] * 5], spec, [0.06, *[0.004] * 5])])
    assert rate > 0.05 + margin


@pytest.mark.parametrize("pool", [False, True])
def test_with_an_indifference_zone_an_arm_as_good_as_the_best_up_to_it_is_kept(pool: bool) -> None:
    """A ladder of arms, each half the zone below the one before: a chain of drops would lead far down."""
    spec = RaceSpec(min_effect=0.02, pool_variance=pool)
    dropped = races([0.0, -0.011, -0.022, -0.033, -0.044], spec, [0.004] * 5)
    rate, margin = share([{"0", "1"} <= one for one in dropped])
    assert rate <= 0.05 + margin
    assert np.mean(["4" in one for one in dropped]) > 0.5


def test_clearly_worse_arms_are_dropped_early_by_a_pooled_variance_and_later_by_their_own() -> None:
    means = np.array([[0.0], [0.0], [-0.06], [-0.06]])
    pooled, own = (
        [race(means + np.random.default_rng(seed).normal(size=(4, 12)) * 0.01, spec) for seed in range(50)]
        for spec in (RaceSpec(pool_variance=True), RaceSpec())
    )
    assert all({"2", "3"} <= set(one.dropped) for one in [*pooled, *own])
    seeds = [np.mean([len(one.dropped[arm]) for one in group for arm in ("2", "3")]) for group in (pooled, own)]
    assert seeds[0] < 3.5 < 4 < seeds[1]


def test_two_arms_pooled_are_a_paired_t_test() -> None:
    rows = [[0.1, 0.4, 0.2, 0.5], [0.2, 0.35, 0.3, 0.7]]
    differences = [a - b for a, b in zip(*rows, strict=True)]
    error, freedom = pooled_error(rows)
    assert freedom == 3
    assert error == pytest.approx(np.std(differences, ddof=1) / 2)


def test_equal_differences_at_all_seeds_drop_nobody() -> None:
    elimination = Elimination(RaceSpec(), 2, 5)
    assert elimination.look({"a": [0.5, 0.6, 0.7], "b": [0.25, 0.35, 0.45]}) == []


def test_a_race_keeps_as_many_as_it_is_told() -> None:
    rows = np.array([[0.0], [-1.0], [-2.0], [-3.0]]) + np.random.default_rng(0).normal(size=(4, 8)) * 0.01
    assert len(race(rows, RaceSpec(keep=2, pool_variance=True)).dropped) == 2
