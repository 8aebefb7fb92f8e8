"""The files of a ready-made set, whoever made it: CLASS/*.png, images/CLASS/*.png or train/CLASS/*.png below its folder.

A class is known by its folder's name, or by what labels.json says of it: {"FOLDER": 0} or {"FOLDER": {"label": 0}}.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.class_files import SYSTEM_FOLDERS, LeftOut, images_below, own_images
from ddgd_ray.plain_files import is_folder, is_plain_name, read_json, read_text

LABELS = "labels.json"
METADATA = "metadata.jsonl"
BELOW = ("images", "train", "")


def set_files(root: Path, classes: Sequence[str], left_out: LeftOut | None = None) -> dict[str, list[str]]:
    """{class: absolute paths in their order}, in the order of `classes`. The first n of a class are its set of ipc n.

    left_out: gets what lies in the class folders and is not read. Raises StageError that says what was found in place of what
    was expected: folders that are not these classes, classes without images, a label map that contradicts them.
    """
    base = _base(root, classes)
    folders = _folders(base)
    folder_of = _by_label_map(root, base, folders, classes) or _by_name(base, folders, classes)
    outside = {name: LeftOut() for name in classes}
    files = {name: images_below(base / folder_of[name], outside[name]) for name in classes}
    empty = [f"{folder_of[name]}{f' ({outside[name]})' if outside[name] else ''}" for name, paths in files.items() if not paths]
    if empty:
        raise _refuse(
            f"{len(empty)} of {len(classes)} classes have no images: {', '.join(empty[:10])}", base, "add their images"
        )
    if left_out is not None:
        for one in outside.values():
            left_out.merge(one)
    return files


def class_folders(root: Path) -> list[str]:
    """Names of the class folders, whatever they stand for. Raises StageError when there are none."""
    return _folders(_base(root))


def written_metadata(root: Path) -> list[Mapping[str, Any]]:
    """The lines of the set's metadata.jsonl, one a file and each with its `file_name`; [] of a set without that file.

    Raises StageError for a file that holds something else.
    """
    path = root / METADATA
    if not os.path.lexists(path):
        return []
    try:
        lines = [json.loads(line) for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as err:
        reason = getattr(err, "strerror", None) or "a line is no JSON"
        raise _refuse(f"cannot be read: {reason}", path, "correct or remove this file", code="set-metadata") from err
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping) or not is_plain_name(line.get("file_name")):
            what = f'line {number}: expected {{"file_name": "CLASS/FILE", ...}}, a file below this folder'
            raise _refuse(what, path, "correct or remove this file", code="set-metadata")
    return lines


def written_sha256(root: Path) -> dict[str, str]:
    """{file name: SHA-256} by metadata.jsonl; sets of others, and early ones of ours, list none.

    Raises StageError for a line without a file, and as written_metadata does.
    """
    lines = written_metadata(root)
    for line in lines:
        if not (root / line["file_name"]).is_file():
            what = f"expected an image, as {METADATA} lists it; there is none"
            fix = f"put the image back, or remove {METADATA}; a set of ours is made again when it is deleted"
            raise _refuse(what, root / line["file_name"], fix, code="corrupt-image")
    return {line["file_name"]: str(line["sha256"]) for line in lines if "sha256" in line}


def _base(root: Path, classes: Sequence[str] = ()) -> Path:
    """The folder that holds the class folders. Raises StageError for none, and for folders that are nobody's class."""
    if not root.is_dir():
        kind = "is a file" if root.is_file() else "is no folder" if root.exists() else "does not exist"
        raise _refuse(f"the set's folder {kind}", root, "give the folder that holds one folder a class")
    are_here = bool(classes) and all((root / name).is_dir() for name in classes)  # a class may be called train
    base = root if are_here else next(root / below for below in BELOW if not below or _folders(root / below))
    if not _folders(base):
        flat = "images lie there without class folders" if own_images(base) else "there are no class folders"
        raise _refuse(flat, base, "make one folder a class, named as in images.classes")
    left = [name for name in _folders(base) if name in SYSTEM_FOLDERS and name not in classes]
    if left:
        fix = f"remove it: rm -r {' '.join(shlex.quote(str(base / name)) for name in left)}"
        raise _refuse(f"{', '.join(left)} is what an archive or a system left, and no class", base, fix)
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
    """{class: folder} by labels.json; {} of a set without that file."""
    path = next((place / LABELS for place in (root, base) if os.path.lexists(place / LABELS)), None)
    if path is None:
        return {}
    try:
        found = {str(folder): _label(entry) for folder, entry in read_json(path).items()}
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
    return sorted(entry.name for entry in os.scandir(folder) if is_folder(entry) and not entry.name.startswith("."))


def _refuse(what: str, where: Path, fix: str, code: str = "data-missing") -> StageError:
    return StageError(what, code=code, where=str(where), fix=fix)
