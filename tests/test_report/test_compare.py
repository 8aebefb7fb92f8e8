"""Comparisons: paired on what both arms have, corrected over what is compared, silent where n carries nothing."""

from collections.abc import Callable

import pytest

from ddgd_ray.report.compare import choose_control, claim, compare, contenders, highest, marks
from ddgd_ray.run.results import Row, by_arm, paired_differences

Rows = Callable[..., Row]
NOISE = [0.004, -0.003, 0.001, -0.002, 0.003, 0.0, 0.002, -0.001]


def three_arms(row: Rows, num_seeds: int) -> list[Row]:
    """`close` is noise around `best`; `worse` is below it at every seed."""
    rows = []
    for seed in range(num_seeds):
        base = 0.7 + 0.01 * (seed % 3)
        rows += [row("best", seed, top1_last=base), row("close", seed, top1_last=base - 0.001 + NOISE[seed])]
        rows.append(row("worse", seed, top1_last=base - 0.05 + NOISE[seed]))
    return rows


def test_only_shared_seeds_are_paired(row: Rows) -> None:
    rows = [row(seed=seed, top1_last=0.5 + seed) for seed in (0, 1, 2)]
    reference = [row(seed=seed, top1_last=0.25 + seed) for seed in (1, 2, 3)]
    assert paired_differences(rows, reference, "top1_last") == {1: 0.25, 2: 0.25}


def test_an_evaluator_that_one_arm_lacks_is_no_difference_between_the_sets(row: Rows) -> None:
    both = [row(network=network, top1_last=value) for network, value in (("weak", 0.5), ("strong", 0.9))]
    assert paired_differences(both, both[:1], "top1_last") == {0: 0.0}


def test_an_arm_with_fewer_seeds_than_others_is_no_contender(row: Rows) -> None:
    """The first seeds are lucky ones, for every arm."""
    luck = [0.05, 0.05, -0.02, -0.02]
    rows = [row("good", seed, top1_last=0.8 + luck[seed]) for seed in range(4)]
    rows += [row("dropped", seed, top1_last=0.76 + luck[seed]) for seed in range(2)]
    rows += [row("control", seed, is_control=True, top1_last=0.7 + 0.3 * (seed > 3)) for seed in range(8)]
    found = contenders(by_arm(rows), "top1_last")
    assert found.keys() == {"good", "control"}
    assert found["control"].mean == pytest.approx(0.7), "at the seeds of the others alone"
    assert highest(by_arm(rows), "top1_last") == "good"


def test_arms_that_lack_different_seeds_are_compared_all_the_same(row: Rows) -> None:
    lacks = {"low": 3, "high": 2, "middle": 1}
    worth = {"low": 0.5, "high": 0.9, "middle": 0.7}
    rows = [row(arm, seed, top1_last=worth[arm]) for arm, gone in lacks.items() for seed in range(4) if seed != gone]
    assert contenders(by_arm(rows), "top1_last").keys() == lacks.keys()
    assert highest(by_arm(rows), "top1_last") == "high"


def test_below_six_seeds_there_is_no_p_and_nothing_is_distinguishable(row: Rows) -> None:
    arms = by_arm(three_arms(row, 5))
    compared = compare(arms, "best", "top1_last")
    assert all(paired.p is None and paired.p_holm is None for paired in compared.values())
    assert marks(arms, "top1_last") == {"best": "best", "close": "tied", "worse": "tied"}
    assert "no claim of significance is possible (6 are the least)" in claim(compared, "best", "test")


def test_six_seeds_carry_one_comparison_but_not_two(row: Rows) -> None:
    rows = three_arms(row, 6)
    two = compare(by_arm(rows), "best", "top1_last")
    one = compare(by_arm([row for row in rows if row.arm != "close"]), "best", "top1_last")
    assert one["worse"].p_holm == pytest.approx(0.03125)
    assert two["worse"].p_holm == pytest.approx(0.0625)
    assert "2 comparisons no claim of significance is possible" in claim(two, "best", "test")
    assert "(7 seeds are needed)" in claim(two, "best", "test")


def test_eight_seeds_tell_a_worse_arm_from_a_close_one(row: Rows) -> None:
    arms = by_arm(three_arms(row, 8))
    assert marks(arms, "top1_last") == {"best": "best", "close": "tied"}
    said = claim(compare(arms, "best", "top1_last"), "best", "test")
    assert said == "Distinguishable from best by test (n = 8): worse."


def test_full_data_is_neither_best_nor_compared(row: Rows) -> None:
    rows = [*three_arms(row, 6), row("full_data", is_control=True, ipc=0, top1_last=0.99)]
    assert "full_data" not in marks(by_arm(rows), "top1_last")
    assert "full_data" not in compare(by_arm(rows), "best", "top1_last")


def test_one_arm_alone_is_not_called_best(row: Rows) -> None:
    assert marks(by_arm([row(seed=seed, top1_last=0.5) for seed in range(6)]), "top1_last") == {}


@pytest.mark.parametrize(
    ("arms", "control"),
    [
        (["a", "random_real", "plain"], "plain"),
        (["a", "random_real", "full_data"], "random_real"),
        (["b", "a"], "b"),
        (["full_data"], ""),
    ],
)
def test_the_control_is_plain_else_random_else_the_first_arm(row: Rows, arms: list[str], control: str) -> None:
    assert choose_control([row(arm, top1_last=0.5) for arm in arms]) == control
