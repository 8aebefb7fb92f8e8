"""Readers of real images: one function from an ImagesSpec to uint8 arrays, the same for every source.

Shapes: N images, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgd_ray.errors import StageError
from ddgd_ray.sources import FASHION_FILES, embedded_fashion, image_files, index_classes
from ddgd_ray.spec.stages import ImagesSpec

Uint8 = NDArray[np.uint8]
Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """images: (N, S, S, C) uint8. labels: (N,) int64, the place in `ImagesSpec.classes`. names: N stable names."""

    images: Uint8
    labels: Int64
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int64) -> "Split":
        return Split(self.images[rows], self.labels[rows], [self.names[row] for row in rows])


@dataclass(frozen=True)
class Splits:
    """train: what may be distilled. validation: held out of the training images. test: touched by reports only."""

    train: Split
    validation: Split
    test: Split


def read_splits(spec: ImagesSpec, root: Path) -> Splits:
    """All three splits. Validation is the last `validation_per_class` training images of each class.

    Raises StageError when files are missing or damaged, or a class has too few images.
    """
    train, test = _READERS[spec.source](spec, root)
    held: list[int] = []
    for label, name in enumerate(spec.classes):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) <= spec.validation_per_class:
            raise StageError(
                f"class {name} has {len(rows)} training images, needs more than validation_per_class = "
                f"{spec.validation_per_class}",
                where=str(root),
                fix="lower images.validation_per_class or add images",
            )
        held.extend(rows[len(rows) - spec.validation_per_class :].tolist())
    is_held = np.zeros(len(train), dtype=bool)
    is_held[held] = True
    return Splits(train.take(np.flatnonzero(~is_held)), train.take(np.flatnonzero(is_held)), test)


def generator_labels(spec: ImagesSpec) -> list[int]:
    """The label that the generative model knows each class by."""
    return list(range(len(spec.classes))) if spec.labels == "position" else index_classes(spec.classes)


def _fashion(spec: ImagesSpec, root: Path) -> tuple[Split, Split]:
    with np.load(embedded_fashion()) as archive:
        return _grey_split("train", archive["train_images"], archive["train_labels"], spec), _grey_split(
            "test", archive["test_images"], archive["test_labels"], spec
        )


def _fashion_full(spec: ImagesSpec, root: Path) -> tuple[Split, Split]:
    def read(name: str) -> Uint8:
        path = root / name
        packed = path if path.is_file() else root / f"{name}.gz"
        try:
            data = gzip.decompress(packed.read_bytes()) if packed.suffix == ".gz" else packed.read_bytes()
        except (OSError, EOFError) as err:
            raise StageError(f"cannot be read: {err}", where=str(packed), fix="install the data set again") from err
        num_dims = data[3]
        shape = np.frombuffer(data, ">i4", num_dims, 4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)

    train_images, train_labels, test_images, test_labels = (read(name) for name in FASHION_FILES)
    return _grey_split("train", train_images, train_labels, spec), _grey_split("test", test_images, test_labels, spec)


def _digits(spec: ImagesSpec, root: Path) -> tuple[Split, Split]:
    """scikit-learn's 8 x 8 digits; every fifth image of a class is a test image, as the set has no split of its own."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise StageError(
            "the digits data set comes with scikit-learn, which is not installed", fix="pip install 'ddgd-ray[digits]'"
        ) from err
    digits = load_digits()
    images = np.minimum(digits.images * 16, 255).astype(np.uint8)
    place = np.zeros(len(images), dtype=int)
    for label in range(10):
        rows = digits.target == label
        place[rows] = np.arange(rows.sum())
    is_test = place % 5 == 4
    return _grey_split("train", images[~is_test], digits.target[~is_test], spec), _grey_split(
        "test", images[is_test], digits.target[is_test], spec
    )


def _grey_split(split: str, images: Uint8, labels: NDArray[np.integer], spec: ImagesSpec) -> Split:
    """Centre the images on a black square of spec.size, repeat to spec.channels."""
    side = images.shape[1]
    before, odd = divmod(spec.size - side, 2)
    if before < 0:
        raise StageError(f"images are {side} px, more than images.size = {spec.size}", fix=f"set images.size to {side} or more")
    padded = np.pad(images, ((0, 0), (before, before + odd), (before, before + odd)))[..., None]
    names = [f"{split}-{row:05d}" for row in range(len(labels))]
    return Split(np.repeat(padded, spec.channels, axis=3), labels.astype(np.int64), names)


def _imagefolder(spec: ImagesSpec, root: Path) -> tuple[Split, Split]:
    files = image_files(spec.classes, root)
    return _read_folder(spec, root, files["train"]), _read_folder(spec, root, files["val"])


def _read_folder(spec: ImagesSpec, root: Path, files: dict[str, list[Path]]) -> Split:
    listed = [(label, path) for label, name in enumerate(spec.classes) for path in files[name]]
    images = np.empty((len(listed), spec.size, spec.size, spec.channels), np.uint8)
    bad: list[str] = []
    for row, image in enumerate(decoded([path for _, path in listed], spec, bad)):
        images[row] = image
    if bad:
        shown = "\n".join(f"    {line}" for line in bad[:20])
        raise StageError(
            f"{len(bad)} of {len(listed)} images cannot be decoded:\n{shown}",
            code="corrupt-image",
            where=str(root),
            fix="replace or remove these files",
        )
    labels = np.array([label for label, _ in listed], dtype=np.int64)
    return Split(images, labels, [str(path.relative_to(root)) for _, path in listed])


def decoded(paths: list[Path], spec: ImagesSpec, bad: list[str]) -> Iterator[Uint8]:
    """Each image, shorter side resized to spec.size and centre-cropped (ADM's crop); zeros and a line in `bad` if damaged."""
    from PIL import Image, UnidentifiedImageError

    for path in paths:
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if spec.channels == 3 else "L")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as err:
            bad.append(f"{path}: {err}")
            yield np.zeros((spec.size, spec.size, spec.channels), np.uint8)
            continue
        while min(image.size) >= 2 * spec.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = spec.size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - spec.size) // 2, (image.height - spec.size) // 2
        cropped = image.crop((left, top, left + spec.size, top + spec.size))
        yield np.asarray(cropped, dtype=np.uint8).reshape(spec.size, spec.size, spec.channels)


_READERS = {"fashion": _fashion, "fashion-full": _fashion_full, "digits": _digits, "imagefolder": _imagefolder}
