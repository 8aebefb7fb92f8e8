"""Starts from data in closed form: a Gaussian's exact denoiser, moments by loops.

Shapes: N latents, D flat latent, n draws of a group.
"""

import math
import statistics

import pytest
import torch
from scipy.stats import skew
from torch import Tensor

from ddgd_ray.method.inversion import best_group, inverted, mismatch, moments, noised_to, num_steps_run
from ddgd_ray.method.noise import linear_schedule, respaced
from ddgd_ray.method.sampling import Ddim

SCHEDULE = linear_schedule()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_noise(z: Tensor, t_B: Tensor, std: float) -> Tensor:
    """E[eps | z_t] where the data are N(0, std^2): what a perfect model predicts."""
    abar = SCHEDULE.abar_T[t_B].view(-1, 1, 1, 1)
    return (1 - abar).sqrt() * z / (abar * std**2 + 1 - abar)


@pytest.mark.parametrize(("strength", "steps", "run"), [(0.7, 50, 35), (1.0, 20, 20), (0.01, 50, 1), (0.64, 50, 32)])
def test_a_start_part_of_the_way_leaves_its_share_of_the_steps(strength: float, steps: int, run: int) -> None:
    assert num_steps_run(strength, steps) == run


def test_a_prototype_is_noised_to_the_level_of_the_first_step_that_is_run() -> None:
    z0, eps = normal(3, 2, 2, 2), normal(3, 2, 2, 2, seed=1)
    abar = float(SCHEDULE.abar_T[respaced(SCHEDULE, 50)[1][34]])
    expected = math.sqrt(abar) * z0 + math.sqrt(1 - abar) * eps
    torch.testing.assert_close(noised_to(SCHEDULE, z0, eps, strength=0.7, num_steps=50), expected)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_inverting_a_gaussian_scales_it_as_the_flow_does(std: float) -> None:
    """DDIM's flow keeps quantiles: z0 of N(0, s^2) goes to sqrt(abar s^2 + 1 - abar) z0 / s, exactly in the limit."""
    z0 = normal(4, 2, 2, 2)
    found = inverted(lambda z, t_B: exact_noise(z, t_B, std), SCHEDULE, z0, strength=0.6, num_steps=1000)
    abar = float(SCHEDULE.abar_T[599])
    torch.testing.assert_close(found, z0 * math.sqrt(abar * std**2 + 1 - abar) / std, rtol=5e-3, atol=0)


def test_sampling_from_an_inverted_latent_returns_to_it() -> None:
    z0, steps = normal(4, 2, 2, 2, seed=2), 500
    z = inverted(lambda z, t_B: exact_noise(z, t_B, 0.7), SCHEDULE, z0, strength=0.5, num_steps=steps)
    sampler = Ddim(SCHEDULE, steps)
    for place in range(steps - num_steps_run(0.5, steps), steps):
        z = sampler.step(place, z, exact_noise(z, torch.full((4,), sampler.timesteps[place]), 0.7), None, None)
    torch.testing.assert_close(z, z0, rtol=0, atol=2e-2)


def test_moments_are_those_of_the_textbook() -> None:
    rows_ND = normal(9, 3).exp()
    found = moments(rows_ND)
    for d in range(3):
        column = rows_ND[:, d].tolist()
        assert float(found.mean_D[d]) == pytest.approx(statistics.fmean(column), rel=1e-12)
        assert float(found.std_D[d]) == pytest.approx(statistics.pstdev(column), rel=1e-12)
        assert float(found.skew_D[d]) == pytest.approx(float(skew(column)), rel=1e-9)


def test_what_does_not_vary_has_no_skew() -> None:
    assert moments(torch.ones(5, 2)).skew_D.tolist() == [0.0, 0.0]


def test_the_class_itself_mismatches_by_nothing_and_each_moment_counts() -> None:
    rows_ND = normal(12, 3, seed=3)
    wanted = moments(rows_ND)
    assert float(mismatch(rows_ND, wanted)) == pytest.approx(0.0, abs=1e-24)
    shifted, wider = rows_ND + wanted.std_D, wanted.mean_D + 2 * (rows_ND - wanted.mean_D)
    mirrored = 2 * wanted.mean_D - rows_ND
    assert float(mismatch(shifted, wanted)) == pytest.approx(1.0)
    assert float(mismatch(wider, wanted)) == pytest.approx(1.0)
    assert float(mismatch(mirrored, wanted)) == pytest.approx(float(4 * wanted.skew_D.square().mean()))


def test_a_single_draw_is_judged_by_its_mean_alone() -> None:
    wanted = moments(normal(12, 3, seed=4))
    one = (wanted.mean_D + 2 * wanted.std_D)[None]
    assert float(mismatch(one, wanted)) == pytest.approx(4.0)


def test_the_best_group_is_the_least_mismatch_of_all() -> None:
    wanted = moments(normal(40, 3, seed=5).exp())
    groups = [normal(4, 3, seed=100 + n) for n in range(30)]
    place, rows_nD = best_group(groups, wanted)
    found = [float(mismatch(wanted.mean_D + wanted.std_D * group, wanted)) for group in groups]
    assert place == found.index(min(found))
    torch.testing.assert_close(rows_nD, wanted.mean_D + wanted.std_D * groups[place])
    with pytest.raises(ValueError, match="one group or more"):
        best_group([], wanted)
