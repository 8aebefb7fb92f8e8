"""Selections against greedy loops and all subsets. Shapes: N rows, F features."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddgd_ray.method.coresets import farthest_first, herding, k_center


def normal(num_rows: int, num_features: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num_rows, num_features, generator=torch.Generator().manual_seed(seed)) + shift


def mean(rows: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def slow_herding(rows: list[list[float]], num: int) -> list[int]:
    """Every row is tried at every step, and the mean taken anew."""
    unit = [[x / math.hypot(*row) for x in row] for row in rows]
    target, picks = mean(unit), []
    for _ in range(num):
        left = [n for n in range(len(unit)) if n not in picks]
        miss = {n: math.dist(target, mean([unit[p] for p in [*picks, n]])) for n in left}
        picks.append(next(n for n in left if miss[n] <= min(miss.values()) + 1e-9))  # min() of a dict would see rounding
    return picks


def slow_k_center(rows: list[list[float]], num: int, first: int) -> list[int]:
    picks = [first]
    while len(picks) < num:
        left = [n for n in range(len(rows)) if n not in picks]
        picks.append(max(left, key=lambda n: min(math.dist(rows[n], rows[p]) for p in picks)))  # the first of equals
    return picks


def radius(rows: list[list[float]], picks: list[int] | tuple[int, ...]) -> float:
    return max(min(math.dist(row, rows[p]) for p in picks) for row in rows)


shapes = st.tuples(st.integers(1, 14), st.integers(1, 5), st.integers(0, 10**6))


@settings(max_examples=50, deadline=None)
@given(shapes, st.data())
def test_herding_is_that_of_the_loops(shape: tuple[int, int, int], data: st.DataObject) -> None:
    features_NF = normal(*shape[:2], seed=shape[2], shift=0.3)
    num = data.draw(st.integers(1, len(features_NF)))
    assert herding(features_NF, num).tolist() == slow_herding(features_NF.double().tolist(), num)


@settings(max_examples=50, deadline=None)
@given(shapes, st.data())
def test_k_center_is_that_of_the_loops(shape: tuple[int, int, int], data: st.DataObject) -> None:
    features_NF = normal(*shape[:2], seed=shape[2])
    num, first = data.draw(st.integers(1, len(features_NF))), data.draw(st.integers(0, len(features_NF) - 1))
    assert k_center(features_NF, num, first=first).tolist() == slow_k_center(features_NF.double().tolist(), num, first)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=4, max_size=10), st.integers(1, 4))
def test_k_center_reaches_every_row_within_twice_the_least_radius(rows: list[tuple[int, int]], num: int) -> None:
    points = [list(map(float, row)) for row in rows]
    picks = k_center(torch.tensor(points), num, first=0).tolist()
    least = min(radius(points, some) for some in combinations(range(len(points)), num))
    assert radius(points, picks) <= 2 * least + 1e-9


def test_k_center_takes_the_lowest_index_on_a_tie() -> None:
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert k_center(corners, 5, first=0).tolist() == [0, 1, 2, 3, 4]
    assert k_center(corners, 5, first=1).tolist() == [1, 3, 2, 4, 0]


def test_small_features_are_told_apart() -> None:
    features_NF = normal(12, 4, seed=0)
    assert k_center(1e-9 * features_NF, 6, first=3).equal(k_center(features_NF, 6, first=3))
    assert herding(1e-9 * features_NF, 6).equal(herding(features_NF, 6))


@pytest.mark.parametrize("num", [1, 7, 39])
def test_a_smaller_selection_is_a_prefix(num: int) -> None:
    features_NF = normal(40, 8, seed=0)
    assert herding(features_NF, 40)[:num].equal(herding(features_NF, num))
    assert k_center(features_NF, 40, first=5)[:num].equal(k_center(features_NF, num, first=5))


@pytest.mark.parametrize(
    "features_NF", [normal(1, 4, seed=0).repeat(9, 1), torch.zeros(9, 4), normal(3, 4, seed=0).repeat(3, 1)]
)
def test_rows_that_repeat_are_picked_once_each(features_NF: Tensor) -> None:
    assert sorted(herding(features_NF, 9).tolist()) == list(range(9))
    assert sorted(k_center(features_NF, 9, first=4).tolist()) == list(range(9))


def test_equal_rows_are_picked_in_their_order() -> None:
    features_NF = normal(1, 37, seed=0).repeat(9, 1)
    assert herding(features_NF, 9).tolist() == list(range(9))
    assert k_center(features_NF, 9, first=4).tolist() == [4, 0, 1, 2, 3, 5, 6, 7, 8]


def test_a_rotation_and_an_order_of_rows_change_no_pick() -> None:
    features_NF = normal(40, 8, seed=0).double()
    turned_NF = (features_NF @ torch.linalg.qr(normal(8, 8, seed=1).double()).Q).flip(0)
    assert (39 - herding(turned_NF, 10)).equal(herding(features_NF, 10))
    assert (39 - k_center(turned_NF, 10, first=39)).equal(k_center(features_NF, 10, first=0))


def test_herding_comes_nearer_to_the_mean_than_chance() -> None:
    unit_NF = torch.nn.functional.normalize(normal(200, 16, seed=0, shift=0.5), dim=1)
    miss = (unit_NF[herding(unit_NF, 10)].mean(dim=0) - unit_NF.mean(dim=0)).norm()
    draws = [torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:10] for seed in range(20)]
    assert miss < min((unit_NF[rows].mean(dim=0) - unit_NF.mean(dim=0)).norm() for rows in draws)


def test_length_of_a_row_is_nothing_to_herding() -> None:
    features_NF = normal(30, 8, seed=0)
    assert herding(features_NF * torch.linspace(0.1, 10, 30)[:, None], 12).equal(herding(features_NF, 12))


def test_a_row_of_zeros_is_a_row_like_any_other() -> None:
    assert herding(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), 3).tolist() == [2, 0, 1]  # the mean is 0


@pytest.mark.parametrize("num", [0, 6])
def test_more_rows_than_there_are_cannot_be_picked(num: int) -> None:
    with pytest.raises(ValueError, match=f"selection of {num} rows: expected 1 to 5"):
        herding(normal(5, 3, seed=0), num)
    with pytest.raises(ValueError, match=f"selection of {num} rows: expected 1 to 5"):
        k_center(normal(5, 3, seed=0), num, first=0)


@pytest.mark.parametrize("first", [-1, 5])
def test_k_center_starts_at_a_row(first: int) -> None:
    with pytest.raises(ValueError, match=f"first row in 0..4, got {first}"):
        k_center(normal(5, 3, seed=0), 2, first=first)


def test_features_that_are_not_finite_are_refused() -> None:
    features_NF = normal(5, 3, seed=0)
    features_NF[1, 1] = torch.inf
    with pytest.raises(ValueError, match="expected finite numbers"):
        herding(features_NF, 2)


def slow_plain_herding(rows: list[list[float]], num: int) -> list[int]:
    """Rows as they are, not normalised."""
    target, picks = mean(rows), []
    for _ in range(num):
        left = [n for n in range(len(rows)) if n not in picks]
        miss = {n: math.dist(target, mean([rows[p] for p in [*picks, n]])) for n in left}
        picks.append(next(n for n in left if miss[n] <= min(miss.values()) + 1e-9))
    return picks


@settings(max_examples=50, deadline=None)
@given(shapes, st.data())
def test_herding_of_rows_as_they_are_is_that_of_the_loops(shape: tuple[int, int, int], data: st.DataObject) -> None:
    features_NF = 3 * normal(*shape[:2], seed=shape[2], shift=0.3)
    num = data.draw(st.integers(1, len(features_NF)))
    assert herding(features_NF, num, normalized=False).tolist() == slow_plain_herding(features_NF.double().tolist(), num)


def slow_farthest_first(rows: list[list[float]], num: int) -> list[int]:
    unit = [[x / math.hypot(*row) for x in row] for row in rows]
    middle = mean(unit)

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    toward = [cosine(row, middle) for row in unit]
    picks = [next(n for n in range(len(unit)) if toward[n] >= max(toward) - 1e-9)]  # two rows are equally near their middle
    while len(picks) < num:
        near = {n: max(cosine(unit[n], unit[p]) for p in picks) for n in range(len(unit)) if n not in picks}
        picks.append(next(n for n in near if near[n] <= min(near.values()) + 1e-9))
    return picks


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.integers(1, 14), st.integers(2, 5), st.integers(0, 10**6)), st.data())
def test_farthest_first_is_that_of_the_loops(shape: tuple[int, int, int], data: st.DataObject) -> None:
    features_NF = normal(*shape[:2], seed=shape[2], shift=0.3)
    num = data.draw(st.integers(1, len(features_NF)))
    assert farthest_first(features_NF, num).tolist() == slow_farthest_first(features_NF.double().tolist(), num)
