"""Augmentations. Pixels are small integers, so that moving them is exact."""

import pytest
import torch
from torch import Tensor

from ddgd_ray.method.augment import cutmix, random_flip, random_shift


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integer_images(num: int, channels: int = 2, size: int = 8) -> Tensor:
    return torch.randint(-50, 50, (num, channels, size, size), generator=seeded(99)).float()


def test_flip_mirrors_left_right_or_leaves_alone() -> None:
    images = integer_images(400)
    flipped = random_flip(images, seeded(0))
    mirrored = (flipped == images.flip(3)).all(dim=3).all(dim=2).all(dim=1)
    same = (flipped == images).all(dim=3).all(dim=2).all(dim=1)
    assert (mirrored ^ same).all()
    assert 160 <= int(mirrored.sum()) <= 240  # 200 expected, sigma 10


def slow_shift(image: Tensor, down: int, right: int) -> Tensor:
    moved = torch.full_like(image, image.min().item())
    size = image.shape[-1]
    for row in range(size):
        for column in range(size):
            if 0 <= row - down < size and 0 <= column - right < size:
                moved[:, row, column] = image[:, row - down, column - right]
    return moved


def test_shift_moves_each_image_by_one_offset_and_fills_with_its_least_value() -> None:
    images, max_shift = integer_images(60), 2
    shifted = random_shift(images, max_shift, seeded(1))
    offsets = [(down, right) for down in range(-max_shift, max_shift + 1) for right in range(-max_shift, max_shift + 1)]
    found = [
        [offset for offset in offsets if torch.equal(after, slow_shift(before, *offset))]
        for before, after in zip(images, shifted, strict=True)
    ]
    assert [len(matches) for matches in found] == [1] * 60
    used = {matches[0] for matches in found}
    assert {down for down, _ in used} == {right for _, right in used} == set(range(-max_shift, max_shift + 1))


def test_a_shift_of_zero_changes_nothing() -> None:
    images = integer_images(5)
    assert torch.equal(random_shift(images, 0, seeded(2)), images)


@pytest.mark.parametrize("augment", [random_flip, lambda x, g: random_shift(x, 3, g), lambda x, g: cutmix(x, g)[0]])
def test_augmentation_repeats_with_its_seed_and_spares_its_input(augment) -> None:
    images = integer_images(16)
    before = images.clone()
    first, again, other = augment(images, seeded(3)), augment(images, seeded(3)), augment(images, seeded(4))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape


@pytest.mark.parametrize("seed", range(40))
def test_cutmix_pastes_one_box_of_the_partner_and_returns_the_share_kept(seed: int) -> None:
    num, size = 6, 9
    # each image is one number of its own: a pixel tells where it came from
    images = torch.arange(float(num))[:, None, None, None].expand(num, 2, size, size)
    mixed, partner, kept = cutmix(images, seeded(seed))
    assert sorted(partner.tolist()) == list(range(num))
    for number in range(num):
        if partner[number] == number:
            continue
        is_pasted = mixed[number] == partner[number]
        assert (is_pasted | (mixed[number] == number)).all()
        assert torch.equal(is_pasted[0], is_pasted[1])
        assert is_pasted[0].double().mean().item() == pytest.approx(1 - kept)
        rows, columns = is_pasted[0].any(dim=1), is_pasted[0].any(dim=0)
        assert torch.equal(is_pasted[0], rows[:, None] & columns[None, :])  # a box
        for span in (rows, columns):
            assert int((span.int().diff() == 1).sum()) + int(span[0]) <= 1  # without a gap


def test_cutmix_keeps_the_pixel_in_its_place() -> None:
    images = integer_images(6)
    mixed, partner, _ = cutmix(images, seeded(5))
    assert ((mixed == images) | (mixed == images[partner])).all()


def test_cutmix_shares_span_from_little_to_nearly_all() -> None:
    # Beta(1, 1) is uniform; clipping the box at the edge only raises the share kept, so the mean lies above 1/2
    images = torch.zeros(2, 1, 32, 32)
    generator = seeded(6)
    shares = torch.tensor([cutmix(images, generator)[2] for _ in range(1000)])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.min() < 0.2
    assert shares.max() > 0.95
    assert 0.5 < shares.mean() < 0.85
