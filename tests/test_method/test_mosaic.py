"""RDED's crops and mosaics, pixel by pixel. Shapes: N images, A crops, C channels, S side."""

import math

import pytest
import torch

from ddgd_ray.method.mosaic import crop_boxes, mosaic, realism, shrunk, surest_crops


def test_realism_is_minus_the_cross_entropy_of_the_true_class() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    found = realism(logits, torch.tensor([1, 0])).tolist()
    slow = [2.0 - math.log(sum(map(math.exp, (1.0, 2.0, -1.0)))), 0.0 - math.log(2 + math.exp(3.0))]
    assert found == pytest.approx(slow)


def test_each_image_gives_its_best_crop_and_the_surest_images_come_first() -> None:
    score_NA = torch.tensor([[0.1, 0.4, 0.2], [0.9, 0.9, 0.0], [0.3, 0.2, 0.5], [0.4, 0.0, 0.0]])
    best_N, order_N = surest_crops(score_NA)
    assert best_N.tolist() == [1, 0, 2, 0]
    assert order_N.tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_mosaic_lays_its_tiles_row_by_row(factor: int) -> None:
    tile, num = 4, 2 * factor**2
    crops = torch.arange(num * 3 * tile * tile, dtype=torch.float32).view(num, 3, tile, tile)
    pictures = mosaic(crops, factor * tile)
    assert pictures.shape == (2, 3, factor * tile, factor * tile)
    for n in range(num):
        picture, place = divmod(n, factor**2)
        row, column = divmod(place, factor)
        part = pictures[picture, :, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        assert torch.equal(part, crops[n])


@pytest.mark.parametrize(("num", "tile", "side"), [(3, 4, 8), (4, 3, 8)])
def test_tiles_that_leave_a_gap_are_refused(num: int, tile: int, side: int) -> None:
    with pytest.raises(ValueError, match="whole pictures of 8 px"):
        mosaic(torch.zeros(num, 1, tile, tile), side)


def test_a_shrunk_pixel_is_the_mean_of_what_it_covers() -> None:
    crops = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = shrunk(crops, 4)
    assert float(small[1, 2, 1, 3]) == pytest.approx(float(crops[1, 2, 2:4, 6:8].mean()), rel=1e-6)


def test_boxes_are_squares_inside_the_image_and_cover_the_shares_that_were_asked_for() -> None:
    boxes = crop_boxes(2000, 32, scale=(0.08, 1.0), generator=torch.Generator().manual_seed(0))
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(height, width)
    assert float(torch.stack([top, left]).min()) == 0
    assert float((top + height).max()) <= 32
    assert float((left + width).max()) <= 32
    share = (height / 32).square()
    assert 0.07 < float(share.min()) < 0.1
    assert float(share.mean()) == pytest.approx(0.54, abs=0.02)
