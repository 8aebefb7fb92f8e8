"""The training and test images of each class of an image folder, in three layouts told apart by what is there.

The same files give the same answer in any layout: a file's class is its folder's name or what LOC_val_solution.csv says, its
stable name is SPLIT/CLASS/FILE, with the folders below the class folder in FILE. Broken links count, as corrupt images.
"""

import csv
import functools
import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.class_files import LeftOut, images_below, own_images
from ddgd_ray.plain_files import is_folder
from ddgd_ray.spec.stages import ImagesSpec

SOLUTION = "LOC_val_solution.csv"
LAYOUTS = f"""expected one of
    ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg (or validation/, or test/)
    ROOT/ILSVRC/Data/CLS-LOC/train/CLASS/*.JPEG and ROOT/ILSVRC/Data/CLS-LOC/val/*.JPEG and ROOT/{SOLUTION}
    ROOT/CLASS/*.jpg, with images.test_per_class"""
BELOW = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where train/ may lie below the root
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "validation", "valid", "test", "testing")  # in any case; earlier ones go first
TWINS = 3  # of these only one can hold the test images; test beside one of them has the labels of nobody
PerClass = Mapping[str, list[str]]


@dataclass(frozen=True)
class ImageFiles:
    """{class: absolute paths, in the order of their names} of each split, classes in the order of `ImagesSpec.classes`."""

    train: PerClass
    val: PerClass
    folders: Mapping[str, Path]
    """{split: the folder of its class folders}."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """What lies in the class folders and is not read."""

    def names(self, split: str) -> list[str]:
        """The stable names SPLIT/CLASS/FILE of a split, `train` or `val`, class by class."""
        per_class = self.train if split == "train" else self.val
        folder = self.folders[split]
        return [f"{split}/{name}/{_below(path, folder / name)}" for name, paths in per_class.items() for path in paths]

    def named(self) -> list[tuple[str, str]]:
        """(stable name, path) of every file, training images first."""
        paths = [path for per_class in (self.train, self.val) for paths in per_class.values() for path in paths]
        return list(zip(self.names("train") + self.names("val"), paths, strict=True))


def _below(path: str, folder: Path) -> str:
    """A path relative to its class folder; the file's name where the images of all classes lie in one folder."""
    start = f"{folder}{os.sep}"
    return path.removeprefix(start) if path.startswith(start) else os.path.basename(path)


def image_files(spec: ImagesSpec, root: Path) -> ImageFiles:
    """The files of a data set. Raises StageError that says what was found in place of what was expected."""
    if not root.is_dir():
        kinds = {"is a file": root.is_file(), "is no folder": root.exists(), "is a broken link": root.is_symlink()}
        kind = next((kind for kind, holds in kinds.items() if holds), "does not exist")
        raise _missing(f"the images' folder {kind}", root)
    found = {root / below: named_folders(root / below, TRAIN_NAMES) for below in BELOW}
    bases = [(base, train) for base, trains in found.items() for train in trains if not _are_classes(spec, base, train)]
    if len(bases) > 1:
        raise _missing(f"images lie in several places: {' and '.join(str(base / train) for base, train in bases)}", root)
    if bases:
        return _split_folder(spec, root, *bases[0])
    if not any((root / name).is_dir() for name in spec.classes):
        raise _missing(f"there is no train folder and no class folder, {_found(root)}", root)
    return _sliced(spec, root)


def named_folders(base: Path, wanted: tuple[str, ...]) -> list[str]:
    """The names of folders in `base` that are one of the wanted names in any case, in the order of the wanted names."""
    try:
        names = [entry.name for entry in os.scandir(base) if is_folder(entry)]
    except OSError:
        return []
    return [name for one in wanted for name in sorted(names, reverse=True) if name.lower() == one]


def _are_classes(spec: ImagesSpec, base: Path, train: str) -> bool:
    """Whether `train` is no split but a class of that name, beside the other classes."""
    return train in spec.classes and not (base / train / train).is_dir() and all((base / n).is_dir() for n in spec.classes)


def _split_folder(spec: ImagesSpec, root: Path, base: Path, train: str) -> ImageFiles:
    """train/ beside val/, validation/ or test/; val/ may be flat, with its labels in LOC_val_solution.csv."""
    present = named_folders(base, TEST_NAMES)
    if not present:
        raise _missing(f"there is no {' or '.join(TEST_NAMES)} folder beside {train}, {_found(base)}", root)
    twins = [name for name in present if name.lower() in TEST_NAMES[:TWINS]]
    if len(twins) > 1:
        raise _missing(f"{' and '.join(twins)} are both there, and only one can hold the test images", base)
    if spec.test_per_class:
        raise StageError(
            f"images.test_per_class = {spec.test_per_class} is for folders without a split, and here is {present[0]}",
            code="data-missing",
            where=str(base),
            fix="leave out images.test_per_class",
        )
    test, left_out = base / present[0], LeftOut()  # ILSVRC has val and test: the labels of test are nobody's
    solution = None if any((test / name).is_dir() for name in spec.classes) else imagenet_solution(base)
    per_class = _flat(spec, test, solution) if solution else _per_class(spec, test, left_out)
    per_train = _per_class(spec, base / train, left_out)
    files = ImageFiles(per_train, per_class, {"train": base / train, "val": test}, left_out)
    _refuse_empty(spec, root, {base / train: files.train, test: files.val})
    return files


def _per_class(spec: ImagesSpec, folder: Path, left_out: LeftOut) -> PerClass:
    return {name: images_below(folder / name, left_out) for name in spec.classes}


def _sliced(spec: ImagesSpec, root: Path) -> ImageFiles:
    """The files of ROOT/CLASS. The test images of a class are the test_per_class files with the smallest SHA-256 of CLASS/FILE.

    So the test images do not depend on order or place, and files added later move few of them.
    """
    if not spec.test_per_class:
        beside = root.name.lower() in TRAIN_NAMES and named_folders(root.parent, TEST_NAMES)
        raise StageError(
            f"the class folders lie in no train folder, and how many images of each are for testing is not said; {LAYOUTS}",
            code="data-missing",
            where=str(root),
            fix=f"--set {shlex.quote(f'images.root={root.parent}')}"
            if beside
            else "--set images.test_per_class=50, or another number",
        )
    left_out = LeftOut()
    every = _per_class(spec, root, left_out)
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

    def rank(name: str, path: str) -> str:
        return hashlib.sha256(os.fsencode(f"{name}/{_below(path, root / name)}")).hexdigest()

    tests = {
        name: set(sorted(paths, key=functools.partial(rank, name))[: spec.test_per_class]) for name, paths in every.items()
    }
    return ImageFiles(
        {name: [path for path in paths if path not in tests[name]] for name, paths in every.items()},
        {name: [path for path in paths if path in tests[name]] for name, paths in every.items()},
        {"train": root, "val": root},
        left_out,
    )


def imagenet_solution(base: Path) -> Path | None:
    """The table of the validation labels as Kaggle has it: beside ILSVRC/, or anywhere between that and val/."""
    return next((folder / SOLUTION for folder in (base, *base.parents[:3]) if (folder / SOLUTION).is_file()), None)


def _flat(spec: ImagesSpec, folder: Path, solution: Path) -> PerClass:
    """The images of a folder without class folders, by the first WordNet id of their line (ImageId,PredictionString)."""
    paths = {os.path.splitext(os.path.basename(path))[0]: path for path in own_images(folder)}
    per_class: dict[str, list[str]] = {name: [] for name in spec.classes}
    missing = []
    try:
        with solution.open(newline="", encoding="utf-8-sig") as file:
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


def _refuse_empty(spec: ImagesSpec, root: Path, found: Mapping[Path, PerClass]) -> None:
    """Raises StageError that counts and names the classes without images, of all folders at once."""
    lines = []
    bad: list[Path] = []
    for folder, per_class in found.items():
        empty = [f"{name} ({_why_empty(folder / name)})" for name, paths in per_class.items() if not paths]
        if empty:
            bad.append(folder)
            flat = "images lie there without class folders; " if own_images(folder) else ""
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
    """What a class folder without images is, and what lies in it."""
    if folder.is_dir():
        images_below(folder, left_out := LeftOut())
        return f"no image that is read: {left_out}" if left_out else "empty folder"
    return "broken link" if folder.is_symlink() else "no folder"


def _found(folder: Path) -> str:
    """The words for what lies in a folder."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
    folders = [entry.name for entry in entries if is_folder(entry)]
    shown = ", ".join(folders[:10]) + (f" and {len(folders) - 10} more" if len(folders) > 10 else "")
    return f"found {len(folders)} folders ({shown or 'none'}) and {len(entries) - len(folders)} files"


def _missing(what: str, where: Path) -> StageError:
    return StageError(f"{what}; {LAYOUTS}", code="data-missing", where=str(where), fix="--set images.root=/path/to/folder")
