"""Reverse diffusion: from noise to latents, each image from a stream of its own.

Shapes: B batch, c latent channels, s side of the latent.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from ddgd_ray.method.guidance import Guide, Step
from ddgd_ray.method.noise import (
    NoiseSchedule,
    learned_log_variance,
    posterior,
    respaced,
    x0_prediction,
)

# (z_t, t_B, labels_B) -> (B, c or 2c, s, s): noise, and the variance's interpolation when the model learned it
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


# (mean, x0, sigma_t, index, abar) -> mean: a guide that knows the rest of the step already
Steer = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]


class Sampler(Protocol):
    """One way down from noise. A sampler is made anew for each batch, since it may remember earlier steps.

    timesteps: the model's t of each step, descending. num_noises: how many of the first steps take fresh noise.
    """

    timesteps: list[int]
    num_noises: int

    def step(
        self, place: int, z: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None, steer: Steer | None = None
    ) -> Tensor:
        """The latents after step `place`, of which 0 is the first, at the greatest t.

        eps: the predicted noise. v: the learned variance, as a place between its bounds. steer: moves the mean, if given.
        """
        ...


class Ancestral:
    """DDPM on a respaced schedule, with the learned variance, or beta-tilde when the model has none; unclipped."""

    def __init__(self, schedule: NoiseSchedule, num_steps: int) -> None:
        self.short, kept = respaced(schedule, num_steps)
        self.timesteps = kept.flip(0).tolist()
        self.num_noises = num_steps - 1

    def step(
        self, place: int, z: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None, steer: Steer | None = None
    ) -> Tensor:
        index = len(self.timesteps) - 1 - place
        t_B = torch.full((len(z),), index, device=z.device)
        x0 = x0_prediction(self.short, z, eps, t_B)
        mean, fixed_log_var = posterior(self.short, x0, z, t_B)
        if noise is None and steer is None:
            return mean
        log_var = fixed_log_var if v is None else learned_log_variance(self.short, v, t_B)
        sigma_t = (0.5 * log_var).exp()
        if steer is not None:
            mean = steer(mean, x0, sigma_t, index, float(self.short.abar_T[index]))
        return mean if noise is None else mean + sigma_t * noise


class Ddim:
    """DDIM with eta = 0 (Song et al. 2021, Eq. 12) on a respaced schedule, unclipped.

    It has no noise of its own: a guide is told the sigma_t that the ancestral step between the same levels would have.
    """

    num_noises = 0

    def __init__(self, schedule: NoiseSchedule, num_steps: int) -> None:
        self.short, kept = respaced(schedule, num_steps)
        self.timesteps = kept.flip(0).tolist()

    def step(
        self, place: int, z: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None, steer: Steer | None = None
    ) -> Tensor:
        now = len(self.timesteps) - 1 - place
        t_B = torch.full((len(z),), now, device=z.device)
        x0 = x0_prediction(self.short, z, eps, t_B)
        before = float(self.short.abar_T[now - 1]) if now > 0 else 1.0
        mean = before**0.5 * x0 + (1 - before) ** 0.5 * eps
        if steer is None:
            return mean
        _, log_var = posterior(self.short, x0, z, t_B)
        return steer(mean, x0, (0.5 * log_var).exp(), now, float(self.short.abar_T[now]))


def noise_stream(seed: int, class_name: str, index: int) -> torch.Generator:
    """The random stream of one image: a function of (seed, class, index) alone, whatever the batch or the worker."""
    digest = hashlib.sha256(f"{seed}\0{class_name}\0{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def guided(
    denoise: Denoiser, z_t: Tensor, t_B: Tensor, labels_B: Tensor, null_label: int, scale: float, cfg_channels: int
) -> tuple[Tensor, Tensor | None]:
    """The guided noise, and the conditional variance output if the model has one.

    The noise is eps_u + scale (eps_c - eps_u) on the first `cfg_channels` channels and eps_c on the others: DiT guides three of
    its four channels.
    """
    channels = z_t.shape[1]
    if scale == 1.0:
        conditional = denoise(z_t, t_B, labels_B)
        return _split(conditional, channels)
    nothing_B = torch.full_like(labels_B, null_label)
    both = denoise(torch.cat([z_t, z_t]), torch.cat([t_B, t_B]), torch.cat([labels_B, nothing_B]))
    conditional, unconditional = both.chunk(2)
    eps, v = _split(conditional, channels)
    base = unconditional[:, :cfg_channels]
    eps = torch.cat([base + scale * (eps[:, :cfg_channels] - base), eps[:, cfg_channels:]], dim=1)
    return eps, v


def _split(predicted: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    return predicted[:, :channels], predicted[:, channels:] if predicted.shape[1] == 2 * channels else None


@torch.inference_mode()
def sample(
    denoise: Denoiser,
    sampler: Sampler,
    labels_B: Tensor,
    streams: Sequence[torch.Generator],
    *,
    latent_shape: tuple[int, int, int],
    guidance: float,
    cfg_channels: int,
    null_label: int,
    guide: Guide | None = None,
    begin: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
) -> Tensor:
    """Latents (B, c, s, s) after all steps of `sampler`. streams: one per image, as `noise_stream` makes them.

    guide: moves the mean of each step. begin, first: the latents that the step at place `first` starts from, made of each
    image's first noise; the steps before it are left out.
    """
    with ThreadPoolExecutor(1) as background:
        # the noise of a step is drawn while the model works on the step before; each stream's numbers come in the same order
        def ahead() -> Callable[[], Tensor]:
            return background.submit(_draw, streams, latent_shape, labels_B.device).result

        z = ahead()().to(labels_B.device, non_blocking=True)
        z = z if begin is None else begin(z)
        for place, t in list(enumerate(sampler.timesteps))[first:]:
            is_noisy = place < sampler.num_noises
            drawn = ahead() if is_noisy else None
            t_B = torch.full_like(labels_B, t)
            eps, v = guided(denoise, z, t_B, labels_B, null_label, guidance, cfg_channels)
            noise = drawn().to(labels_B.device, non_blocking=True) if drawn is not None else None
            steer = None if guide is None else _steer(guide, z, t_B, labels_B)
            z = sampler.step(place, z, eps, v, noise, steer)
    return z


def _steer(guide: Guide, z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Steer:
    def steer(mean: Tensor, x0: Tensor, sigma_t: Tensor, index: int, abar: float) -> Tensor:
        return guide(Step(mean, x0, sigma_t, index, z_t, t_B, labels_B, abar))

    return steer


def _draw(streams: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The next numbers of each stream, (B, *shape) on the host, in pinned memory for CUDA."""
    drawn = torch.empty(len(streams), *shape, pin_memory=device.type == "cuda")
    for row, stream in zip(drawn, streams, strict=True):
        torch.randn(shape, generator=stream, out=row)
    return drawn
