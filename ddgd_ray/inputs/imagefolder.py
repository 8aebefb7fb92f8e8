"""Which files of an image folder are the training and test images of each class, in three layouts told apart by what is there.

The same files give the same answer in any layout: a file's class is its folder's name or what LOC_val_solution.csv says, its
stable name is SPLIT/CLASS/FILE. Hidden files and those without an image's suffix do not count; broken links do, as corrupt.
"""

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import ImagesSpec

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
SOLUTION = "LOC_val_solution.csv"
LAYOUTS = f"""expected one of
    ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg (or validation/, or test/)
    ROOT/ILSVRC/Data/CLS-LOC/train/CLASS/*.JPEG and ROOT/ILSVRC/Data/CLS-LOC/val/*.JPEG and ROOT/{SOLUTION}
    ROOT/CLASS/*.jpg, with images.test_per_class"""
BELOW = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where train/ may lie below the root
TEST_NAMES = ("val", "validation", "test")
PerClass = Mapping[str, list[str]]


@dataclass(frozen=True)
class ImageFiles:
    """{class: absolute paths, sorted by name} of each split, classes in the order of `ImagesSpec.classes`."""

    train: PerClass
    val: PerClass

    def named(self) -> list[tuple[str, str]]:
        """(stable name SPLIT/CLASS/FILE, path) of every file, training images first."""
        splits = {"train": self.train, "val": self.val}
        return [
            (f"{split}/{name}/{os.path.basename(path)}", path)
            for split, per_class in splits.items()
            for name, paths in per_class.items()
            for path in paths
        ]


def image_files(spec: ImagesSpec, root: Path) -> ImageFiles:
    """The files of a data set. Raises StageError that says what was found in place of what was expected."""
    if not root.is_dir():
        kind = "is a broken link" if root.is_symlink() else "is a file" if root.exists() else "does not exist"
        raise _missing(f"the images' folder {kind}", root)
    bases = [root / below for below in BELOW if (root / below / "train").is_dir()]
    if len(bases) > 1:
        raise _missing(f"images lie in several places: {' and '.join(str(base / 'train') for base in bases)}", root)
    if bases:
        return _split_folder(spec, root, bases[0])
    if not any((root / name).is_dir() for name in spec.classes):
        raise _missing(f"there is no train folder and no class folder, {_found(root)}", root)
    return _sliced(spec, root)


def _split_folder(spec: ImagesSpec, root: Path, base: Path) -> ImageFiles:
    """train/ beside val/, validation/ or test/; val/ may be flat, with its labels in LOC_val_solution.csv."""
    present = [name for name in TEST_NAMES if (base / name).is_dir()]
    if not present:
        raise _missing(f"there is no {' or '.join(TEST_NAMES)} folder beside train, {_found(base)}", root)
    if "validation" in present and "val" in present:
        raise _missing("val and validation are both there, and only one can hold the test images", base)
    if spec.test_per_class:
        raise StageError(
            f"images.test_per_class = {spec.test_per_class} is for folders without a split, and here is {present[0]}",
            code="data-missing",
            where=str(base),
            fix="leave out images.test_per_class",
        )
    test = base / present[0]  # ILSVRC has val and test: the labels of test are nobody's
    solution = None if any((test / name).is_dir() for name in spec.classes) else imagenet_solution(base)
    per_class = _flat(spec, test, solution) if solution else {name: images_in(test / name) for name in spec.classes}
    files = ImageFiles({name: images_in(base / "train" / name) for name in spec.classes}, per_class)
    _refuse_empty(spec, root, {base / "train": files.train, test: files.val})
    return files


def _sliced(spec: ImagesSpec, root: Path) -> ImageFiles:
    """ROOT/CLASS: the test images of a class are the test_per_class files whose CLASS/FILE has the smallest SHA-256.

    So they do not depend on order or place, and files added later move few of them.
    """
    if not spec.test_per_class:
        beside = [name for name in TEST_NAMES if root.name == "train" and (root.parent / name).is_dir()]
        raise StageError(
            f"the class folders lie in no train folder, and how many images of each are for testing is not said; {LAYOUTS}",
            code="data-missing",
            where=str(root),
            fix=f"--set images.root={root.parent}" if beside else "--set images.test_per_class=50, or another number",
        )
    every = {name: images_in(root / name) for name in spec.classes}
    _refuse_empty(spec, root, {root: every})
    few = {name: len(paths) for name, paths in every.items() if len(paths) <= spec.test_per_class}
    if few:
        counts = ", ".join(f"{name} {count}" for name, count in list(few.items())[:10])
        raise StageError(
            f"{len(few)} of {len(every)} classes need more images than images.test_per_class = {spec.test_per_class}: {counts}",
            code="data-missing",
            where=str(root),
            fix="lower images.test_per_class or add images",
        )

    def rank(path: str) -> str:
        return hashlib.sha256(os.fsencode("/".join(path.split(os.sep)[-2:]))).hexdigest()

    tests = {name: set(sorted(paths, key=rank)[: spec.test_per_class]) for name, paths in every.items()}
    return ImageFiles(
        {name: [path for path in paths if path not in tests[name]] for name, paths in every.items()},
        {name: [path for path in paths if path in tests[name]] for name, paths in every.items()},
    )


def imagenet_solution(base: Path) -> Path | None:
    """Kaggle's table of the validation labels: beside ILSVRC/, or anywhere between it and val/."""
    return next((folder / SOLUTION for folder in (base, *base.parents[:3]) if (folder / SOLUTION).is_file()), None)


def _flat(spec: ImagesSpec, folder: Path, solution: Path) -> PerClass:
    """Images without class folders, by the first WordNet id in their line (ImageId,PredictionString) of the table."""
    paths = {os.path.splitext(os.path.basename(path))[0]: path for path in images_in(folder)}
    per_class: dict[str, list[str]] = {name: [] for name in spec.classes}
    missing = []
    try:
        with solution.open(newline="") as file:
            wanted = [
                (row["ImageId"], name)
                for row in csv.DictReader(file)
                if (name := row["PredictionString"].split(" ")[0]) in per_class
            ]
    except (OSError, KeyError, AttributeError, UnicodeDecodeError, csv.Error) as err:
        raise StageError(
            "expected a table with the columns ImageId,PredictionString",
            code="data-missing",
            where=str(solution),
            fix="unpack this file again",
        ) from err
    for image, name in sorted(wanted):
        if image in paths:
            per_class[name].append(paths[image])
        else:
            missing.append(image)
    if missing:
        raise StageError(
            f"{len(missing)} of {len(wanted)} images that {solution} lists for these classes are not there: "
            f"{', '.join(missing[:10])}",
            code="data-missing",
            where=str(folder),
            fix="unpack the data set again",
        )
    return per_class


def images_in(folder: Path) -> list[str]:
    """Sorted; a link whose target is gone is one of them."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.path
                for entry in entries
                if not entry.name.startswith(".")
                and entry.name.lower().endswith(IMAGE_SUFFIXES)
                and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)))
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise StageError(
            f"this folder cannot be read: {err.strerror}", code="data-missing", where=str(folder), fix="check its permissions"
        ) from err


def _refuse_empty(spec: ImagesSpec, root: Path, found: Mapping[Path, PerClass]) -> None:
    """Raises StageError that counts and names the classes without images, of all folders at once."""
    lines = []
    bad: list[Path] = []
    for folder, per_class in found.items():
        empty = [f"{name} ({_why_empty(folder / name)})" for name, paths in per_class.items() if not paths]
        if empty:
            bad.append(folder)
            flat = "images lie there without class folders; " if images_in(folder) else ""
            shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
            lines.append(f"{flat}{len(empty)} of {len(per_class)} classes have no images: {shown}; {_found(folder)}")
    if lines:
        named = lines if len(lines) == 1 else [f"{folder}: {line}" for folder, line in zip(bad, lines, strict=True)]
        raise StageError(
            ";\n    ".join(named) + f"; {LAYOUTS}",
            code="data-missing",
            where=str(bad[0] if len(bad) == 1 else root),
            fix=f"name the folders as in images.classes, or set images.classes; a flat val needs {SOLUTION}",
        )


def _why_empty(folder: Path) -> str:
    if folder.is_dir():
        return "empty folder"
    return "broken link" if folder.is_symlink() else "no folder"


def _found(folder: Path) -> str:
    """What lies there, for an error."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.is_dir()]
    shown = ", ".join(folders[:10]) + (f" and {len(folders) - 10} more" if len(folders) > 10 else "")
    return f"found {len(folders)} folders ({shown or 'none'}) and {len(entries) - len(folders)} files"


def _missing(what: str, where: Path) -> StageError:
    return StageError(f"{what}; {LAYOUTS}", code="data-missing", where=str(where), fix="--set images.root=/path/to/folder")
