"""Files of artifacts as a report reads them: compared with what was published first, so that damage is named, never shown."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ddgd_ray.errors import ArtifactError, DamagedArtifact
from ddgd_ray.plain_files import read_text, regular
from ddgd_ray.storage.manifest import REMAKE, Artifact
from ddgd_ray.storage.soundness import checked_file

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are no images, or cut ones."""


def json_of(artifact: Artifact, name: str) -> Any:
    """What a JSON file of an artifact holds; None where nothing of that name was published. Raises DamagedArtifact."""
    path = checked_file(artifact, name)
    return None if path is None else _parsed(path, artifact.folder)[0]


def points_of(artifact: Artifact, name: str = "curves.jsonl") -> list[Mapping[str, float]]:
    """The lines of a curve; none where nothing of that name was published. Raises DamagedArtifact."""
    path = checked_file(artifact, name)
    return [] if path is None else _parsed(path, artifact.folder, by_line=True)


def array_of(artifact: Artifact, name: str) -> Any:
    """The numpy array of a file of an artifact. Raises DamagedArtifact."""
    import numpy as np

    path = checked_file(artifact, name)
    if path is None:
        raise DamagedArtifact(f"{name} was not published with it", where=str(artifact.folder), fix=REMAKE)
    return np.load(path)


def entries_of_set(folder: Path) -> list[Mapping[str, Any]]:
    """The lines of a set's metadata.jsonl, an image each, with at least `class` and `file_name`. Raises DamagedArtifact."""
    path = folder / "metadata.jsonl"
    entries = _parsed(path, folder, by_line=True)
    if not all(isinstance(entry, dict) and {"class", "file_name"} <= entry.keys() for entry in entries):
        raise DamagedArtifact(f"{path.name} cannot be read: a line names no class or no file", where=str(folder), fix=REMAKE)
    return entries


def _parsed(path: Path, folder: Path, *, by_line: bool = False) -> list[Any]:
    """The values of the file's lines, or of the file as one."""
    try:
        text = read_text(path)
        return [json.loads(line) for line in (text.splitlines() if by_line else [text])]
    except (OSError, ValueError, RecursionError) as err:
        what = f"{path.relative_to(folder)} cannot be read: {err}"
        raise DamagedArtifact(what, where=str(folder), fix=REMAKE) from err


def image_of(path: Path) -> Image.Image:
    """The decoded image of a file. Raises ArtifactError for one that is no image, or is cut."""
    try:
        regular(path)
        with Image.open(path) as opened:
            opened.load()
            return opened.copy()
    except UNREADABLE as err:
        fix = "put the image back, or run the sweep again: it makes the set anew"
        raise ArtifactError(f"cannot be read as an image: {err}", code="damaged", where=str(path), fix=fix) from err
