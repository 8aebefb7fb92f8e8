"""Sinkhorn against POT, a long-run loop in Python and numerical gradients. Shapes: N sources, K targets, D flat latent."""

import math

import ot
import pytest
import torch
from torch import Tensor

from ddgd_ray.method.sinkhorn import squared_costs, transport_cost, transport_plan


def clouds(seed: int = 0, num: int = 5, num_targets: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_ND, y_KD = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (num, num_targets))
    target_K = torch.rand(num_targets, generator=generator, dtype=torch.float64) + 0.2
    return x_ND, y_KD, torch.full((num,), 1 / num, dtype=torch.float64), target_K / target_K.sum()


def slow_plan(cost: list[list[float]], source: list[float], target: list[float], epsilon: float, rounds: int) -> Tensor:
    """Cuturi's scaling of exp(-cost / epsilon), number by number."""
    kernel = [[math.exp(-c / epsilon) for c in row] for row in cost]
    u, v = [1.0] * len(source), [1.0] * len(target)
    for _ in range(rounds):
        u = [a / sum(k * w for k, w in zip(row, v, strict=True)) for a, row in zip(source, kernel, strict=True)]
        v = [b / sum(kernel[n][k] * u[n] for n in range(len(u))) for k, b in enumerate(target)]
    return torch.tensor([[u[n] * kernel[n][k] * v[k] for k in range(len(v))] for n in range(len(u))], dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_the_plan_is_that_of_the_loop_in_as_many_rounds(epsilon: float) -> None:
    x_ND, y_KD, source_N, target_K = clouds()
    cost_NK = squared_costs(x_ND, y_KD)
    absolute = epsilon * float(source_N @ cost_NK @ target_K)
    plan_NK = transport_plan(cost_NK, source_N, target_K, epsilon=epsilon, num_iterations=5)
    slow = slow_plan(cost_NK.tolist(), source_N.tolist(), target_K.tolist(), absolute, 5)
    torch.testing.assert_close(plan_NK, slow, rtol=1e-10, atol=1e-14)


def test_the_plan_and_the_cost_converge_to_those_of_pot() -> None:
    x_ND, y_KD, source_N, target_K = clouds(seed=1)
    cost_NK = squared_costs(x_ND, y_KD)
    absolute = 0.3 * float(source_N @ cost_NK @ target_K)
    expected = torch.from_numpy(ot.sinkhorn(source_N.numpy(), target_K.numpy(), cost_NK.numpy(), absolute, stopThr=1e-14))
    plan_NK = transport_plan(cost_NK, source_N, target_K, epsilon=0.3, num_iterations=500)
    torch.testing.assert_close(plan_NK, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(plan_NK.sum(dim=1), source_N, rtol=1e-9, atol=0)
    found = transport_cost(x_ND, y_KD, source_N, target_K, epsilon=0.3, num_iterations=500)
    torch.testing.assert_close(found, (expected * cost_NK).sum(), rtol=1e-8, atol=0)


def test_with_little_entropy_it_is_the_optimal_matching() -> None:
    x_ND, y_KD, source_N, _ = clouds(seed=2, num=4, num_targets=4)
    exact = ot.emd2(source_N.numpy(), source_N.numpy(), squared_costs(x_ND, y_KD).numpy())
    found = transport_cost(x_ND, y_KD, source_N, source_N, epsilon=5e-3, num_iterations=3000)
    assert float(found) == pytest.approx(float(exact), rel=1e-3)


def test_the_columns_sums_are_exact_after_one_iteration() -> None:
    x_ND, y_KD, source_N, target_K = clouds(seed=3)
    plan_NK = transport_plan(squared_costs(x_ND, y_KD), source_N, target_K, epsilon=0.05, num_iterations=1)
    torch.testing.assert_close(plan_NK.sum(dim=0), target_K, rtol=1e-12, atol=0)


def test_a_hundredfold_latent_has_the_same_plan() -> None:
    x_ND, y_KD, source_N, target_K = clouds(seed=4)
    plans = [
        transport_plan(squared_costs(k * x_ND, k * y_KD), source_N, target_K, epsilon=0.1, num_iterations=20) for k in (1, 100)
    ]
    torch.testing.assert_close(*plans, rtol=1e-9, atol=1e-15)


def test_the_gradient_is_that_of_the_regularised_problem_once_converged() -> None:
    """Of <plan, cost> + epsilon KL(plan | source x target), by central differences with the iteration run anew."""
    x_ND, y_KD, source_N, target_K = clouds(seed=5, num=3)
    absolute = 0.5 * float(source_N @ squared_costs(x_ND, y_KD) @ target_K)

    def regularised(points_ND: Tensor) -> float:
        cost_NK = squared_costs(points_ND, y_KD)
        plan = torch.from_numpy(
            ot.sinkhorn(source_N.numpy(), target_K.numpy(), cost_NK.numpy(), absolute, numItermax=20000, stopThr=1e-15)
        )
        return float((plan * cost_NK).sum() + absolute * (plan * (plan / (source_N[:, None] * target_K)).log()).sum())

    leaf = x_ND.clone().requires_grad_()
    transport_cost(leaf, y_KD, source_N, target_K, epsilon=0.5, num_iterations=2000).backward()
    step = 1e-5
    for n in range(3):
        for d in range(4):
            shift = torch.zeros_like(x_ND)
            shift[n, d] = step
            slope = (regularised(x_ND + shift) - regularised(x_ND - shift)) / (2 * step)
            assert float(leaf.grad[n, d]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("weights", "epsilon"), [([0.5, 0.6], 0.1), ([1.0, 0.0], 0.1), ([0.5, 0.5], 0.0)])
def test_unsound_weights_and_epsilon_are_refused(weights: list[float], epsilon: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        transport_plan(torch.ones(2, 2), torch.tensor([0.5, 0.5]), torch.tensor(weights), epsilon=epsilon, num_iterations=1)
