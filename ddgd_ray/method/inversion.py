"""Starting from data: clean latents taken up to a noise level, and draws of that level that look like a class.

Shapes: B batch, N latents of a class, D flat latent, n images of a group, c latent channels, s side.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ddgd_ray.method.noise import NoiseSchedule, add_noise, respaced


def num_steps_run(strength: float, num_steps: int) -> int:
    """Of num_steps respaced steps, those that a start at `strength` of the way to noise leaves to run: at least one."""
    return max(1, round(strength * num_steps))


def noised_to(schedule: NoiseSchedule, z0: Tensor, eps: Tensor, *, strength: float, num_steps: int) -> Tensor:
    """z0 noised to the level of the first step that is run (SDEdit; D4M's prototypes). Eq. 1 at that step's timestep."""
    short, _ = respaced(schedule, num_steps)
    index = num_steps_run(strength, num_steps) - 1
    return add_noise(short, z0, eps, torch.full((len(z0),), index, device=z0.device))


def inverted(
    denoise: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, z0: Tensor, *, strength: float, num_steps: int
) -> Tensor:
    """The latent at that level from which DDIM returns to z0, to the first order in the steps: DDIM run upward.

    denoise(z, t_B) -> the noise in z. Each step uses the noise predicted at the level it leaves for the one it enters
    (Song et al. 2021, section 4.3 reversed); the first one starts at the least timestep with z0 taken as clean.
    """
    short, kept = respaced(schedule, num_steps)
    z, before = z0, 1.0
    for index in range(num_steps_run(strength, num_steps)):
        t_B = torch.full((len(z0),), int(kept[max(index - 1, 0)]), device=z0.device)
        eps = denoise(z, t_B)
        x0 = (z - (1 - before) ** 0.5 * eps) / before**0.5
        before = float(short.abar_T[index])
        z = before**0.5 * x0 + (1 - before) ** 0.5 * eps
    return z


class Moments(NamedTuple):
    """Of the rows of a class, component by component, each (D,) float64. std divides by N; skew is 0 where nothing varies."""

    mean_D: Tensor
    std_D: Tensor
    skew_D: Tensor


def moments(rows_ND: Tensor) -> Moments:
    """Mean, spread and skew (third standardised moment)."""
    exact_ND = rows_ND.double()
    mean_D = exact_ND.mean(dim=0)
    around_ND = exact_ND - mean_D
    std_D = around_ND.square().mean(dim=0).sqrt()
    third_D = around_ND.pow(3).mean(dim=0)
    skew_D = torch.where(std_D > 0, third_D / std_D.clamp_min(1e-30).pow(3), 0.0)
    return Moments(mean_D, std_D, skew_D)


def mismatch(group_nD: Tensor, wanted: Moments) -> Tensor:
    """How unlike the class a group of draws is, 0-d (D3HR): the components' mean squared differences of mean and spread, in
    units of the class's spread, and of skew. One draw has no spread, two have no skew: what is not there does not count.
    """
    own = moments(group_nD)
    unit_D = wanted.std_D.clamp_min(1e-12)
    total = ((own.mean_D - wanted.mean_D) / unit_D).square().mean()
    if len(group_nD) >= 2:
        total = total + ((own.std_D - wanted.std_D) / unit_D).square().mean()
    if len(group_nD) >= 3:
        total = total + (own.skew_D - wanted.skew_D).square().mean()
    return total


def best_group(groups: Iterable[Tensor], wanted: Moments) -> tuple[int, Tensor]:
    """Place and rows of the group that is least unlike the class; the first on a tie. groups: standard normal (n, D) each,
    scaled here to the class's mean and spread. Raises ValueError when there is none.
    """
    best: tuple[float, int, Tensor] | None = None
    for place, noise_nD in enumerate(groups):
        rows_nD = wanted.mean_D + wanted.std_D * noise_nD.double()
        found = float(mismatch(rows_nD, wanted))
        if best is None or found < best[0]:
            best = (found, place, rows_nD)
    if best is None:
        raise ValueError("expected one group or more, got none")
    return best[1], best[2]
