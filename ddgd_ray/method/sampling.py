"""Reverse diffusion: from noise to latents, each image from a stream of its own.

Shapes: B batch, c latent channels, s side of the latent.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddgd_ray.method.noise import (
    NoiseSchedule,
    learned_log_variance,
    posterior,
    respaced,
    x0_prediction,
)

# (z_t, t_B, labels_B) -> (B, c or 2c, s, s): noise, and the variance's interpolation when the model learned it
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def noise_stream(seed: int, class_name: str, index: int) -> torch.Generator:
    """The random stream of one image: a function of (seed, class, index) alone, whatever the batch or the worker."""
    digest = hashlib.sha256(f"{seed}\0{class_name}\0{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _draw(streams: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.stack([torch.randn(shape, generator=stream) for stream in streams]).to(device)


def guided(
    denoise: Denoiser, z_t: Tensor, t_B: Tensor, labels_B: Tensor, null_label: int, scale: float, cfg_channels: int
) -> tuple[Tensor, Tensor | None]:
    """eps_u + scale (eps_c - eps_u) on the first `cfg_channels` channels, eps_c on the others, and the conditional variance
    output if there is one. DiT guides three of its four channels (method.md section 4).
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


@torch.no_grad()
def sample(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    labels_B: Tensor,
    streams: Sequence[torch.Generator],
    *,
    latent_shape: tuple[int, int, int],
    sampler: str,
    num_steps: int,
    guidance: float,
    cfg_channels: int,
    null_label: int,
) -> Tensor:
    """Latents (B, c, s, s) after `num_steps` respaced steps from t = T-1 to 0, unclipped.

    ddpm: ancestral, with the learned variance, or beta-tilde when the model has none. ddim: eta = 0 (Song et al. 2021, Eq. 12).
    """
    short, kept = respaced(schedule, num_steps)
    device = labels_B.device
    z = _draw(streams, latent_shape, device)
    for step in range(num_steps - 1, -1, -1):
        t_model = torch.full_like(labels_B, int(kept[step]))
        t_B = torch.full_like(labels_B, step)
        eps, v = guided(denoise, z, t_model, labels_B, null_label, guidance, cfg_channels)
        x0 = x0_prediction(short, z, eps, t_B)
        if sampler == "ddim":
            before = float(short.abar_T[step - 1]) if step > 0 else 1.0
            z = before**0.5 * x0 + (1 - before) ** 0.5 * eps
        else:
            mean, fixed_log_var = posterior(short, x0, z, t_B)
            log_var = fixed_log_var if v is None else learned_log_variance(short, v, t_B)
            z = mean + (0.5 * log_var).exp() * _draw(streams, latent_shape, device) if step > 0 else mean
    return z
