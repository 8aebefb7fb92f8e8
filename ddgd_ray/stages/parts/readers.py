"""What each source of real images holds, before anything is decoded.

Shapes: N images, S side in pixels, C channels.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import FASHION_FILES, embedded_fashion
from ddgd_ray.inputs.imagefolder import image_files
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.pictures import Uint8, for_classifier, for_generator, open_picture

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Listing:
    """The images of one split, none of them decoded yet.

    labels: (N,) int64, places in `ImagesSpec.classes`. names: N stable names. picture(row): the image as the generator sees it,
    (S, S, C) uint8. original(row): the image before it is fitted to that size. Both functions may be called from several
    threads, and raise CorruptImage.
    """

    labels: Int64
    names: list[str]
    picture: Callable[[int], Uint8]
    original: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int64) -> "Listing":
        return Listing(
            self.labels[rows],
            [self.names[row] for row in rows],
            lambda place: self.picture(int(rows[place])),
            lambda place: self.original(int(rows[place])),
        )

    def for_classifier(self, resize: int, size: int) -> "Listing":
        """The same images as a classifier sees them: shorter side resized, central crop of `size`."""
        return replace(self, picture=lambda row: for_classifier(self.original(row), resize, size, self.names[row]))


def list_source(spec: ImagesSpec, root: Path) -> tuple[Listing, Listing]:
    """The listings of training and test images. Raises StageError when files are missing."""
    return _READERS[spec.source](spec, root)


def _fashion(spec: ImagesSpec, root: Path) -> tuple[Listing, Listing]:
    with np.load(embedded_fashion()) as archive:
        return _grey_listing("train", archive["train_images"], archive["train_labels"], spec), _grey_listing(
            "test", archive["test_images"], archive["test_labels"], spec
        )


def _fashion_full(spec: ImagesSpec, root: Path) -> tuple[Listing, Listing]:
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


def _digits(spec: ImagesSpec, root: Path) -> tuple[Listing, Listing]:
    """The listings of scikit-learn's 8 x 8 digits, a set without a split: every fifth image of a class is a test image."""
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


def _grey_listing(split: str, images: Uint8, labels: NDArray[np.integer], spec: ImagesSpec) -> Listing:
    """A listing of grey images, centred on a black square of spec.size and repeated to spec.channels."""
    side = images.shape[1]
    before, odd = divmod(spec.size - side, 2)
    if before < 0:
        raise StageError(f"images are {side} px, more than images.size = {spec.size}", fix=f"set images.size to {side} or more")
    names = [f"{split}-{row:05d}" for row in range(len(labels))]

    def picture(row: int) -> Uint8:
        padded = np.pad(images[row], (before, before + odd))[..., None]
        return np.repeat(padded, spec.channels, axis=2)

    return Listing(labels.astype(np.int64), names, picture, lambda row: Image.fromarray(picture(row).squeeze()))


def _imagefolder(spec: ImagesSpec, root: Path) -> tuple[Listing, Listing]:
    files = image_files(spec, root)
    return _folder_listing(spec, files.names("train"), files.train), _folder_listing(spec, files.names("val"), files.val)


def _folder_listing(spec: ImagesSpec, names: list[str], files: Mapping[str, list[str]]) -> Listing:
    labels = np.repeat(np.arange(len(spec.classes)), [len(files[name]) for name in spec.classes])
    paths = [path for name in spec.classes for path in files[name]]

    def original(row: int) -> Image.Image:
        return open_picture(paths[row], spec.channels)

    return Listing(labels, names, lambda row: for_generator(original(row), spec, paths[row]), original)


_READERS = {"fashion": _fashion, "fashion-full": _fashion_full, "digits": _digits, "imagefolder": _imagefolder}
