"""Effects of a factorial experiment: published examples come out, labels and constants do not matter, chance stays chance."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddgd_ray.report.blocks import permutation_p
from ddgd_ray.report.effects import Effect, effects, parts_of_method, residual_spread
from ddgd_ray.report.statistics import sign_flip_p

# Yates 1935, oats in 6 blocks, R's MASS::oats: variety (Victory, Golden Rain, Marvellous) x nitrogen (0, .2, .4, .6)
OATS = np.array(
    [
        [[111, 130, 157, 174], [117, 114, 161, 141], [105, 140, 118, 156]],
        [[61, 91, 97, 100], [70, 108, 126, 149], [96, 124, 121, 144]],
        [[68, 64, 112, 86], [60, 102, 89, 96], [89, 129, 132, 124]],
        [[74, 89, 81, 122], [64, 103, 132, 133], [70, 89, 104, 117]],
        [[62, 90, 100, 116], [80, 82, 94, 126], [63, 70, 109, 99]],
        [[53, 74, 118, 113], [89, 82, 86, 104], [97, 99, 119, 121]],
    ],
    dtype=float,
)
OATS_FACTORS = {"variety": ["victory", "golden", "marvellous"], "nitrogen": [0.0, 0.2, 0.4, 0.6]}
BLOCKS = [1, 2, 3, 4, 5, 6]
# Darwin's cross- minus self-fertilised Zea mays; Fisher, The Design of Experiments (1935), section 21
ZEA_MAYS = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
GRID = {"a": ["x", "y", "z"], "b": [1, 2, 3]}


def of_kind(found: list[Effect], kind: str) -> list[Effect]:
    return [effect for effect in found if effect.kind == kind]


def the(found: list[Effect], kind: str, *levels: object) -> Effect:
    (one,) = [effect for effect in found if effect.kind == kind and effect.levels == levels]
    return one


def noise(seed: int, shape: tuple[int, ...] = (3, 3, 3)) -> np.ndarray:
    """Seeds shift all cells alike, as seeds do."""
    rng = np.random.default_rng(seed)
    return 0.69 + 0.005 * rng.normal(size=(shape[0], *[1] * (len(shape) - 1))) + 0.004 * rng.normal(size=shape)


def test_sums_of_squares_are_those_that_r_publishes_for_the_oats() -> None:
    """summary(aov(Y ~ N*V + Error(B/V), oats)): V 1786, N 20020, N:V 322; residuals 6013 + 7969 on 10 + 45."""
    found = effects(OATS, BLOCKS, OATS_FACTORS)
    nitrogen = [one for one in of_kind(found, "mean") if one.factors == ("nitrogen",)]
    varieties = [one for one in of_kind(found, "mean") if one.factors == ("variety",)]
    squares = [sum(one.difference**2 for one in group) for group in (varieties, nitrogen, of_kind(found, "interaction"))]
    assert [24 * squares[0], 18 * squares[1], 6 * squares[2]] == pytest.approx([1786.361, 20020.5, 321.75], abs=1e-3)
    spread, freedom = residual_spread(OATS)
    assert freedom == 55
    assert spread**2 * 55 == pytest.approx(13982.056, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "levels", "difference", "low", "high"),
    [  # statsmodels 0.14, ols("Y ~ C(B, Sum) + C(V, Sum) * C(N, Sum)"): params and conf_int
        ("mean", ("golden",), 0.527778, -4.797722, 5.853277),
        ("mean", ("marvellous",), 5.819444, 0.493945, 11.144944),
        ("mean", (0.0,), -24.583333, -31.105711, -18.060955),
        ("mean", (0.2,), -5.083333, -11.605711, 1.439045),
        ("interaction", ("golden", 0.0), 0.083333, -9.140702, 9.307369),
        ("interaction", ("marvellous", 0.2), 3.791667, -5.432369, 13.015702),
    ],
)
def test_effects_and_intervals_are_those_of_statsmodels(
    kind: str, levels: tuple[object, ...], difference: float, low: float, high: float
) -> None:
    one = the(effects(OATS, BLOCKS, OATS_FACTORS), kind, *levels)
    assert one.interval is not None
    assert (one.difference, one.interval.low, one.interval.high) == pytest.approx((difference, low, high), abs=1e-5)


def test_a_residual_spread_with_holes_is_that_of_statsmodels() -> None:
    """ols("Y ~ C(B) + C(V) * C(N)") without rows 3, 17, 40, 41 and 60 of the table in the order V, G, M: 15.946773 on 50."""
    holes = OATS.copy()
    holes.reshape(-1)[[3, 17, 40, 41, 60]] = np.nan
    assert residual_spread(holes) == (pytest.approx(15.946772734, abs=1e-8), 50)


def test_what_the_oats_say_of_varieties_depends_on_whether_a_plot_or_a_strip_counts() -> None:
    """Varieties were sown on whole strips: R's p is .27 with strips, .037 with plots. Seeds are to us what blocks are there."""
    marvellous = the(effects(OATS, BLOCKS, OATS_FACTORS), "mean", "marvellous")
    assert marvellous.p < 0.05
    assert marvellous.seed_interval is not None
    assert marvellous.seed_interval.low < 0
    assert not marvellous.is_distinguishable
    assert the(effects(OATS, BLOCKS, OATS_FACTORS), "mean", 0.0).is_distinguishable


def test_a_contrast_of_two_arms_has_fishers_exact_p_of_darwins_maize() -> None:
    p, is_exact = permutation_p(ZEA_MAYS, [[one, -one] for one in ZEA_MAYS])
    assert is_exact
    assert p == pytest.approx(1726 / 32768, abs=1e-12)
    assert p == pytest.approx(sign_flip_p(ZEA_MAYS), abs=1e-12)


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_the_exact_p_is_the_share_of_all_patterns_one_by_one(num_blocks: int, num_choices: int, seed: int) -> None:
    choices = np.random.default_rng(seed).integers(-3, 4, (num_blocks, num_choices)) / 10  # coarse: many ties
    values = choices[:, 0]
    sums = [abs(sum(pattern)) for pattern in itertools.product(*choices.tolist())]
    expected = np.mean([one >= abs(values.sum()) - 1e-12 for one in sums])
    assert permutation_p(values, choices)[0] == pytest.approx(expected)


def test_what_cannot_be_counted_is_drawn_and_agrees_with_what_can() -> None:
    rng = np.random.default_rng(0)
    few = rng.normal(0.3, 1, 44)
    exact, is_exact = permutation_p(few, np.stack([few, -few], axis=1))
    assert is_exact
    wide = np.repeat(np.stack([few, -few], axis=1), 3, axis=1)  # the same distribution, 6**22 patterns a half
    drawn, is_counted = permutation_p(few, wide)
    assert not is_counted
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 99_999))
    assert permutation_p(few, wide)[0] == drawn


def test_nine_of_nine_blocks_lower_are_found_where_three_seeds_of_one_arm_are_not() -> None:
    values = noise(1)
    values[:, 1] = values[:, 0] - np.random.default_rng(2).uniform(0.002, 0.006, (3, 3))
    lower = the(effects(values, [0, 1, 2], GRID, {"a": "x"}), "default", "y")
    assert lower.num_blocks == 9
    assert lower.p == 2 / 2**9
    assert lower.p_holm == pytest.approx(2 * lower.p)  # y and z against x, y the smaller
    assert lower.is_distinguishable
    assert sign_flip_p([float(one) for one in values[:, 1, 0] - values[:, 0, 0]]) == 0.25


def test_a_planted_interaction_is_found_and_leaves_main_effects_alone() -> None:
    values = noise(3, (6, 2, 2))
    values += 0.02 * np.array([[1, -1], [-1, 1]])
    found = effects(values, list(range(6)), {"a": [0, 1], "b": ["p", "q"]}, {"a": 0})
    assert the(found, "interaction", 0, "p").difference == pytest.approx(0.02, abs=0.003)
    assert the(found, "interaction", 0, "p").p_holm == 2 / 2**6  # one hypothesis, four mirror images
    assert not any(one.is_distinguishable for one in found if one.kind != "interaction")


def test_a_factor_of_two_levels_is_one_hypothesis() -> None:
    found = of_kind(effects(noise(4, (5, 2, 3)), list(range(5)), {"a": ["x", "y"], "b": [1, 2, 3]}), "mean")
    one, other = (the(found, "mean", level) for level in ("x", "y"))
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == other.p
    assert len({effect.hypothesis for effect in found}) == 1 + 3


@given(st.integers(0, 10_000), st.permutations([0, 1, 2]), st.permutations([0, 1, 2]), st.floats(-10, 10))
@settings(deadline=None, max_examples=25)
def test_other_names_another_order_and_a_constant_change_no_effect(
    seed: int, rows: list[int], columns: list[int], constant: float
) -> None:
    values = noise(seed)
    moved = constant + values[:, rows][:, :, columns]
    factors = {"a": [GRID["a"][row] for row in rows], "b": [GRID["b"][column] for column in columns]}
    found, again = (effects(array, [0, 1, 2], names, {"a": "x", "b": 2}) for array, names in ((values, GRID), (moved, factors)))
    assert len(found) == len(again) == 6 + 4 + 9
    for one in found:
        other = the(again, one.kind, *one.levels)
        assert other.difference == pytest.approx(one.difference, abs=1e-9)
        assert (other.p, other.p_holm) == pytest.approx((one.p, one.p_holm), abs=1e-3)  # a tie may break in the last digit


def test_swapping_the_two_factors_changes_no_effect() -> None:
    values = noise(5)
    found = effects(values, [0, 1, 2], GRID)
    again = effects(values.transpose(0, 2, 1), [0, 1, 2], {"b": GRID["b"], "a": GRID["a"]})
    for one in found:
        other = the(again, one.kind, *one.levels[::-1])
        assert (other.difference, other.p_holm) == pytest.approx((one.difference, one.p_holm))


@pytest.mark.parametrize("kind", ["mean", "default", "interaction"])
def test_where_nothing_differs_no_family_claims_more_often_than_stated(kind: str) -> None:
    """Family-wise, by Holm's p alone, 600 experiments of 3 x 3 at three seeds; and with the seeds' interval besides."""
    num = 600
    claims, both = 0, 0
    for seed in range(num):
        found = of_kind(effects(noise(seed), [0, 1, 2], GRID, {"a": "x", "b": 1}), kind)
        claims += any(one.p_holm < 0.05 for one in found)
        both += any(one.is_distinguishable for one in found)
    assert both <= claims <= 0.05 * num + 3 * math.sqrt(0.05 * 0.95 * num)


def test_luck_that_a_seed_gives_a_level_passes_for_an_effect_within_blocks_but_hardly_ever_over_seeds() -> None:
    """Why both must agree: each seed favours levels of its own by .006 in all their cells, no level is better on average."""
    num = 300
    claims, both = 0, 0
    for seed in range(num):
        luck = 0.006 * np.random.default_rng(10_000 + seed).normal(size=(3, 3, 1))
        found = of_kind(effects(noise(seed) + luck, [0, 1, 2], GRID), "mean")
        claims += any(one.p_holm < 0.05 for one in found)
        both += any(one.is_distinguishable for one in found)
    assert claims > 0.2 * num  # an effect of nine blocks that is one of three seeds
    assert both < 0.5 * claims


def test_cells_that_failed_leave_out_their_blocks_alone() -> None:
    values = noise(6)
    values[0, 1, 2] = np.nan
    found = effects(values, [0, 1, 2], GRID, {"a": "x"})
    assert the(found, "mean", "x").num_blocks == 8
    assert the(found, "default", "y").num_blocks == 8
    assert the(found, "default", "z").num_blocks == 9
    assert the(found, "interaction", "x", 1).num_blocks == 2


def test_a_level_that_never_ran_has_no_effect() -> None:
    values = noise(7)
    values[:, 2] = np.nan
    found = effects(values, [0, 1, 2], GRID, {"a": "x"})
    assert {one.levels for one in of_kind(found, "default")} == {("y",)}
    assert {one.levels for one in of_kind(found, "mean")} == {("x",), ("y",), (1,), (2,), (3,)}
    assert the(found, "mean", "x").num_blocks == 9


def test_one_seed_has_effects_without_an_interval_over_seeds() -> None:
    (one,) = [one for one in effects(noise(8)[:1], [7], GRID) if one.levels == ("x",)]
    assert one.by_seed.keys() == {7}
    assert one.seed_interval is None
    assert not one.is_distinguishable


def test_three_factors_have_blocks_of_a_seed_and_the_other_two() -> None:
    values = noise(9, (4, 2, 3, 2))
    found = effects(values, list(range(4)), {"a": [0, 1], "b": [0, 1, 2], "c": [0, 1]})
    assert the([one for one in found if one.factors == ("b",)], "mean", 1).num_blocks == 4 * 2 * 2
    planes = {one.factors: one.num_blocks for one in of_kind(found, "interaction")}
    assert planes == {("a", "b"): 4 * 2, ("a", "c"): 4 * 3, ("b", "c"): 4 * 2}


def test_parts_of_a_method_are_what_it_loses_without_them() -> None:
    losses = {
        "L_gen": {seed: 0.01 + 0.001 * seed for seed in range(6)},
        "L_real": {seed: 0.001 * (-1) ** seed for seed in range(6)},
        "never ran": {},
    }
    found = parts_of_method(losses)
    assert [one.factors for one in found] == [("L_gen",), ("L_real",)]
    assert found[0].difference == pytest.approx(0.0125)
    assert (found[0].p, found[0].p_holm) == (2 / 64, 4 / 64)
    assert found[1].p == 1.0
