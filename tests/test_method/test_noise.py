"""The diffusion process against its formulas. Shapes: B batch, C channels, T timesteps."""

import math

import pytest
import torch
from torch import Tensor

from ddgd_ray.method.noise import (
    add_noise,
    learned_log_variance,
    linear_schedule,
    posterior,
    respaced,
    variational_bits,
    x0_prediction,
)

SOME_T = torch.tensor([0, 1, 2, 17, 500, 998, 999])


def gaussian(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def abar(t: int) -> float:
    """abar_t by the definition: 1,000 linear betas from 1e-4 to 0.02; 1 before the first."""
    return math.prod(1 - beta(s) for s in range(t + 1))


def beta(t: int) -> float:
    return 1e-4 + (0.02 - 1e-4) * t / 999


def test_linear_schedule_runs_from_1e_4_to_0_02_in_1000_steps() -> None:
    schedule = linear_schedule()
    assert schedule.num_steps == 1000
    assert (schedule.beta_T[0].item(), schedule.beta_T[-1].item()) == (1e-4, 0.02)
    for t in SOME_T.tolist():
        assert schedule.beta_T[t].item() == pytest.approx(beta(t))
        assert schedule.abar_T[t].item() == pytest.approx(abar(t))


def test_add_noise_is_eq_1() -> None:
    z0, eps = gaussian(7, 2, 3, 3, seed=0), gaussian(7, 2, 3, 3, seed=1)
    z_t = add_noise(linear_schedule(), z0, eps, SOME_T)
    for row, t in enumerate(SOME_T.tolist()):
        torch.testing.assert_close(z_t[row], math.sqrt(abar(t)) * z0[row] + math.sqrt(1 - abar(t)) * eps[row])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_x0_prediction_undoes_add_noise(dtype: torch.dtype, tolerance: float) -> None:
    # rounding of z_t and eps is multiplied by up to 157: 157 x 2.2e-16 and 157 x 1.2e-7, times a few
    schedule = linear_schedule()
    z0, eps = gaussian(7, 4, 5, 5, seed=2, dtype=dtype), gaussian(7, 4, 5, 5, seed=3, dtype=dtype)
    recovered = x0_prediction(schedule, add_noise(schedule, z0, eps, SOME_T), eps, SOME_T)
    assert recovered.dtype == dtype
    torch.testing.assert_close(recovered, z0, atol=tolerance, rtol=0)


def test_an_error_of_eps_is_multiplied_by_157_at_the_last_timestep() -> None:
    z_t, eps = gaussian(1, 4, 2, 2, seed=4), gaussian(1, 4, 2, 2, seed=5)
    t_B = torch.tensor([999])
    moved = x0_prediction(linear_schedule(), z_t, eps + 1, t_B) - x0_prediction(linear_schedule(), z_t, eps, t_B)
    torch.testing.assert_close(moved, torch.full_like(moved, -157), atol=0.5, rtol=0)  # 157 is printed without decimals


def test_gradient_flows_through_x0_prediction_to_eps() -> None:
    z_t, eps = gaussian(7, 1, 2, 2, seed=6), gaussian(7, 1, 2, 2, seed=7).requires_grad_()
    x0_prediction(linear_schedule(), z_t, eps, SOME_T).sum().backward()
    for row, t in enumerate(SOME_T.tolist()):
        torch.testing.assert_close(eps.grad[row], torch.full_like(eps[row], -math.sqrt(1 / abar(t) - 1)))


def test_posterior_is_the_normalised_product_of_the_step_and_the_noised_x0() -> None:
    # Bayes: q(z_{t-1} | z_t, x0) ~ q(z_t | z_{t-1}) q(z_{t-1} | x0), so precisions add
    x0, z_t = gaussian(7, 2, 2, 2, seed=8), gaussian(7, 2, 2, 2, seed=9)
    mean, log_variance = posterior(linear_schedule(), x0, z_t, SOME_T)
    for row, t in enumerate(SOME_T.tolist()):
        if t == 0:
            continue
        step_precision, x0_precision = (1 - beta(t)) / beta(t), 1 / (1 - abar(t - 1))
        variance = 1 / (step_precision + x0_precision)
        expected = variance * (math.sqrt(1 - beta(t)) / beta(t) * z_t[row] + math.sqrt(abar(t - 1)) * x0_precision * x0[row])
        torch.testing.assert_close(mean[row], expected)
        assert log_variance[row].item() == pytest.approx(math.log(variance))


def test_posterior_at_the_first_timestep_is_x0_with_the_variance_of_the_second() -> None:
    x0, z_t = gaussian(2, 1, 2, 2, seed=10), gaussian(2, 1, 2, 2, seed=11)
    mean, log_variance = posterior(linear_schedule(), x0, z_t, torch.tensor([0, 1]))
    torch.testing.assert_close(mean[0], x0[0])
    assert log_variance[0].item() == log_variance[1].item()


def test_learned_range_ends_at_the_posterior_variance_and_at_beta_and_is_straight_between() -> None:
    schedule = linear_schedule()
    shape = (7, 1, 2, 2)
    low, middle, high = (learned_log_variance(schedule, torch.full(shape, v, dtype=torch.float64), SOME_T) for v in (-1, 0, 1))
    _, smallest = posterior(schedule, torch.zeros(shape), torch.zeros(shape, dtype=torch.float64), SOME_T)
    torch.testing.assert_close(low, smallest.expand(shape).double())  # float32 in, so float32's tolerance
    torch.testing.assert_close(high.exp(), schedule.beta_T[SOME_T].view(-1, 1, 1, 1).expand(shape))
    torch.testing.assert_close(middle, (low + high) / 2)


def test_respaced_schedule_keeps_both_ends_and_the_noise_levels_of_the_timesteps_it_keeps() -> None:
    schedule = linear_schedule()
    for num_steps in (2, 7, 50, 250, 999):
        short, kept = respaced(schedule, num_steps)
        assert (kept[0].item(), kept[-1].item()) == (0, 999)
        assert len(kept.unique()) == short.num_steps == num_steps
        torch.testing.assert_close(short.abar_T, schedule.abar_T[kept])
        torch.testing.assert_close((1 - short.beta_T).cumprod(0), short.abar_T)  # the betas belong to those levels


def test_respacing_to_all_steps_changes_nothing() -> None:
    schedule = linear_schedule()
    same, kept = respaced(schedule, 1000)
    assert kept.tolist() == list(range(1000))
    # beta = 1 - abar_t / abar_{t-1} loses digits where beta is small: 2.2e-16 / 1e-4
    torch.testing.assert_close(same.beta_T, schedule.beta_T, rtol=1e-11, atol=0)


@pytest.mark.parametrize("num_steps", [2, 10, 50, 100, 250])
def test_respacing_takes_the_timesteps_that_dit_takes(num_steps: int) -> None:
    stride, position, expected = 999 / (num_steps - 1), 0.0, []  # iDDPM's rule: walk with a real stride, round each stop
    for _ in range(num_steps):
        expected.append(round(position))
        position += stride
    assert respaced(linear_schedule(), num_steps)[1].tolist() == expected


def slow_bits(t: int, z0: list[float], z_t: list[float], eps: list[float], v: list[float]) -> float:
    """iDDPM section 3.1 number by number, in bits per dimension."""

    def log_var_of_posterior(s: int) -> float:
        return math.log(beta(s) * (1 - abar(s - 1)) / (1 - abar(s)))

    def mean(x0: float, z: float) -> float:
        from_x0 = math.sqrt(abar(t - 1)) * beta(t) / (1 - abar(t))
        return from_x0 * x0 + math.sqrt(1 - beta(t)) * (1 - abar(t - 1)) / (1 - abar(t)) * z

    def below(x: float, center: float, log_var: float) -> float:
        return 0.5 * (1 + math.erf((x - center) / math.exp(0.5 * log_var) / math.sqrt(2)))

    total = 0.0
    for x0, z, e, share in zip(z0, z_t, eps, v, strict=True):
        lowest = log_var_of_posterior(max(t, 1))
        log_var = lowest + (share + 1) / 2 * (math.log(beta(t)) - lowest)
        center = mean((z - math.sqrt(1 - abar(t)) * e) / math.sqrt(abar(t)), z)
        if t > 0:
            gap = (mean(x0, z) - center) ** 2
            total += 0.5 * (log_var - lowest - 1 + (math.exp(lowest) + gap) / math.exp(log_var))
        else:
            upper = 1.0 if x0 > 0.999 else below(x0 + 1 / 255, center, log_var)
            lower = 0.0 if x0 < -0.999 else below(x0 - 1 / 255, center, log_var)
            total += -math.log(max(upper - lower, 1e-12))
    return total / len(z0) / math.log(2)


def test_variational_bits_equal_a_slow_twin_at_every_kind_of_timestep() -> None:
    schedule = linear_schedule()
    t_B = torch.tensor([0, 0, 0, 1, 2, 500, 999])
    z0, noise, error = (gaussian(7, 2, 2, 2, seed=seed) for seed in (12, 13, 14))
    z0[1] = z0[1].sign() * 1.5  # both open outer bins
    z_t = add_noise(schedule, z0, noise, t_B)
    eps = noise + 0.1 * error
    eps[2] += 30  # so wrong that the mass of the bin vanishes: clamped
    v = gaussian(7, 2, 2, 2, seed=15)
    bits_B = variational_bits(schedule, z0, z_t, eps, v, t_B)
    for row, t in enumerate(t_B.tolist()):
        expected = slow_bits(t, *(tensor[row].flatten().tolist() for tensor in (z0, z_t, eps, v)))
        assert bits_B[row].item() == pytest.approx(expected, rel=1e-6)


def test_variational_bits_vanish_for_the_true_noise_and_the_posterior_variance() -> None:
    schedule = linear_schedule()
    t_B = SOME_T[1:]
    z0, eps = gaussian(6, 1, 3, 3, seed=16), gaussian(6, 1, 3, 3, seed=17)
    exact = variational_bits(schedule, z0, add_noise(schedule, z0, eps, t_B), eps, torch.full_like(eps, -1), t_B)
    wider = variational_bits(schedule, z0, add_noise(schedule, z0, eps, t_B), eps, torch.full_like(eps, 1), t_B)
    torch.testing.assert_close(exact, torch.zeros_like(exact), atol=1e-12, rtol=0)
    assert (wider > 0).all()


def test_variational_bits_teach_the_variance_and_not_the_mean() -> None:
    schedule = linear_schedule()
    t_B = torch.tensor([0, 3, 900])
    z0, noise = gaussian(3, 2, 2, 2, seed=18), gaussian(3, 2, 2, 2, seed=19)
    eps = (noise + 0.1).requires_grad_()
    v = torch.zeros_like(noise).requires_grad_()
    variational_bits(schedule, z0, add_noise(schedule, z0, noise, t_B), eps, v, t_B).sum().backward()
    assert eps.grad is None
    assert v.grad.isfinite().all()
    assert (v.grad.abs().flatten(1).sum(1) > 0).all()


def test_gradient_of_variational_bits_equals_finite_differences() -> None:
    schedule = linear_schedule()
    t_B = torch.tensor([0, 1, 700])
    z0, noise = gaussian(3, 1, 2, 2, seed=20) * 0.3, gaussian(3, 1, 2, 2, seed=21)
    z_t = add_noise(schedule, z0, noise, t_B)
    v = gaussian(3, 1, 2, 2, seed=22).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: variational_bits(schedule, z0, z_t, noise + 0.01, v, t_B), (v,))
