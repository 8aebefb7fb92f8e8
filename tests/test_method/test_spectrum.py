"""The spectral gain against a naive Fourier transform and a known blur. Shapes: N images, C channels, S side."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from ddgd_ray.method.spectrum import gain_of, mean_amplitudes, radial, with_gain


def pictures(side: int, *, num: int = 6, channels: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, channels, side, side, generator=generator, dtype=torch.float64).cumsum(3).cumsum(2) / side**2


def blurred(images: Tensor) -> Tensor:
    """By a symmetric kernel on the torus: a real, positive factor for each frequency."""
    for dim in (2, 3):
        images = 0.6 * images + 0.2 * (images.roll(1, dim) + images.roll(-1, dim))
    return images


def test_amplitudes_are_those_of_the_sums() -> None:
    images = pictures(4, num=2, channels=1)
    found = mean_amplitudes(images)
    for down in range(4):
        for across in range(3):
            total = 0.0
            for image in images[:, 0].tolist():
                waves = (
                    image[y][x] * cmath.exp(-2j * math.pi * (down * y + across * x) / 4) for y in range(4) for x in range(4)
                )
                total += abs(sum(waves)) / 2
            assert float(found[0, down, across]) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("side", [5, 8])
def test_rings_are_those_of_the_whole_plane(side: int) -> None:
    table = mean_amplitudes(pictures(side))
    rings: dict[int, list[float]] = {}
    for down in range(side):
        for across in range(side):
            signed = [place if place <= side // 2 else place - side for place in (down, across)]
            mirror = (down, across) if across <= side // 2 else (-down % side, -across % side)
            rings.setdefault(round(math.hypot(*signed)), []).append(float(table[1][mirror]))
    found = radial(table)
    for down in range(side):
        for across in range(side // 2 + 1):
            radius = round(math.hypot(down if down <= side // 2 else down - side, across))
            assert float(found[1, down, across]) == pytest.approx(sum(rings[radius]) / len(rings[radius]), rel=1e-12)


@pytest.mark.parametrize("side", [7, 8])
def test_after_the_gain_the_amplitudes_are_the_real_ones_ring_by_ring(side: int) -> None:
    real = pictures(side)
    decoded = blurred(real)
    real_CSR, decoded_CSR = mean_amplitudes(real), mean_amplitudes(decoded)
    gained_CSR = mean_amplitudes(with_gain(decoded, gain_of(real_CSR, decoded_CSR, most=1e6)))
    torch.testing.assert_close(radial(gained_CSR), radial(real_CSR), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(radial(decoded_CSR), radial(real_CSR), rtol=0.05)


def test_brightness_stays_and_the_gain_stays_within_its_bounds() -> None:
    real = pictures(8)
    decoded = blurred(real) * 0.01
    gain_CSR = gain_of(mean_amplitudes(real), mean_amplitudes(decoded), most=4.0)
    assert float(gain_CSR.max()) == 4.0
    torch.testing.assert_close(with_gain(decoded, gain_CSR).mean(dim=(2, 3)), decoded.mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="1 or more"):
        gain_of(gain_CSR, gain_CSR, most=0.5)


def test_equal_amplitudes_have_a_gain_of_one() -> None:
    table = mean_amplitudes(pictures(8))
    assert torch.equal(gain_of(table, table, most=4.0), torch.ones_like(table))
