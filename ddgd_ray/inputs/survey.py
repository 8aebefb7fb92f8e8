"""What lies in a folder of images that nobody has described yet: where its classes are, how many images, their size and colour.

Torch-free, and quick for a large folder: files are counted, and some of them are opened.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.class_files import SYSTEM_FOLDERS, LeftOut, images_below, own_images
from ddgd_ray.inputs.imagefolder import BELOW, LAYOUTS, TEST_NAMES, TRAIN_NAMES, image_files, imagenet_solution, named_folders
from ddgd_ray.plain_files import is_folder
from ddgd_ray.spec.stages import ImagesSpec

MAX_OPENED = 120
COLOUR_STEPS = 8
"""Levels by which the channels of a picture must differ somewhere to count as colour: JPEG colours grey by a few."""
FEWEST = 4
"""Images a class needs at least: one to test, one to validate, two to distill."""
MAX_DESCENT = 3


@dataclass(frozen=True)
class Survey:
    """root: what `images.root` should be. train, test: images a class, in label order. test is empty without a split.

    side: the median of the shorter sides of the images that were opened, in pixels; smallest_side: their least.
    unreadable: of `opened` images, those that cannot be decoded. left_out: folders without images.
    """

    root: Path
    train: Mapping[str, int]
    test: Mapping[str, int]
    test_folder: str
    side: int
    smallest_side: int
    channels: int
    opened: int
    unreadable: Sequence[str]
    left_out: Sequence[str]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.train)

    @property
    def fewest(self) -> int:
        """Images of the smallest class, those for testing not counted where they lie apart."""
        return min(self.train.values())

    @property
    def num_images(self) -> int:
        return sum(self.train.values()) + sum(self.test.values())


def survey(folder: Path) -> Survey:
    """What lies in a folder. Raises StageError where no class folders are, and one that names classes with too few images."""
    if not folder.is_dir():
        kind = "is a file" if folder.is_file() else "does not exist"
        raise StageError(f"the images' folder {kind}", code="data-missing", where=str(folder), fix="give a folder of images")
    root, base = _places(folder)
    train_base = base / named_folders(base, TRAIN_NAMES)[0] if base is not None else root
    folders = _subfolders(train_base)
    found = {name: images_below(train_base / name, LeftOut()) for name in folders}
    classes = tuple(name for name, paths in found.items() if paths)
    _refuse_few(train_base, {name: len(found[name]) for name in classes}, folders)
    tests: Mapping[str, Sequence[str]] = {}
    test_folder = next(iter(named_folders(base, TEST_NAMES)), "") if base is not None else ""
    if base is not None and test_folder and _is_labelled(base, test_folder):
        tests = image_files(ImagesSpec(source="imagefolder", classes=classes, size=8), root).val
    else:
        root, test_folder = train_base, ""  # the test images come out of the class folders
    sides, is_colour, unreadable, opened = _look([path for name in classes for path in found[name]])
    return Survey(
        root,
        {name: len(found[name]) for name in classes},
        {name: len(paths) for name, paths in tests.items()},
        test_folder,
        int(median(sides)),
        min(sides),
        3 if is_colour else 1,
        opened,
        unreadable,
        tuple(name for name in folders if name not in classes),
    )


def _places(folder: Path) -> tuple[Path, Path | None]:
    """The root, and what train/ lies in, if there is one. A folder that holds nothing but a folder is what unpacking left."""
    for _ in range(MAX_DESCENT):
        for below in BELOW:
            if named_folders(folder / below, TRAIN_NAMES):
                return folder, folder / below
        inner = _subfolders(folder)
        if len(inner) != 1 or own_images(folder / inner[0]):
            break
        folder = folder / inner[0]
    return folder, None


def _is_labelled(base: Path, test_folder: str) -> bool:
    """Whether the test images' classes are known: ILSVRC's `test` lies flat, and its labels are nobody's."""
    return bool(_subfolders(base / test_folder)) or imagenet_solution(base) is not None


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder that may be classes, sorted."""
    names = (entry.name for entry in os.scandir(folder) if is_folder(entry))
    return sorted(name for name in names if not name.startswith(".") and name not in SYSTEM_FOLDERS)


def _refuse_few(base: Path, counts: Mapping[str, int], folders: Sequence[str]) -> None:
    if len(counts) < 2:
        flat = len(own_images(base))
        lies = (
            f"{flat} images lie there without class folders" if flat else f"{len(counts)} of {len(folders)} folders hold images"
        )
        what = f"expected two folders with images or more, one a class, and {lies}; {LAYOUTS}"
        raise StageError(what, code="data-missing", where=str(base), fix="make one folder a class and put its images there")
    few = [f"{name} {count}" for name, count in counts.items() if count < FEWEST]
    if few:
        shown = ", ".join(few[:10])
        what = f"{len(few)} of {len(counts)} classes have fewer than {FEWEST} images: {shown}"
        raise StageError(what, code="data-missing", where=str(base), fix="add images, or move these folders elsewhere")


def _look(paths: Sequence[str]) -> tuple[list[int], bool, list[str], int]:
    """Shorter sides, whether any picture has colours, and what cannot be decoded, of some images spread over all."""
    step = max(1, len(paths) // MAX_OPENED)
    some = paths[::step][:MAX_OPENED]
    sides: list[int] = []
    unreadable: list[str] = []
    is_colour = False
    for path, opened in _opened(some):
        if opened is None:
            unreadable.append(path)
            continue
        side, has_colour = opened
        sides.append(side)
        is_colour = is_colour or has_colour
    if not sides:
        what = f"none of {len(some)} images that were opened can be decoded, e.g. {some[0]}"
        raise StageError(what, code="corrupt-image", where=str(Path(some[0]).parent), fix="are these images? copy them again")
    return sides, is_colour, unreadable, len(some)


def _opened(paths: Sequence[str]) -> Iterator[tuple[str, tuple[int, bool] | None]]:
    for path in paths:
        try:
            with Image.open(path) as picture:
                side = min(picture.size)
                picture.draft("RGB", (64, 64))  # a JPEG decodes at an eighth of its size at least
                small = np.asarray(picture.convert("RGB").resize((32, 32)), np.int16)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
            yield path, None
            continue
        yield path, (side, int(np.ptp(small, axis=2).max()) > COLOUR_STEPS)
