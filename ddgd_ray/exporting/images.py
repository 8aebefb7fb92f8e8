"""The images of a set as they are read for others: each checked against what was recorded of it, none by a link."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, SpecError, StageError
from ddgd_ray.exporting.choose import Choice
from ddgd_ray.inputs.fingerprints import set_source
from ddgd_ray.inputs.setfolder import set_files
from ddgd_ray.run.lineage import images_of
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Artifact

METADATA = "metadata.jsonl"
LABELS = "labels.json"
MAX_NAME = 80  # bytes; file systems take 255, and archives put folders before


@dataclass(frozen=True)
class SetImage:
    """One image of a set. sha256: of its file.

    index: its place in its class; the first n of each class are the set of n images a class.
    """

    path: Path
    label: int
    index: int
    origin: str
    sha256: str

    def content(self) -> bytes:
        """The bytes of the file. Raises ArtifactError when they are not those that were recorded."""
        try:
            content = self.path.read_bytes()
        except OSError as err:
            raise _damaged(self.path, f"cannot be read: {err.strerror}") from err
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise _damaged(self.path, "has another SHA-256 than when it was made")
        return content


@dataclass(frozen=True)
class ImageSet:
    """A set as it is exported. images: class by class in order of the labels, each in its order.

    folders: a safe name for each class, by label. about: for each class what labels.json of the set says beside the label, or
    nothing. artifact: None for a ready-made set.
    """

    classes: tuple[str, ...]
    folders: tuple[str, ...]
    images: tuple[SetImage, ...]
    about: tuple[Mapping[str, Any], ...]
    spec: ImagesSpec
    """The real images that the set stands for."""
    artifact: Artifact | None

    @property
    def per_class(self) -> int:
        """The number of images of the smallest class."""
        counts = Counter(image.label for image in self.images)
        return min(counts[label] for label in range(len(self.classes)))

    def interleaved(self) -> Iterator[SetImage]:
        """The images, first ones of every class before second ones: any prefix is nearly balanced."""
        return iter(sorted(self.images, key=lambda image: (image.index, image.label)))

    def name(self, image: SetImage) -> str:
        """The path FOLDER/00000.png of an image below the folder of all classes."""
        return f"{self.folders[image.label]}/{image.index:05d}{image.path.suffix.lower()}"


def read_images(choice: Choice, ipc: int = 0) -> ImageSet:
    """The set with the first `ipc` images of each class, with 0 all of them.

    Raises SpecError when a class has fewer, ArtifactError when a file is missing, a link, or not what was recorded.
    """
    found = _made_here(choice) if choice.trial.set is not None else _ready_made(choice)
    if ipc < 0 or ipc > found.per_class:
        raise SpecError(
            f"expected 1 to {found.per_class} images a class of {choice.name}, got {ipc}",
            code="out-of-range",
            where="--ipc",
            fix=f"use {found.per_class} or less, or leave it out: all images",
        )
    images = tuple(image for image in found.images if not ipc or image.index < ipc)
    return ImageSet(found.classes, found.folders, images, found.about, found.spec, found.artifact)


def _made_here(choice: Choice) -> ImageSet:
    artifact = choice.set
    assert artifact is not None, "choose() looks for it"
    compare_files(artifact, contents=False)
    spec, listed = images_of(artifact), artifact.files
    classes = spec.classes
    images, counts = [], [0] * len(classes)
    try:
        for line in _text(artifact, METADATA).splitlines():
            entry = json.loads(line)
            name, label = entry["file_name"], entry["label"]
            if not 0 <= label < len(classes) or entry["class"] != classes[label] or name not in listed:
                raise ValueError(name)
            path = _inside(artifact.path, name)
            images.append(SetImage(path, label, counts[label], str(entry["origin"]), listed[name]["sha256"]))
            counts[label] += 1
        about = json.loads(_text(artifact, LABELS))
        details = tuple(dict(about[name]) for name in classes)
    except (ValueError, KeyError, TypeError) as err:
        raise _damaged(artifact.path, f"{METADATA} or {LABELS} does not fit the set") from err
    images.sort(key=lambda image: (image.label, image.index))
    return ImageSet(classes, folder_names(classes), tuple(images), details, spec, artifact)


def _ready_made(choice: Choice) -> ImageSet:
    """The set of a folder from outside. Raises ArtifactError unless it still holds what was judged."""
    folder = Path(choice.trial.folder)
    judged = (choice.run.store.get(*one.ref) for one in choice.trial.evaluators)
    evaluator = next((artifact for artifact in judged if artifact is not None), None)
    if evaluator is None:
        raise StageError(
            f"the ready-made set {choice.name} has no result yet: nothing recorded says what it held",
            code="not-finished",
            where=str(choice.run.path),
            fix="run the evaluation again to continue it",
        )
    spec = images_of(evaluator)
    classes = spec.classes
    if set_source(folder, classes).fingerprint != evaluator.inputs["set"]:
        raise ArtifactError(
            "this ready-made set is not the one that was judged: its images have changed since",
            where=str(folder),
            fix="put the images back, or evaluate the changed set",
        )
    images = tuple(
        SetImage(Path(path), label, index, "", hashlib.sha256(Path(path).read_bytes()).hexdigest())
        for label, paths in enumerate(set_files(folder, classes).values())
        for index, path in enumerate(paths)
    )
    return ImageSet(classes, folder_names(classes), images, ({},) * len(classes), spec, None)


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A name for each class that is safe on any file system and in any archive, and differs from the others.

    The class's own name where that is so; separators, control characters and leading dots are replaced.
    """
    names: list[str] = []
    for label, name in enumerate(classes):
        clean = re.sub(r"[^\w.+() -]", "_", unicodedata.normalize("NFC", name)).lstrip(".- ").rstrip(". ")
        clean = clean.encode()[:MAX_NAME].decode(errors="ignore") or f"class_{label}"
        taken = {other.casefold() for other in names}
        names.append(f"{clean}_{label}" if clean.casefold() in taken else clean)
    assert len({name.casefold() for name in names}) == len(names)
    return tuple(names)


def _text(artifact: Artifact, name: str) -> str:
    return _inside(artifact.path, name).read_text()


def _inside(root: Path, name: str) -> Path:
    """A regular file below `root`. Raises ArtifactError for one that is reached by a link or by `..`."""
    path = root / name
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), name) or not path.is_file():
        raise _damaged(root, f"{name!r} is no plain file of this folder: a link, or elsewhere")
    return path


def _damaged(where: Path, what: str) -> ArtifactError:
    return ArtifactError(what, where=str(where), fix="delete this artifact's folder and run the sweep again: it is made anew")
