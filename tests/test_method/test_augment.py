"""Augmentations. Pixels are small integers, so that moving them is exact."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as tvf

from ddgd_ray.method import augment


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integer_images(num: int, channels: int = 2, size: int = 8) -> Tensor:
    return torch.randint(-50, 50, (num, channels, size, size), generator=seeded(99)).float()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    return augment.mirror(images, augment.draw_mirrored(len(images), generator))


def random_shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    return augment.shift(images, augment.draw_shifts(len(images), max_shift, generator=generator))


def cutmix(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Of one seed: images, partner of each, share kept."""
    partner = augment.draw_partners(1, len(images), generator=generator)
    mixed, kept = augment.cutmix_boxes(images[None], partner, augment.draw_boxes(1, images.shape[-1], generator=generator))
    return mixed[0], partner[0], float(kept)


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


@pytest.mark.parametrize("change", [random_flip, lambda x, g: random_shift(x, 3, g), lambda x, g: cutmix(x, g)[0]])
def test_augmentation_repeats_with_its_seed_and_spares_its_input(change) -> None:
    images = integer_images(16)
    before = images.clone()
    first, again, other = change(images, seeded(3)), change(images, seeded(3)), change(images, seeded(4))
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


def byte_images(num: int, channels: int = 3, size: int = 24) -> Tensor:
    return torch.randint(0, 256, (num, channels, size, size), generator=seeded(98), dtype=torch.uint8)


DRAWS = [
    lambda num, g: augment.draw_crops(num, 32, scale=(0.3, 1.0), generator=g),
    augment.draw_mirrored,
    lambda num, g: augment.draw_shifts(num, 4, generator=g),
    lambda num, g: augment.draw_factors(num, (0.4, 0.4, 0.4), generator=g),
    augment.draw_orders,
    lambda num, g: augment.draw_alphas(num, generator=g),
    lambda num, g: augment.draw_boxes(num, 32, generator=g),
    lambda num, g: augment.draw_partners(num, 7, generator=g),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_drawing_in_blocks_is_drawing_at_once(draw) -> None:
    one, two = seeded(7), seeded(7)
    blocks = [draw(num, one) for num in (5, 30, 1)]  # across the 16 numbers that torch's randn draws at a time
    assert torch.equal(torch.cat(blocks), draw(36, two))


@pytest.mark.parametrize("draw", DRAWS)
def test_a_seed_draws_the_same_beside_another_one(draw) -> None:
    alone = [torch.cat([draw(9, generator), draw(9, generator)]) for generator in (seeded(1), seeded(2))]
    one, two = seeded(1), seeded(2)
    beside = torch.stack([torch.cat([draw(9, one), draw(9, two)]) for _ in range(2)])  # (steps, 2 seeds * 9, ...)
    for seed, expected in enumerate(alone):
        assert torch.equal(beside[:, 9 * seed : 9 * (seed + 1)].flatten(0, 1), expected)
    assert not torch.equal(*alone)


def torchvision_crops(num: int, size: int, scale: tuple[float, float]) -> Tensor:
    image = torch.empty(3, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.tensor([transforms.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(num)])


@pytest.mark.parametrize(("size", "scale"), [(224, (0.5, 1.0)), (224, (0.08, 1.0)), (32, (0.9, 1.0))])
def test_crops_are_distributed_as_torchvisions(size: int, scale: tuple[float, float]) -> None:
    measures = {
        "area": lambda crops: crops[:, 2] * crops[:, 3],
        "ratio": lambda crops: crops[:, 3] / crops[:, 2],
        "top": lambda crops: crops[:, 0],
        "left": lambda crops: crops[:, 1],
        "room taken above": lambda crops: crops[:, 0] / (size - crops[:, 2]).clamp_min(1),
    }
    ours = augment.draw_crops(4000, size, scale=scale, generator=seeded(8))
    theirs = torchvision_crops(4000, size, scale)
    # ties (whole pixels) only make the test lenient; 15 comparisons at 0.001 raise a false alarm once in 67 choices of seeds
    unlike = {name: p for name, f in measures.items() if (p := stats.ks_2samp(f(ours), f(theirs)).pvalue) <= 0.001}
    assert unlike == {}


@pytest.mark.parametrize("scale", [(1e-9, 1e-6), (0.001, 0.02), (0.08, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("size", [8, 225])
def test_a_crop_is_whole_pixels_inside_the_image(size: int, scale: tuple[float, float]) -> None:
    crops = augment.draw_crops(2000, size, scale=scale, generator=seeded(9))
    assert torch.equal(crops, crops.round())
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, 2:] >= 1).all()
    assert (crops[:, :2] + crops[:, 2:] <= size).all()
    share = crops[:, 2] * crops[:, 3] / size**2
    is_whole = share == 1
    assert (is_whole | (share <= (scale[1] ** 0.5 + 1 / size) ** 2)).all()  # rounding moves a side by half a pixel
    # no side of less than half a pixel fits, and of all boxes as large as the image only itself
    assert bool(is_whole.all()) == (scale[1] < 1e-3 or scale[0] == 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 33])
def test_resized_crops_are_torchvisions(channels: int, size: int) -> None:
    images = byte_images(40, channels, size)
    crops = augment.draw_crops(40, size, scale=(0.05, 1.0), generator=seeded(10))
    crops[0] = torch.tensor([0, 0, size, size])
    crops[1] = torch.tensor([size - 1, 3, 1, 5])
    mirrored = augment.draw_mirrored(40, seeded(11))
    resized = augment.resize_crops(images, crops, mirrored=mirrored, size=size)
    for image, crop, is_mirrored, ours in zip(images, crops.int().tolist(), mirrored.tolist(), resized, strict=True):
        twin = tvf.resized_crop(image.float() / 255, *crop, [size, size], antialias=True)
        twin = tvf.hflip(twin) if is_mirrored else twin
        # float32 holds a pixel's coordinate to 1e-6 of the side: below 5e-5 of the range, an eightieth of a gray level
        torch.testing.assert_close(ours, twin, rtol=0, atol=5e-5)
    assert {True, False} == set(mirrored.tolist())


def test_resized_crops_are_pils_but_for_its_rounding() -> None:
    images, size = byte_images(20), 24
    crops = augment.draw_crops(20, size, scale=(0.3, 1.0), generator=seeded(12))
    resized = augment.resize_crops(images, crops, mirrored=torch.zeros(20, dtype=torch.bool), size=size)
    for image, (top, left, height, width), ours in zip(images, crops.int().tolist(), resized, strict=True):
        box = (left, top, left + width, top + height)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(box).resize((size, size), Image.Resampling.BILINEAR)
        # PIL rounds to whole gray levels twice, after rows and after columns
        torch.testing.assert_close(ours, tvf.to_tensor(picture), rtol=0, atol=1.5 / 255)


def test_resizing_crops_to_another_size_is_refused() -> None:
    crops = torch.tensor([[0.0, 0.0, 24.0, 24.0]])
    with pytest.raises(AssertionError, match="antialiasing"):
        augment.resize_crops(byte_images(1), crops, mirrored=torch.zeros(1, dtype=torch.bool), size=20)


def test_shift_moves_each_image_by_its_own_offsets() -> None:
    images, offsets = integer_images(50), augment.draw_shifts(50, 3, generator=seeded(13))
    expected = torch.stack([slow_shift(image, *offset) for image, offset in zip(images, offsets.tolist(), strict=True)])
    assert torch.equal(augment.shift(images, offsets), expected)
    assert set(offsets.flatten().tolist()) == set(range(-3, 4))


ADJUST = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_is_torchvisions_in_each_samples_order(channels: int) -> None:
    images = torch.rand(60, channels, 9, 9, generator=seeded(14))
    factors, order = augment.draw_factors(60, (0.9, 0.9, 0.9), generator=seeded(15)), augment.draw_orders(60, seeded(16))
    before = images.clone()
    jittered = augment.color_jitter(images, factors, order)
    for image, factor, kinds, ours in zip(images, factors.tolist(), order.tolist(), jittered, strict=True):
        for kind in kinds:
            image = ADJUST[kind](image, factor[kind])
        torch.testing.assert_close(ours, image, rtol=0, atol=1e-5)  # three roundings of sums in another order
    assert torch.equal(images, before)


def test_unclamped_color_jitter_blends_as_the_literatures_code() -> None:
    images = torch.rand(30, 3, 9, 9, generator=seeded(17))
    factors, order = augment.draw_factors(30, (0.9, 0.9, 0.9), generator=seeded(18)), augment.draw_orders(30, seeded(19))
    jittered = augment.color_jitter(images, factors, order, clamped=False)
    for image, factor, kinds, ours in zip(images, factors.tolist(), order.tolist(), jittered, strict=True):
        for kind in kinds:
            gray = 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]
            blend = (torch.tensor(0.0), gray.mean(), gray)[kind]
            image = factor[kind] * image + (1 - factor[kind]) * blend
        torch.testing.assert_close(ours, image, rtol=0, atol=1e-5)
    assert jittered.min() < 0
    assert jittered.max() > 1


def test_factors_fill_the_range_of_their_strengths() -> None:
    factors = augment.draw_factors(20_000, (0.4, 0.2, 0.0), generator=seeded(20))
    for column, strength in enumerate((0.4, 0.2, 0.0)):
        low, high = factors[:, column].min().item(), factors[:, column].max().item()
        assert low == pytest.approx(1 - strength, abs=1e-3)  # 20,000 draws leave a gap of 0.8 / 20,000 at either end
        assert high == pytest.approx(1 + strength, abs=1e-3)
        assert low >= 1 - strength - 1e-6
        assert high <= 1 + strength + 1e-6
    assert factors.mean(dim=0).sub(1).abs().max() < 0.01  # sigma of the mean 0.0016


def test_every_order_is_as_frequent() -> None:
    rows, counts = augment.draw_orders(6000, seeded(21)).unique(dim=0, return_counts=True)
    assert sorted(map(tuple, rows.tolist())) == sorted(itertools.permutations(range(3)))
    assert counts.min() > 850  # 1000 expected, sigma 29
    assert counts.max() < 1150


def test_lighting_adds_each_pixel_its_samples_offset() -> None:
    images, alphas = torch.rand(5, 3, 4, 4, generator=seeded(22)), augment.draw_alphas(5, generator=seeded(23))
    lit = augment.lighting(images, alphas)
    values = [0.2175, 0.0188, 0.0045]
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    for sample in range(5):
        for color in range(3):
            offset = sum(vectors[color][part] * values[part] * alphas[sample, part].item() for part in range(3))
            torch.testing.assert_close(lit[sample, color], images[sample, color] + offset, rtol=0, atol=1e-6)
    gray = images[:, :1]
    assert torch.equal(augment.lighting(gray, alphas), gray)


def test_alphas_are_normal_of_deviation_a_tenth() -> None:
    alphas = augment.draw_alphas(3000, generator=seeded(24))
    assert stats.kstest(alphas.flatten(), "norm", args=(0, 0.1)).pvalue > 0.001


def test_normalized_images_are_torchvisions() -> None:
    images = torch.rand(4, 3, 5, 5, generator=seeded(25))
    expected = tvf.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(augment.normalize(images), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(augment.normalize(images[:, :1]), 2 * images[:, :1] - 1, rtol=0, atol=1e-6)


def reference_box(size: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """`rand_bbox` of Yun et al. 2019's code, lambda from Beta(1, 1)."""
    side = int(size * np.sqrt(1 - generator.beta(1.0, 1.0)))
    row, column = generator.integers(size), generator.integers(size)
    top, left = np.clip(row - side // 2, 0, size), np.clip(column - side // 2, 0, size)
    bottom, right = np.clip(row + side // 2, 0, size), np.clip(column + side // 2, 0, size)
    return int(top), int(bottom), int(left), int(right)


@pytest.mark.parametrize("size", [9, 224])
def test_boxes_are_distributed_as_the_reference_codes(size: int) -> None:
    generator = np.random.default_rng(0)
    theirs = torch.tensor([reference_box(size, generator) for _ in range(4000)])
    ours = augment.draw_boxes(4000, size, generator=seeded(26))
    measures = [ours.T, theirs.T]
    areas = [(bottom - top) * (right - left) for top, bottom, left, right in measures]
    pvalues = [stats.ks_2samp(*pair).pvalue for pair in (*zip(*measures, strict=True), areas)]
    assert min(pvalues) > 0.001  # as for crops
    assert (ours[:, [0, 2]] <= ours[:, [1, 3]]).all()
    assert ours.min() >= 0
    assert ours.max() <= size


def test_packed_cutmix_pastes_each_seeds_box_from_the_partner_in_its_own_batch() -> None:
    num_seeds, batch, size = 30, 5, 8
    images = torch.rand(num_seeds, batch, 2, size, size, generator=seeded(27))
    boxes = augment.draw_boxes(num_seeds, size, generator=seeded(28))
    partner = augment.draw_partners(num_seeds, batch, generator=seeded(29))
    assert torch.equal(partner.sort(dim=1).values, torch.arange(batch).expand(num_seeds, batch))
    mixed, kept = augment.cutmix_boxes(images, partner, boxes)
    for seed, (top, bottom, left, right) in enumerate(boxes.tolist()):
        expected = images[seed].clone()
        expected[:, :, top:bottom, left:right] = images[seed][partner[seed]][:, :, top:bottom, left:right]
        assert torch.equal(mixed[seed], expected)
        assert kept[seed].item() == pytest.approx(1 - (bottom - top) * (right - left) / size**2)
    assert kept.dtype == torch.float32
    assert len(kept.unique()) > 5


def test_applying_reads_nothing_back_from_the_device() -> None:
    # a tensor on `meta` has no numbers: whoever asks for one, or mixes in a tensor of the host, raises
    num, size = 6, 16
    drawn = (draw(num, seeded(0)).to("meta") for draw in (DRAWS[0], DRAWS[1], DRAWS[3], DRAWS[4], DRAWS[5]))
    crops, mirrored, factors, order, alphas = drawn
    images = augment.resize_crops(byte_images(num, 3, size).to("meta"), crops, mirrored=mirrored, size=size)
    images = augment.shift(augment.mirror(images, mirrored), torch.zeros(num, 2, dtype=torch.int64, device="meta"))
    images = augment.normalize(augment.lighting(augment.color_jitter(images, factors, order), alphas))
    partner, boxes = torch.zeros(2, 3, dtype=torch.int64, device="meta"), torch.zeros(2, 4, dtype=torch.int64, device="meta")
    mixed, kept = augment.cutmix_boxes(images.unflatten(0, (2, 3)), partner, boxes)
    assert mixed.shape == (2, 3, 3, size, size)
    assert kept.shape == (2,)
