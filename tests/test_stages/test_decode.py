"""Test images as the networks see them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from ddgd_ray.errors import StageError
from ddgd_ray.spec.evaluation import DecodeSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import decode
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.pictures import CorruptImage, for_classifier


def picture(width: int, height: int) -> Image.Image:
    grid = np.add.outer(np.arange(height) * 3, np.arange(width) * 5)[..., None] + np.array([0, 40, 90])
    return Image.fromarray((grid % 256).astype(np.uint8))


@pytest.mark.parametrize("shape", [(50, 31), (31, 50), (17, 40), (24, 24), (25, 24), (300, 200), (9, 7)])
@pytest.mark.parametrize(("resize", "size"), [(24, 24), (27, 24), (28, 23)])
def test_a_picture_is_fitted_as_torchvision_does(shape: tuple[int, int], resize: int, size: int) -> None:
    image = picture(*shape)
    twin = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])(image)
    assert np.array_equal(for_classifier(image, resize, size, "p"), np.asarray(twin))


def test_a_picture_too_thin_for_memory_is_corrupt() -> None:
    with pytest.raises(CorruptImage, match="too thin for 224"):
        for_classifier(Image.new("L", (1_000_000, 1)), 224, 224, "p")


def folder(root: Path, *, num_val: int = 2) -> ImagesSpec:
    for split, num in (("train", 3), ("val", num_val)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                picture(30 + index, 20).save(root / split / name / f"{index}.png")
    return ImagesSpec(source="imagefolder", classes=("a", "b"), size=16, validation_per_class=1, root=str(root))


def test_both_splits_are_written_at_the_protocols_size(tmp_path: Path) -> None:
    images = folder(tmp_path / "images")
    metrics = decode.run(DecodeSpec(images=images, size=12, resize=14), {"images": tmp_path / "images"}, tmp_path, Context())
    assert metrics == {"num_test": 4, "num_validation": 2}
    test, validation = decode.read_decoded(tmp_path, "test"), decode.read_decoded(tmp_path, "validation")
    assert test.images.shape == (4, 12, 12, 3)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(test.images[1], for_classifier(picture(31, 20), 14, 12, ""))
    assert np.array_equal(validation.images[0], for_classifier(picture(32, 20), 14, 12, "")), (
        "the last training image is held out"
    )


def test_no_validation_slice_is_an_empty_split(tmp_path: Path) -> None:
    images = folder(tmp_path / "images").model_copy(update={"validation_per_class": 0})
    decode.run(DecodeSpec(images=images, size=12, resize=12), {"images": tmp_path / "images"}, tmp_path, Context())
    assert len(decode.read_decoded(tmp_path, "validation")) == 0


def test_a_damaged_test_image_is_refused_or_left_out(tmp_path: Path) -> None:
    images, root = folder(tmp_path / "images"), tmp_path / "images"
    path = root / "val" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    spec = DecodeSpec(images=images, size=12, resize=12)
    with pytest.raises(StageError, match=r"1 of 6 images cannot be decoded") as caught:
        decode.run(spec, {"images": root}, tmp_path, Context())
    assert str(path) in str(caught.value)
    skipping = spec.model_copy(update={"images": images.model_copy(update={"on_corrupt": "skip"})})
    assert decode.run(skipping, {"images": root}, tmp_path, Context())["num_skipped"] == 1
    assert decode.read_decoded(tmp_path, "test").labels.tolist() == [0, 1, 1]


def test_a_crop_larger_than_its_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="test_resize = 20 is less than size = 24"):
        DecodeSpec(images=ImagesSpec(source="digits", classes=("0", "1"), size=8), size=24, resize=20)
