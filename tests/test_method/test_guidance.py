"""Guides number by number, against principal components of scikit-learn and numerical gradients.

Shapes: B batch, c latent channels, s side of the latent, D flat latent, d directions.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ddgd_ray.method.guidance import (
    Step,
    Window,
    along_manifold,
    down_the_gradient,
    feature_cost,
    gradient_of,
    group_transport_cost,
    noised_like,
    tangent_directions,
    toward_modes,
)
from ddgd_ray.method.noise import add_noise, linear_schedule

WINDOW = Window(start=40, stop=10)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mean, x0, modes, sigma_t of four latents."""
    mean, x0, modes = (normal(4, 2, 3, 3, seed=3 * seed + n) for n in range(3))
    return mean, x0, modes, torch.tensor(0.3, dtype=torch.float64)


def test_a_mode_pulls_by_strength_times_sigma_times_the_way_to_it() -> None:
    mean, x0, modes, sigma_t = batch()
    moved = toward_modes(mean, x0, sigma_t, 20, WINDOW, modes=modes, strength=0.1)
    for b, c, y, x in np.ndindex(4, 2, 3, 3):
        slow = float(mean[b, c, y, x]) + 0.1 * 0.3 * (float(modes[b, c, y, x]) - float(x0[b, c, y, x]))
        assert float(moved[b, c, y, x]) == pytest.approx(slow, abs=1e-15)


@pytest.mark.parametrize(("index", "is_guided"), [(49, False), (41, False), (40, True), (11, True), (10, False), (0, False)])
def test_the_window_holds_from_its_start_to_just_before_its_stop(index: int, is_guided: bool) -> None:
    mean, x0, modes, sigma_t = batch()
    tangents = torch.eye(18, dtype=torch.float64)[:3].expand(4, 3, 18)
    moved = [
        toward_modes(mean, x0, sigma_t, index, WINDOW, modes=modes, strength=0.1),
        along_manifold(mean, x0, sigma_t, index, WINDOW, modes=modes, tangents_BdD=tangents, strength=0.1),
        down_the_gradient(mean, sigma_t, index, WINDOW, gradient=modes, strength=0.1),
    ]
    assert [one is not mean for one in moved] == [is_guided] * 3


def test_strength_zero_returns_the_mean_itself() -> None:
    mean, x0, modes, sigma_t = batch()
    tangents = torch.eye(18, dtype=torch.float64)[:3].expand(4, 3, 18)
    assert toward_modes(mean, x0, sigma_t, 20, WINDOW, modes=modes, strength=0.0) is mean
    assert along_manifold(mean, x0, sigma_t, 20, WINDOW, modes=modes, tangents_BdD=tangents, strength=0.0) is mean
    assert down_the_gradient(mean, sigma_t, 20, WINDOW, gradient=modes, strength=0.0) is mean


def test_the_manifold_pull_is_the_least_squares_fit_of_the_mode_pull_in_the_tangent_space() -> None:
    mean, x0, modes, sigma_t = batch(seed=1)
    tangents = torch.stack([torch.linalg.qr(normal(18, 3, seed=20 + b)).Q.T for b in range(4)])
    moved = along_manifold(mean, x0, sigma_t, 20, WINDOW, modes=modes, tangents_BdD=tangents, strength=0.1)
    for b in range(4):
        pull = (modes[b] - x0[b]).flatten().numpy()
        weights, *_ = np.linalg.lstsq(tangents[b].T.numpy(), pull, rcond=None)
        slow = mean[b].flatten().numpy() + 0.1 * 0.3 * tangents[b].T.numpy() @ weights
        np.testing.assert_allclose(moved[b].flatten().numpy(), slow, atol=1e-12)


def test_in_a_space_of_all_directions_the_manifold_pull_is_the_mode_pull() -> None:
    mean, x0, modes, sigma_t = batch(seed=2)
    whole = torch.linalg.qr(normal(18, 18, seed=5)).Q.expand(4, 18, 18)
    moved = along_manifold(mean, x0, sigma_t, 20, WINDOW, modes=modes, tangents_BdD=whole, strength=0.1)
    torch.testing.assert_close(moved, toward_modes(mean, x0, sigma_t, 20, WINDOW, modes=modes, strength=0.1))


def test_tangent_directions_are_the_principal_components_of_the_nearest_latents() -> None:
    latents_ND, centre_D = normal(40, 6, seed=7) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1]), normal(6, seed=8)
    found = tangent_directions(latents_ND, centre_D, radius=0.5, num=3)
    near = sorted(range(40), key=lambda n: math.dist(latents_ND[n].tolist(), centre_D.tolist()))[:20]
    expected = PCA(3, svd_solver="full").fit(latents_ND[near].numpy()).components_
    expected *= np.sign(np.take_along_axis(expected, np.abs(expected).argmax(axis=1, keepdims=True), axis=1))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_more_directions_than_latents_can_span_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 2 for 3 latents"):
        tangent_directions(normal(3, 6), normal(6), radius=1.0, num=3)


def test_a_small_radius_still_takes_as_many_latents_as_the_directions_need() -> None:
    directions = tangent_directions(normal(30, 6, seed=9), normal(6, seed=10), radius=0.0, num=3)
    torch.testing.assert_close(directions @ directions.T, torch.eye(3, dtype=torch.float64))


def test_an_image_goes_down_its_own_gradient_by_a_step_of_the_same_size() -> None:
    mean, _, gradient, sigma_t = batch()
    gradient = gradient * torch.tensor([1e-6, 1.0, 1e6, 0.0], dtype=torch.float64)[:, None, None, None]
    moved = down_the_gradient(mean, sigma_t, 20, WINDOW, gradient=gradient, strength=0.1) - mean
    sizes = moved.flatten(1).square().mean(dim=1).sqrt().tolist()
    assert sizes == pytest.approx([0.03, 0.03, 0.03, 0.0], rel=1e-9)
    assert float((moved[0] * gradient[0]).sum()) < 0


def test_gradients_are_those_of_central_differences_even_inside_inference_mode() -> None:
    z_t, targets = normal(2, 2, 3, 3, seed=11), normal(2, 9, 2, seed=12) + 2
    weight = normal(2, 2, seed=13)

    def cost(z: Tensor) -> Tensor:
        tokens = torch.tanh(z.flatten(2).transpose(1, 2) @ weight)
        return feature_cost([tokens, tokens * tokens], [targets, targets])

    with torch.inference_mode():
        found = gradient_of(cost, z_t)
    step = 1e-6
    for place in np.ndindex(2, 2, 3, 3):
        shift = torch.zeros_like(z_t)
        shift[place] = step
        slope = float(cost(z_t + shift) - cost(z_t - shift)) / (2 * step)
        assert float(found[place]) == pytest.approx(slope, abs=1e-7)


def test_feature_cost_counts_the_averaged_tokens_of_each_block() -> None:
    features, targets = [normal(2, 3, 4, seed=n) for n in range(2)], [normal(2, 3, 4, seed=9 + n) for n in range(2)]
    slow = 0.0
    for own, other in zip(features, targets, strict=True):
        for b in range(2):
            f = [sum(own[b, t, w].item() for t in range(3)) / 3 for w in range(4)]
            g = [sum(other[b, t, w].item() for t in range(3)) / 3 for w in range(4)]
            slow += math.dist(f, g) ** 2 / math.hypot(*g) ** 2 / 2
    assert float(feature_cost(features, targets)) == pytest.approx(slow, rel=1e-12)


def test_a_target_gets_the_noise_that_the_step_itself_sees() -> None:
    schedule, t_B = linear_schedule(), torch.tensor([300, 300])
    x0, target, eps = (normal(2, 2, 3, 3, seed=n) for n in range(3))
    z_t, abar = add_noise(schedule, x0, eps, t_B), float(schedule.abar_T[300])
    step = Step(x0, x0, torch.tensor(0.1), 9, z_t, t_B, torch.tensor([0, 1]), abar)
    torch.testing.assert_close(noised_like(target, step), add_noise(schedule, target, eps, t_B))


def test_the_transport_cost_of_a_group_does_not_see_other_groups() -> None:
    x0 = normal(6, 2, 3, 3, seed=14)
    centres, weights = [normal(4, 2, 3, 3, seed=15 + n) for n in range(2)], [torch.full((4,), 0.25, dtype=torch.float64)] * 2

    def alone(group: int) -> Tensor:
        part = x0[3 * group : 3 * group + 3]
        return group_transport_cost(part, centres[group : group + 1], weights[:1], epsilon=0.1, num_iterations=5)

    both = group_transport_cost(x0, centres, weights, epsilon=0.1, num_iterations=5)
    torch.testing.assert_close(both, alone(0) + alone(1))
