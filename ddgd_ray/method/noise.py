"""The diffusion process: schedule, noising, the one-step clean prediction and the variational term.

Shapes: B batch, C channels, T timesteps; latents are (B, C, H, W).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A schedule: beta_t and abar_t = prod_{s<=t} (1 - beta_s), each (T,) float64."""

    beta_T: Tensor
    abar_T: Tensor

    @property
    def num_steps(self) -> int:
        return len(self.beta_T)


def linear_schedule(num_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
    """The linear betas of DDPM, as DiT uses them."""
    return _schedule(torch.linspace(first, last, num_steps, dtype=torch.float64))


def _schedule(beta_T: Tensor) -> NoiseSchedule:
    return NoiseSchedule(beta_T, torch.cumprod(1 - beta_T, dim=0))


def respaced(schedule: NoiseSchedule, num_steps: int) -> tuple[NoiseSchedule, Tensor]:
    """A schedule over `num_steps` >= 2 evenly spaced timesteps, first and last included, and those timesteps, ascending.

    The betas are rebuilt from abar at the kept timesteps (Nichol & Dhariwal 2021, Eq. 19).
    """
    assert num_steps >= 2, "the first and the last timestep are both kept"
    kept = torch.linspace(0, schedule.num_steps - 1, num_steps, dtype=torch.float64).round().long()
    abar = schedule.abar_T[kept]
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    return NoiseSchedule(1 - abar / before, abar), kept


def _at(values_T: Tensor, t_B: Tensor, like: Tensor) -> Tensor:
    return values_T.to(like.device)[t_B].to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def add_noise(schedule: NoiseSchedule, z0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """The noised latent z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps (paper Eq. 1)."""
    abar = schedule.abar_T
    return _at(abar.sqrt(), t_B, z0) * z0 + _at((1 - abar).sqrt(), t_B, z0) * eps


def x0_prediction(schedule: NoiseSchedule, z_t: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """The clean latent that explains z_t if `eps` is the noise in z_t: one step, unclipped, differentiable in eps.

    At t = 999 of the linear schedule an error of eps is multiplied by 157.
    """
    abar = schedule.abar_T
    return _at((1 / abar).sqrt(), t_B, z_t) * z_t - _at((1 / abar - 1).sqrt(), t_B, z_t) * eps


def posterior(schedule: NoiseSchedule, x0: Tensor, z_t: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of q(z_{t-1} | z_t, x0) (DDPM Eq. 7); the log-variance at t = 0 is that of t = 1."""
    beta, abar = schedule.beta_T, schedule.abar_T
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    mean_x0 = beta * before.sqrt() / (1 - abar)
    mean_zt = (1 - before) * (1 - beta).sqrt() / (1 - abar)
    variance = beta * (1 - before) / (1 - abar)
    log_variance = torch.cat([variance[1:2], variance[1:]]).log()
    mean = _at(mean_x0, t_B, x0) * x0 + _at(mean_zt, t_B, x0) * z_t
    return mean, _at(log_variance, t_B, x0)


def learned_log_variance(schedule: NoiseSchedule, v: Tensor, t_B: Tensor) -> Tensor:
    """The log-variance, interpolated between the posterior variance (v = -1) and beta (v = 1).

    "learned range" of iDDPM, Eq. 15.
    """
    _, lowest = posterior(schedule, v, v, t_B)
    highest = _at(schedule.beta_T.log(), t_B, v)
    share = (v + 1) / 2
    return share * highest + (1 - share) * lowest


def _normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    return 0.5 * (log_var2 - log_var1 - 1 + (log_var1 - log_var2).exp() + (mean1 - mean2) ** 2 * (-log_var2).exp())


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _discrete_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The -log of the mass that a normal puts on the 2/255-wide bin around x.

    The outer bins are open, as in DDPM section 3.3.
    """
    inverse_std = (-0.5 * log_variance).exp()
    above = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    below = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -mass.clamp(min=1e-12).log()


def variational_bits(schedule: NoiseSchedule, z0: Tensor, z_t: Tensor, eps: Tensor, v: Tensor, t_B: Tensor) -> Tensor:
    """L_vb per sample in bits per dimension, (B,): KL of the reverse step, discrete NLL at t = 0 (iDDPM section 3.1).

    eps is detached: only the variance learns from this term. Unscaled, as in DiT's training.
    """
    true_mean, true_log_var = posterior(schedule, z0, z_t, t_B)
    mean, _ = posterior(schedule, x0_prediction(schedule, z_t, eps.detach(), t_B), z_t, t_B)
    log_var = learned_log_variance(schedule, v, t_B)
    kl = _normal_kl(true_mean, true_log_var, mean, log_var).flatten(1).mean(1)
    nll = _discrete_nll(z0, mean, log_var).flatten(1).mean(1)
    return torch.where(t_B == 0, nll, kl) / math.log(2)
