"""Guides: they move the mean of a reverse step toward the data, without training anything.

A guide is called in every step, after the mean and before the fresh noise. index counts the respaced steps down to 0.
Shapes: B batch, c latent channels, s side of the latent, D = c s s flat latent, d tangent directions, K centres.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddgd_ray.method.sinkhorn import transport_cost


class Window(NamedTuple):
    """The steps that are guided: start >= index > stop."""

    start: int
    stop: int

    def has(self, index: int) -> bool:
        return self.start >= index > self.stop


@dataclass(frozen=True)
class Step:
    """What a guide is told of a step.

    mean: (B, c, s, s), the next latent before its noise. x0: the clean latent predicted in one step. sigma_t: the noise's
    standard deviation, broadcastable to them. z_t: the latent that the step starts from; t_B and labels_B: (B,) int64, as the
    model takes them. abar: the share of signal in z_t's variance.
    """

    mean: Tensor
    x0: Tensor
    sigma_t: Tensor
    index: int
    z_t: Tensor
    t_B: Tensor
    labels_B: Tensor
    abar: float


Guide = Callable[[Step], Tensor]
"""The moved mean. A guide that does nothing returns the mean itself."""


def toward_modes(
    mean: Tensor, x0: Tensor, sigma_t: Tensor, index: int, window: Window, *, modes: Tensor, strength: float
) -> Tensor:
    """mean + lambda sigma_t (m - x0) inside the window: mode guidance (MGD3, arXiv 2505.18963). modes: (B, c, s, s)."""
    if not window.has(index) or strength == 0:
        return mean
    return mean + strength * sigma_t * (modes - x0)


def along_manifold(
    mean: Tensor,
    x0: Tensor,
    sigma_t: Tensor,
    index: int,
    window: Window,
    *,
    modes: Tensor,
    tangents_BdD: Tensor,
    strength: float,
) -> Tensor:
    """mean + lambda sigma_t P (m - x0), P the projection on the tangent space at the mode (ManifoldGD, arXiv 2602.23295).

    tangents_BdD: orthonormal rows, those of `tangent_directions`. Departure: the paper estimates the space anew from latents
    noised to each step; ours is that of the clean latents around the mode, as x0 is clean.
    """
    if not window.has(index) or strength == 0:
        return mean
    pull_BD = (modes - x0).flatten(1)
    # sums over products, not a batched product: an image's bits must not depend on the batch's size
    along_Bd = (tangents_BdD * pull_BD[:, None]).sum(dim=2)
    projected_BD = (tangents_BdD * along_Bd[:, :, None]).sum(dim=1)
    return mean + strength * sigma_t * projected_BD.view_as(mean)


@torch.no_grad()
def tangent_directions(latents_ND: Tensor, centre_D: Tensor, *, radius: float, num: int) -> Tensor:
    """Orthonormal directions (num, D) in which the latents nearest to the centre spread most: their principal components.

    radius: the share of the N latents that count as near, at least num + 1 of them. A direction's sign makes its greatest
    component positive. Raises ValueError unless 1 <= num <= min(N - 1, D).
    """
    num_rows, num_dims = latents_ND.shape
    if not 1 <= num <= min(num_rows - 1, num_dims):
        raise ValueError(f"tangent directions: expected 1 to {min(num_rows - 1, num_dims)} for {num_rows} latents, got {num}")
    exact_ND, centre_D = latents_ND.double(), centre_D.double()
    distance_N = (exact_ND - centre_D).square().sum(dim=1)
    near = distance_N.argsort(stable=True)[: max(num + 1, round(radius * num_rows))]
    around = exact_ND[near] - exact_ND[near].mean(dim=0)
    directions_dD = torch.linalg.svd(around, full_matrices=False).Vh[:num]
    greatest = directions_dD.gather(1, directions_dD.abs().argmax(dim=1, keepdim=True))
    return directions_dD * greatest.sign()


def down_the_gradient(
    mean: Tensor, sigma_t: Tensor, index: int, window: Window, *, gradient: Tensor, strength: float
) -> Tensor:
    """mean - strength sigma_t g / rms(g), with each image's own rms; a gradient of zeros moves nothing.

    Departure: the papers multiply the raw gradient by a constant of their own distance. Divided by its size, one strength
    means the same step for every distance: that of a mode at distance 1 a component.
    """
    if not window.has(index) or strength == 0:
        return mean
    rms = gradient.flatten(1).square().mean(dim=1).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
    return mean - strength * sigma_t * (gradient / rms.view(-1, *[1] * (gradient.dim() - 1)))


def gradient_of(cost: Callable[[Tensor], Tensor], z_t: Tensor) -> Tensor:
    """d cost / d z_t. cost: takes (B, c, s, s), returns a 0-d sum over independent parts. Works inside inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z_t.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(leaf), leaf)
    return gradient.detach()


def feature_cost(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over the batch of the mean over blocks of |f - g|^2 / |g|^2, f and g a block's tokens averaged (DAP).

    features, targets: a (B, tokens, width) for each block; 0-d. The tokens are averaged so that a sample is pulled toward what
    the training image shows and not toward its layout, which would be a copy.
    """
    total = features[0].new_zeros(())
    for own, other in zip(features, targets, strict=True):
        own_BW, other_BW = own.mean(dim=1), other.mean(dim=1)
        total = total + ((own_BW - other_BW).square().sum(dim=1) / other_BW.square().sum(dim=1)).sum()
    return total / len(features)


def noised_like(target_x0: Tensor, step: Step) -> Tensor:
    """What z_t would be if the step's own noise lay on `target_x0`: z_t + sqrt(abar) (target - x0)."""
    return step.z_t + step.abar**0.5 * (target_x0 - step.x0)


def group_transport_cost(
    x0: Tensor, centres: Sequence[Tensor], weights: Sequence[Tensor], *, epsilon: float, num_iterations: int
) -> Tensor:
    """Sum over groups of the transport cost between a group's images and its class's weighted centres (DMGD); 0-d.

    x0: (B, c, s, s), group by group, as many images in each. centres: (K, c, s, s) for each group; weights: (K,).
    """
    total = x0.new_zeros(())
    size = len(x0) // len(centres)
    for group, centre, weight_K in zip(x0.split(size), centres, weights, strict=True):
        even = weight_K.new_full((size,), 1 / size)
        total = total + transport_cost(
            group.flatten(1), centre.flatten(1), even, weight_K, epsilon=epsilon, num_iterations=num_iterations
        )
    return total
