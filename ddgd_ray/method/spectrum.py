"""What an autoencoder damps, and a gain per spatial frequency that puts it back.

Shapes: N images, C channels, S side in pixels, R = S // 2 + 1 columns of a real transform; images are (N, C, S, S) in [-1, 1].
"""

import torch
from torch import Tensor


def mean_amplitudes(images: Tensor) -> Tensor:
    """Mean amplitude of each spatial frequency over the images, (C, S, R) float64."""
    return torch.fft.rfft2(images.double()).abs().mean(dim=0)


def radial(table_CSR: Tensor) -> Tensor:
    """The same table with each value replaced by the mean of its ring, frequencies of one rounded radius; (C, S, R)."""
    channels, side, columns = table_CSR.shape
    down = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    ring_F = (down[:, None].square() + torch.arange(columns, dtype=torch.float64).square()).sqrt().round().long().flatten()
    # a column inside the half plane stands for its mirror image too
    weight_F = torch.full((side, columns), 2.0, dtype=torch.float64)
    weight_F[:, 0] = 1.0
    if side % 2 == 0:
        weight_F[:, -1] = 1.0
    weight_F = weight_F.flatten()
    counts = torch.zeros(int(ring_F.max()) + 1, dtype=torch.float64).index_add_(0, ring_F, weight_F)
    sums = torch.zeros(channels, len(counts), dtype=torch.float64)
    sums.index_add_(1, ring_F, table_CSR.flatten(1) * weight_F)
    return (sums / counts)[:, ring_F].view_as(table_CSR)


def gain_of(real_CSR: Tensor, decoded_CSR: Tensor, *, most: float) -> Tensor:
    """(C, S, R) by which decoded amplitudes are multiplied to be as great as the real ones, ring by ring; 1 at frequency 0.

    Clamped to 1 / most .. most: a frequency that the decoder has lost cannot be brought back, only its noise. Raises ValueError
    when most < 1.
    """
    if most < 1:
        raise ValueError(f"the greatest gain: expected 1 or more, got {most:g}")
    tiny = torch.finfo(torch.float64).tiny
    gain = radial(real_CSR).clamp_min(tiny) / radial(decoded_CSR).clamp_min(tiny)
    gain = gain.clamp(1 / most, most)
    gain[:, 0, 0] = 1.0
    return gain


def with_gain(images: Tensor, gain_CSR: Tensor) -> Tensor:
    """The images, each frequency of each channel multiplied by its gain; mean brightness stays. Not clipped."""
    side = images.shape[-1]
    spectrum = torch.fft.rfft2(images) * gain_CSR.to(images)
    return torch.fft.irfft2(spectrum, s=(side, side))
