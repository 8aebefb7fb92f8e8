"""The files of a ready-made set, whoever made it: CLASS/*.png, images/CLASS/*.png or train/CLASS/*.png below its folder.

A class is known by its folder's name, or by what labels.json says of it: {"FOLDER": 0} or {"FOLDER": {"label": 0}}.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.imagefolder import IMAGE_SUFFIXES

LABELS = "labels.json"
BELOW = ("images", "train", "")


def set_files(root: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """{class: absolute paths, sorted by name}, in the order of `classes`. The first n of a class are its set of ipc n.

    Raises StageError that says what was found in place of what was expected: folders that are not these classes, classes
    without images, a label map that contradicts them.
    """
    base = _base(root)
    folders = _folders(base)
    folder_of = _by_label_map(root, base, folders, classes) or _by_name(base, folders, classes)
    files = {name: _images(base / folder_of[name]) for name in classes}
    empty = [folder_of[name] for name, paths in files.items() if not paths]
    if empty:
        raise _refuse(
            f"{len(empty)} of {len(classes)} classes have no images: {', '.join(empty[:10])}", base, "add their images"
        )
    return files


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, whatever they stand for. Raises StageError when there are none."""
    return _folders(_base(root))


def _base(root: Path) -> Path:
    """The folder that holds the class folders."""
    if not root.is_dir():
        kind = "is a file" if root.is_file() else "does not exist"
        raise _refuse(f"the set's folder {kind}", root, "give the folder that holds one folder a class")
    base = next(root / below for below in BELOW if not below or _folders(root / below))
    if not _folders(base):
        flat = "images lie there without class folders" if _images(base) else "there are no class folders"
        raise _refuse(flat, base, "make one folder a class, named as in images.classes")
    return base


def _by_name(base: Path, folders: list[str], classes: Sequence[str]) -> dict[str, str]:
    missing = [name for name in classes if name not in folders]
    unknown = [name for name in folders if name not in classes]
    if not missing and not unknown:
        return {name: name for name in classes}
    lines = [f"{len(folders)} class folders, expected the {len(classes)} classes of images.classes"]
    lines += [f"    missing here:  {', '.join(missing[:10])}"] if missing else []
    lines += [f"    not a class:   {', '.join(unknown[:10])}"] if unknown else []
    if len(folders) == len(classes) and all(name.isdecimal() for name in folders):
        fix = f'say which number is which class: write {LABELS}, {{"{folders[0]}": 0, ...}} by the order of images.classes'
    elif not missing:
        fix = "remove these folders, or set images.classes to all of them"
    else:
        fix = "rename the folders, set images.classes, or choose another --preset"
    raise _refuse("\n".join(lines), base, fix, code="label-map")


def _by_label_map(root: Path, base: Path, folders: list[str], classes: Sequence[str]) -> dict[str, str]:
    """{class: folder} by labels.json; {} when there is none."""
    path = next((place / LABELS for place in (root, base) if (place / LABELS).is_file()), None)
    if path is None:
        return {}
    try:
        found = {str(folder): _label(entry) for folder, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as err:
        raise _refuse('expected {"FOLDER": LABEL, ...}', path, "correct or remove this file", code="label-map") from err
    wrong = [f"{folder} is label {label}" for folder, label in found.items() if not 0 <= label < len(classes)]
    wrong += [f"{name} is label {found[name]}, images.classes has it at {label}"
              for label, name in enumerate(classes) if name in found and found[name] != label]  # fmt: skip
    wrong += [f"folder {folder} has no label" for folder in folders if folder not in found]
    wrong += [f"{folder} has no folder" for folder in found if folder not in folders]
    labels = list(found.values())
    wrong += [
        f"label {label} is given to {labels.count(label)} folders" for label in range(len(classes)) if labels.count(label) != 1
    ]
    if wrong:
        what = f"this label map does not fit the {len(classes)} classes of images.classes:\n" + "\n".join(
            f"    {line}" for line in wrong[:20]
        )
        raise _refuse(what, path, "correct the map, set images.classes, or choose another --preset", code="label-map")
    return {classes[label]: folder for folder, label in found.items()}


def _label(entry: Any) -> int:
    label = entry["label"] if isinstance(entry, Mapping) else entry
    if isinstance(label, bool) or not isinstance(label, int):
        raise TypeError(entry)
    return label


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_SUFFIXES))
    return [str(folder / name) for name in names if not name.startswith(".")]


def _refuse(what: str, where: Path, fix: str, code: str = "data-missing") -> StageError:
    return StageError(what, code=code, where=str(where), fix=fix)
