"""Metrics of a set against plain loops, scipy and scikit-learn. Shapes: N real rows, M set rows, F features."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ddgd_ray.method import metrics
from ddgd_ray.method.metrics import (
    Prdc,
    class_similarities,
    copies,
    frechet_distance,
    mean_pairwise_similarity,
    prdc,
    vendi,
)

ROUNDING = 1e-9  # of float64, after sums over a few hundred terms near 1


def normal(num_rows: int, num_features: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num_rows, num_features, generator=torch.Generator().manual_seed(seed)) + shift


def rotation(num_features: int, *, seed: int = 9) -> Tensor:
    return torch.linalg.qr(normal(num_features, num_features, seed=seed).double()).Q


def slow_prdc(real: list[list[float]], rows: list[list[float]], k: int) -> Prdc:
    """The definitions, ball by ball."""

    def radii(points: list[list[float]]) -> list[float]:
        return [sorted(math.dist(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    real_radii, set_radii = radii(real), radii(rows)
    in_real = [[math.dist(r, s) < radius * (1 - 1e-12) for r, radius in zip(real, real_radii, strict=True)] for s in rows]
    in_set = [[math.dist(r, s) < radius * (1 - 1e-12) for s, radius in zip(rows, set_radii, strict=True)] for r in real]
    return Prdc(
        precision=sum(any(row) for row in in_real) / len(rows),
        recall=sum(any(row) for row in in_set) / len(real),
        density=sum(sum(row) for row in in_real) / (k * len(rows)),
        coverage=sum(any(column) for column in zip(*in_real, strict=True)) / len(real),
    )


def slow_frechet(real: np.ndarray, rows: np.ndarray) -> float:
    """pytorch-fid's formula."""
    first, second = np.cov(real, rowvar=False), np.cov(rows, rowvar=False)
    root = sqrtm(first @ second)
    step = real.mean(0) - rows.mean(0)
    return float(step @ step + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def slow_vendi(rows: np.ndarray) -> float:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    return math.exp(-sum(share * math.log(share) for share in shares if share > 1e-14))


def slow_similarity(rows: list[list[float]]) -> float:
    values = [
        sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
        for i, a in enumerate(rows)
        for b in rows[:i]
    ]
    return sum(values) / len(values)


# precision, recall, density, coverage


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 25), st.integers(4, 25), st.integers(1, 3), st.integers(1, 30), st.integers(0, 10**6))
def test_prdc_is_that_of_the_loops(num_real: int, num_set: int, k: int, chunk: int, seed: int) -> None:
    real_NF, set_MF = normal(num_real, 2, seed=seed), 0.7 * normal(num_set, 2, seed=seed + 1, shift=0.5)
    expected = slow_prdc(real_NF.double().tolist(), set_MF.double().tolist(), k)
    assert prdc(real_NF, set_MF, k=k, chunk=chunk) == pytest.approx(expected, abs=ROUNDING)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_prdc_is_that_of_the_loops_where_distances_tie(data: st.DataObject) -> None:
    points = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=4, max_size=15)
    real, rows = data.draw(points), data.draw(points)
    found = prdc(torch.tensor(real).float() + 100, torch.tensor(rows).float() + 100, k=3, chunk=4)
    assert found == pytest.approx(slow_prdc([list(p) for p in real], [list(p) for p in rows], 3), abs=ROUNDING)


def test_the_balls_are_those_of_scikit_learn() -> None:
    real_NF, set_MF = normal(300, 16, seed=0), normal(80, 16, seed=1, shift=0.3)
    radii = NearestNeighbors(n_neighbors=5).fit(real_NF.numpy()).kneighbors()[0][:, -1]
    to_set, _ = NearestNeighbors(n_neighbors=1).fit(set_MF.numpy()).kneighbors(real_NF.numpy())
    # float32 inside scikit-learn: no distance of this draw lies within its rounding of a radius
    assert prdc(real_NF, set_MF, k=5).coverage == float((to_set[:, 0] < radii).mean())


def test_a_set_equal_to_the_real_rows_has_everything() -> None:
    rows_NF = normal(50, 8, seed=0)
    found = prdc(rows_NF, rows_NF[torch.randperm(50, generator=torch.Generator().manual_seed(1))], k=5, chunk=7)
    assert found == Prdc(precision=1.0, recall=1.0, density=5 / 5, coverage=1.0)  # itself and four: the fifth is the border


def test_a_set_far_away_has_nothing() -> None:
    assert prdc(normal(50, 8, seed=0), normal(40, 8, seed=1, shift=1e3)) == Prdc(0.0, 0.0, 0.0, 0.0)


def test_a_set_of_one_mode_is_precise_and_covers_that_mode_alone() -> None:
    left_NF, right_NF = normal(60, 4, seed=0), normal(60, 4, seed=1, shift=100.0)
    found = prdc(torch.cat([left_NF, right_NF]), left_NF[:30], k=5)
    assert found.precision == 1.0
    assert found.recall <= 0.5
    assert 0.3 < found.coverage <= 0.5


def test_the_density_of_fresh_draws_is_near_one() -> None:
    density = [prdc(normal(400, 4, seed=seed), normal(400, 4, seed=1000 + seed)).density for seed in range(5)]
    assert np.mean(density) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 1000])
def test_prdc_does_not_depend_on_the_chunk(chunk: int) -> None:
    real_NF, set_MF = normal(61, 16, seed=0, shift=30.0), normal(40, 16, seed=1, shift=30.1)
    set_MF[:10] = real_NF[:10]
    assert prdc(real_NF, set_MF, k=3, chunk=chunk) == prdc(real_NF, set_MF, k=3, chunk=61)


def test_features_far_from_zero_lose_no_neighbours() -> None:
    real_NF, set_MF = normal(60, 16, seed=0).double(), normal(40, 16, seed=1).double()
    assert prdc(real_NF + 1e8, set_MF + 1e8) == prdc(real_NF, set_MF)  # squares of 1e16 know no differences near 1


def test_a_ball_of_radius_zero_holds_nothing_as_in_the_code_of_prdc() -> None:
    rows_NF = normal(4, 64, seed=0, shift=50.0).repeat_interleave(5, dim=0)  # four neighbours of each are its equals
    found = prdc(rows_NF, rows_NF.flip(0), k=3, chunk=3)
    assert (found.precision, found.recall, found.coverage) == (0.0, 0.0, 0.0)
    assert prdc(rows_NF, rows_NF.flip(0), k=5, chunk=3).coverage == 1.0


def test_a_row_on_the_border_of_a_ball_is_outside() -> None:
    real_NF = torch.tensor([[0.0], [2.0], [5.0]])
    # the balls reach from 0 to 2, from 2 to 0 and from 5 to 2: -2 and 8 lie on two borders
    found = prdc(real_NF, torch.tensor([[-2.0], [8.0]]), k=1)
    assert (found.precision, found.coverage) == (0.0, 0.0)


def test_constant_features_have_balls_without_radius() -> None:
    found = prdc(torch.full((9, 5), 0.1), torch.full((7, 5), 0.1), k=2, chunk=4)
    assert (found.precision, found.recall, found.coverage) == (0.0, 0.0, 0.0)  # balls of radius 0


@pytest.mark.parametrize(("num_real", "num_set", "k"), [(5, 50, 5), (50, 5, 5), (1, 1, 1), (10, 10, 0)])
def test_prdc_refuses_more_neighbours_than_there_are(num_real: int, num_set: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} for {num_real} real rows and {num_set} of the set; lower k"):
        prdc(normal(num_real, 3, seed=0), normal(num_set, 3, seed=1), k=k)


# Vendi score, cosines


@pytest.mark.parametrize("shape", [(5, 20), (20, 5), (12, 12)])
def test_vendi_is_that_of_numpy(shape: tuple[int, int]) -> None:
    set_MF = normal(*shape, seed=0, shift=0.5)
    assert vendi(set_MF) == pytest.approx(slow_vendi(set_MF.double().numpy()), rel=ROUNDING)


@pytest.mark.parametrize("num_features", [3, 50])
@pytest.mark.parametrize("num_rows", [1, 2, 17])
def test_vendi_counts_equal_rows_once(num_rows: int, num_features: int) -> None:
    set_MF = normal(1, num_features, seed=0) * torch.arange(1, num_rows + 1)[:, None]  # length is no difference
    assert vendi(set_MF) == pytest.approx(1.0, abs=1e-6)  # an eigenvalue of 1e-16 weighs 4e-15


def test_vendi_counts_every_orthogonal_row() -> None:
    assert vendi(3 * rotation(8)[:6]) == pytest.approx(6.0, rel=ROUNDING)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_vendi_lies_between_one_and_the_number_of_rows_or_features(num_rows: int, num_features: int, seed: int) -> None:
    score = vendi(normal(num_rows, num_features, seed=seed))
    assert 1 - ROUNDING <= score <= min(num_rows, num_features) + ROUNDING


@pytest.mark.parametrize("shape", [(2, 3), (30, 4)])
def test_the_mean_similarity_is_that_of_all_pairs(shape: tuple[int, int]) -> None:
    set_MF = normal(*shape, seed=0, shift=0.5)
    assert mean_pairwise_similarity(set_MF) == pytest.approx(slow_similarity(set_MF.double().tolist()), abs=ROUNDING)


def test_class_similarities_look_at_pairs_of_a_class_alone() -> None:
    set_MF, labels_M = normal(20, 4, seed=0), torch.tensor([7, 3, 3, 5] * 5)
    labels_M[3::4] = torch.arange(100, 105)  # five classes of one row: no pair
    expected = {label: slow_similarity(set_MF[labels_M == label].double().tolist()) for label in (3, 7)}
    found = class_similarities(set_MF, labels_M)
    assert list(found) == [3, 7]
    assert found == pytest.approx(expected, abs=ROUNDING)


def test_equal_rows_have_similarity_one_and_opposite_ones_minus_one() -> None:
    row_1F = normal(1, 6, seed=0)
    assert mean_pairwise_similarity(row_1F.repeat(9, 1)) == pytest.approx(1.0, abs=ROUNDING)
    assert mean_pairwise_similarity(torch.cat([row_1F, -2 * row_1F])) == pytest.approx(-1.0, abs=ROUNDING)


def test_a_single_row_has_no_pair() -> None:
    with pytest.raises(ValueError, match="2 rows or more, got 1"):
        mean_pairwise_similarity(normal(1, 6, seed=0))


@pytest.mark.parametrize("score", [vendi, mean_pairwise_similarity])
def test_a_row_of_zeros_is_named(score: Callable[[Tensor], float]) -> None:
    set_MF = normal(6, 3, seed=0)
    set_MF[4] = 0
    with pytest.raises(ValueError, match="row 4 is all zeros"):
        score(set_MF)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one for each of 6 rows, got shape \(5,\)"):
        class_similarities(normal(6, 3, seed=0), torch.zeros(5, dtype=torch.int64))


# Frechet distance


@pytest.mark.parametrize(("num_real", "num_set"), [(200, 100), (200, 12), (9, 200), (8, 5)])  # of 12 features
def test_frechet_is_that_of_scipy(num_real: int, num_set: int) -> None:
    real_NF, set_MF = normal(num_real, 12, seed=0) @ normal(12, 12, seed=2), normal(num_set, 12, seed=1, shift=0.4)
    # scipy's root of a singular product is good to 1e-8 of its scale only, times a dozen features
    expected = slow_frechet(real_NF.double().numpy(), set_MF.double().numpy())
    assert frechet_distance(real_NF, set_MF) == pytest.approx(expected, rel=1e-5)


def with_moments(mean_F: Tensor, std_F: Tensor, *, seed: int) -> Tensor:
    """Rows with exactly this mean and this diagonal covariance."""
    rows_RF = normal(40, len(mean_F), seed=seed).double()
    centred_RF = rows_RF - rows_RF.mean(dim=0)
    return torch.linalg.qr(centred_RF).Q * 39**0.5 * std_F + mean_F


def test_frechet_of_diagonal_gaussians_is_known() -> None:
    mean_F, other_mean_F = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    std_F, other_std_F = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 0.0])
    found = frechet_distance(with_moments(mean_F, std_F, seed=0), with_moments(other_mean_F, other_std_F, seed=1))
    assert found == pytest.approx((1 + 0 + 4) + (4 + 0 + 9), rel=ROUNDING)


@pytest.mark.parametrize("num_rows", [2, 10, 11, 300])
def test_a_set_is_no_frechet_distance_from_itself(num_rows: int) -> None:
    rows_NF = normal(num_rows, 10, seed=0, shift=5.0)
    assert frechet_distance(rows_NF, rows_NF.flip(0)) == pytest.approx(0.0, abs=ROUNDING)


def test_frechet_is_never_below_zero_or_nan() -> None:
    for seed in range(30):
        rows_NF = normal(20, 30, seed=seed)
        assert frechet_distance(rows_NF, rows_NF + 1e-9) >= 0


def test_frechet_of_constant_features_is_the_step_between_them() -> None:
    assert frechet_distance(torch.full((9, 4), 0.1), torch.full((3, 4), 1.1)) == pytest.approx(4.0, rel=1e-6)  # of float32


def test_frechet_is_symmetric() -> None:
    real_NF, set_MF = normal(50, 12, seed=0), normal(6, 12, seed=1)
    assert frechet_distance(real_NF, set_MF) == pytest.approx(frechet_distance(set_MF, real_NF), rel=ROUNDING)


def test_frechet_is_biased_upward_for_a_small_set() -> None:
    real_NF, draws_MF = normal(2000, 8, seed=0), normal(2000, 8, seed=1)
    distances = [frechet_distance(real_NF, draws_MF[:num]) for num in (5, 20, 100, 2000)]
    assert distances == sorted(distances, reverse=True)


def test_frechet_refuses_one_row() -> None:
    with pytest.raises(ValueError, match="got 9 real and 1 of the set"):
        frechet_distance(normal(9, 3, seed=0), normal(1, 3, seed=0))


# copies


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(1, 20), st.integers(1, 30), st.floats(0, 1), st.integers(0, 10**6))
def test_copies_are_those_of_the_loops(num_real: int, num_set: int, chunk: int, quantile: float, seed: int) -> None:
    real_NF, set_MF = normal(num_real, 3, seed=seed).double(), normal(num_set, 3, seed=seed + 1).double()
    real, rows = real_NF.tolist(), set_MF.tolist()
    nearest = [min(range(num_real), key=lambda n, row=row: math.dist(row, real[n])) for row in rows]
    own = [min(math.dist(p, q) for j, q in enumerate(real) if j != i) for i, p in enumerate(real)]
    found = copies(real_NF, set_MF, chunk=chunk, quantile=quantile)
    assert found.nearest_M.tolist() == nearest
    assert found.distance_M.tolist() == pytest.approx([math.dist(row, real[n]) for row, n in zip(rows, nearest, strict=True)])
    assert found.threshold == pytest.approx(float(np.quantile(own, quantile)))
    assert found.share == float((found.distance_M <= found.threshold).double().mean())


def test_real_rows_are_copies_of_themselves() -> None:
    real_NF = normal(200, 16, seed=0, shift=30.0)
    found = copies(real_NF, real_NF[40:60], chunk=32)
    assert found.nearest_M.tolist() == list(range(40, 60))
    assert found.distance_M.tolist() == [0.0] * 20
    assert found.share == 1.0
    assert found.threshold > 0


def test_copies_of_rows_that_repeat_are_found_though_the_threshold_is_zero() -> None:
    real_NF = normal(50, 16, seed=0, shift=30.0).repeat(2, 1)
    found = copies(real_NF, torch.cat([real_NF[:3], normal(3, 16, seed=1, shift=30.0)]))
    assert (found.threshold, found.share) == (0.0, 0.5)


@pytest.mark.parametrize("quantile", [0.01, 0.2])
def test_the_share_of_fresh_draws_is_the_quantile(quantile: float) -> None:
    share = copies(normal(2000, 4, seed=0), normal(4000, 4, seed=1), quantile=quantile).share
    assert share == pytest.approx(quantile, rel=0.4)  # 40 rows of 4000 expected, from a threshold of 20 of 2000: 3 sigma


@pytest.mark.parametrize(("num_real", "quantile", "match"), [(1, 0.01, "2 real rows or more"), (9, 1.5, "quantile in 0..1")])
def test_copies_refuse_what_has_no_threshold(num_real: int, quantile: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        copies(normal(num_real, 3, seed=0), normal(4, 3, seed=1), quantile=quantile)


# all of them

SCORES: dict[str, Callable[[Tensor, Tensor], float | tuple[float, ...]]] = {
    "prdc": lambda real_NF, set_MF: tuple(prdc(real_NF, set_MF, k=3)),
    "vendi": lambda _, set_MF: vendi(set_MF),
    "similarity": lambda _, set_MF: mean_pairwise_similarity(set_MF),
    "frechet": frechet_distance,
    "copies": lambda real_NF, set_MF: copies(real_NF, set_MF, quantile=0.1)[2:],
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("num_set", [9, 40])
def test_a_rotation_of_the_features_changes_no_score(name: str, num_set: int) -> None:
    real_NF, set_MF, turn_FF = normal(60, 12, seed=0).double(), normal(num_set, 12, seed=1).double(), rotation(12)
    assert SCORES[name](real_NF @ turn_FF, set_MF @ turn_FF) == pytest.approx(SCORES[name](real_NF, set_MF), rel=1e-8)


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_rows_changes_no_score(name: str) -> None:
    real_NF, set_MF = normal(60, 12, seed=0), normal(30, 12, seed=1)
    assert SCORES[name](real_NF.flip(0), set_MF.roll(7, 0)) == pytest.approx(SCORES[name](real_NF, set_MF), rel=1e-8)


@pytest.mark.parametrize("name", SCORES)
def test_features_that_are_not_finite_are_refused(name: str) -> None:
    set_MF = normal(30, 12, seed=1)
    set_MF[3, 4] = torch.nan
    with pytest.raises(ValueError, match="expected finite numbers"):
        SCORES[name](normal(60, 12, seed=0), set_MF)


@pytest.mark.parametrize("name", ["prdc", "frechet", "copies"])
def test_features_of_two_networks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"got \(60, 12\) and \(30, 11\)"):
        SCORES[name](normal(60, 12, seed=0), normal(30, 11, seed=1))


@pytest.mark.parametrize("score", [prdc, copies])
def test_a_chunk_holds_a_row(score: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="chunk: expected 1 row or more, got 0"):
        score(normal(60, 12, seed=0), normal(30, 12, seed=1), chunk=0)


@pytest.mark.parametrize("chunk", [3, 64])
def test_neighbours_known_beforehand_change_nothing(chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    real, made = torch.randn(40, 6, generator=generator), torch.randn(12, 6, generator=generator)
    known = metrics.neighbours(real, 7, chunk=chunk)
    assert metrics.prdc(real, made, k=5, real_neighbours=known) == metrics.prdc(real, made, k=5)
    assert metrics.copies(real, made, real_neighbours=known).threshold == metrics.copies(real, made).threshold
    distances = torch.cdist(real.double(), real.double()).fill_diagonal_(torch.inf)
    torch.testing.assert_close(known.square_NK.sqrt(), distances.sort(dim=1).values[:, :7])
    assert torch.equal(known.nearest_N, distances.argmin(dim=1))
    with pytest.raises(ValueError, match="expected 1 <= k < 40 rows, got k=40"):
        metrics.neighbours(real, 40)
