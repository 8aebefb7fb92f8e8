"""The diffusion process: schedule, noising, the one-step clean prediction and the variational term.

Shapes: B batch, C channels, T timesteps; latents are (B, C, H, W).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

COEFFICIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    # of beta_T, abar_T, and abar of the timestep before
    "z0_of_z_t": lambda beta, abar, before: abar.sqrt(),
    "eps_of_z_t": lambda beta, abar, before: (1 - abar).sqrt(),
    "z_t_of_x0": lambda beta, abar, before: (1 / abar).sqrt(),
    "eps_of_x0": lambda beta, abar, before: (1 / abar - 1).sqrt(),
    "x0_of_mean": lambda beta, abar, before: beta * before.sqrt() / (1 - abar),
    "z_t_of_mean": lambda beta, abar, before: (1 - before) * (1 - beta).sqrt() / (1 - abar),
    "log_variance": lambda beta, abar, before: _first_from_second(beta * (1 - before) / (1 - abar)).log(),
    "log_beta": lambda beta, abar, before: beta.log(),
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A schedule: beta_t and abar_t = prod_{s<=t} (1 - beta_s), each (T,) float64 on the host."""

    beta_T: Tensor
    abar_T: Tensor
    _tables: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_steps(self) -> int:
        return len(self.beta_T)

    def table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """All COEFFICIENTS of all timesteps, (T, number of them), computed in float64; sent to a device once."""
        if (device, dtype) not in self._tables:
            with torch.inference_mode(False):  # a table made while sampling also serves training
                before = torch.cat([self.abar_T.new_ones(1), self.abar_T[:-1]])
                columns = [of(self.beta_T, self.abar_T, before) for of in COEFFICIENTS.values()]
                self._tables[device, dtype] = torch.stack(columns, dim=1).to(dtype).to(device)
        return self._tables[device, dtype]

    def at(self, t_B: Tensor, like: Tensor, *names: str) -> list[Tensor]:
        """The named coefficients at t_B, each (B, 1, ...) with the dimensions, device and dtype of `like`: one gather."""
        rows_BN = self.table(like.device, like.dtype)[t_B]
        return [rows_BN[:, _PLACE[name]].view(-1, *[1] * (like.dim() - 1)) for name in names]


_PLACE = {name: place for place, name in enumerate(COEFFICIENTS)}


def _first_from_second(values_T: Tensor) -> Tensor:
    return torch.cat([values_T[1:2], values_T[1:]])


@functools.cache
def linear_schedule(num_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
    """The linear betas of DDPM, as DiT uses them. One schedule for all who ask: its tables are on a device once."""
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


def add_noise(schedule: NoiseSchedule, z0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """The noised latent z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps (paper Eq. 1)."""
    of_z0, of_eps = schedule.at(t_B, z0, "z0_of_z_t", "eps_of_z_t")
    return of_z0 * z0 + of_eps * eps


def x0_prediction(schedule: NoiseSchedule, z_t: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
    """The clean latent that explains z_t if `eps` is the noise in z_t: one step, unclipped, differentiable in eps.

    At t = 999 of the linear schedule an error of eps is multiplied by 157.
    """
    of_z_t, of_eps = schedule.at(t_B, z_t, "z_t_of_x0", "eps_of_x0")
    return of_z_t * z_t - of_eps * eps


def posterior(schedule: NoiseSchedule, x0: Tensor, z_t: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of q(z_{t-1} | z_t, x0) (DDPM Eq. 7); the log-variance at t = 0 is that of t = 1."""
    of_x0, of_z_t, log_variance = schedule.at(t_B, x0, "x0_of_mean", "z_t_of_mean", "log_variance")
    return of_x0 * x0 + of_z_t * z_t, log_variance


def learned_log_variance(schedule: NoiseSchedule, v: Tensor, t_B: Tensor) -> Tensor:
    """The log-variance between that of the posterior (v = -1) and log beta (v = 1): iDDPM's "learned range", Eq. 15."""
    lowest, highest = schedule.at(t_B, v, "log_variance", "log_beta")
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
