"""Readers of real images: one function from an ImagesSpec to uint8 arrays, the same for every source.

Shapes: N images, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

import gzip
from collections.abc import Callable, Iterator
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
class _Listing:
    """What a source holds before anything is decoded; load(rows) gives their images."""

    labels: Int64
    names: list[str]
    load: Callable[[Int64], Uint8]

    def take(self, rows: Int64) -> Split:
        return Split(self.load(rows), self.labels[rows], [self.names[row] for row in rows])


def read_splits(spec: ImagesSpec, root: Path, *wanted: str) -> list[Split]:
    """The wanted of `train` (what may be distilled), `validation` (held out of the training images) and `test`.

    Validation is the last `validation_per_class` training images of each class. Only what is wanted is decoded.
    Raises StageError when files are missing or damaged, or a class has too few images.
    """
    train, test = _READERS[spec.source](spec, root)
    is_held = np.zeros(len(train.labels), dtype=bool)
    for label, name in enumerate(spec.classes):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) <= spec.validation_per_class:
            raise StageError(
                f"class {name} has {len(rows)} training images, needs more than validation_per_class = "
                f"{spec.validation_per_class}",
                where=str(root),
                fix="lower images.validation_per_class or add images",
            )
        is_held[rows[len(rows) - spec.validation_per_class :]] = True
    rows_of = {
        "train": (train, np.flatnonzero(~is_held)),
        "validation": (train, np.flatnonzero(is_held)),
        "test": (test, np.arange(len(test.labels))),
    }
    return [listing.take(rows) for listing, rows in (rows_of[name] for name in wanted)]


def generator_labels(spec: ImagesSpec) -> list[int]:
    """The label that the generative model knows each class by."""
    return list(range(len(spec.classes))) if spec.labels == "position" else index_classes(spec.classes)


def _fashion(spec: ImagesSpec, root: Path) -> tuple[_Listing, _Listing]:
    with np.load(embedded_fashion()) as archive:
        return _grey_listing("train", archive["train_images"], archive["train_labels"], spec), _grey_listing(
            "test", archive["test_images"], archive["test_labels"], spec
        )


def _fashion_full(spec: ImagesSpec, root: Path) -> tuple[_Listing, _Listing]:
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
    return _grey_listing("train", train_images, train_labels, spec), _grey_listing("test", test_images, test_labels, spec)


def _digits(spec: ImagesSpec, root: Path) -> tuple[_Listing, _Listing]:
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
    return _grey_listing("train", images[~is_test], digits.target[~is_test], spec), _grey_listing(
        "test", images[is_test], digits.target[is_test], spec
    )


def _grey_listing(split: str, images: Uint8, labels: NDArray[np.integer], spec: ImagesSpec) -> _Listing:
    """Centre the images on a black square of spec.size, repeat to spec.channels."""
    side = images.shape[1]
    before, odd = divmod(spec.size - side, 2)
    if before < 0:
        raise StageError(f"images are {side} px, more than images.size = {spec.size}", fix=f"set images.size to {side} or more")
    names = [f"{split}-{row:05d}" for row in range(len(labels))]

    def load(rows: Int64) -> Uint8:
        padded = np.pad(images[rows], ((0, 0), (before, before + odd), (before, before + odd)))[..., None]
        return np.repeat(padded, spec.channels, axis=3)

    return _Listing(labels.astype(np.int64), names, load)


def _imagefolder(spec: ImagesSpec, root: Path) -> tuple[_Listing, _Listing]:
    files = image_files(spec.classes, root)
    return _folder_listing(spec, root, files["train"]), _folder_listing(spec, root, files["val"])


def _folder_listing(spec: ImagesSpec, root: Path, files: dict[str, list[Path]]) -> _Listing:
    labels = np.array([label for label, name in enumerate(spec.classes) for _ in files[name]], dtype=np.int64)
    paths = [path for name in spec.classes for path in files[name]]

    def load(rows: Int64) -> Uint8:
        images = np.empty((len(rows), spec.size, spec.size, spec.channels), np.uint8)
        bad: list[str] = []
        for place, image in enumerate(decoded([paths[row] for row in rows], spec, bad)):
            images[place] = image
        if bad:
            shown = "\n".join(f"    {line}" for line in bad[:20])
            raise StageError(
                f"{len(bad)} of {len(rows)} images cannot be decoded:\n{shown}",
                code="corrupt-image",
                where=str(root),
                fix="replace or remove these files",
            )
        return images

    return _Listing(labels, [str(path.relative_to(root)) for path in paths], load)


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
