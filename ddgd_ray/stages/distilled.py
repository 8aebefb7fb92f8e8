"""A distilled set on disk, written by sample and select, read by evaluate, torchvision's ImageFolder and `datasets`.

images/CLASS/00000.png and so on; metadata.jsonl, one line an image; labels.json, one entry a class.
Shapes: N images, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ddgd_ray.errors import StageError
from ddgd_ray.sources import synset_name
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.images import Split, Uint8, generator_labels
from ddgd_ray.stages.png_folder import PngFolder

METADATA = "metadata.jsonl"
LABELS = "labels.json"


def image_name(spec: ImagesSpec, label: int, index: int) -> str:
    return f"images/{spec.classes[label]}/{index:05d}.png"


def write_set(folder: Path, spec: ImagesSpec, images: Uint8, labels: Sequence[int], origins: Sequence[str]) -> None:
    """Each class is numbered in the order given; origins say where each image comes from."""
    counts = [0] * len(spec.classes)
    places = []
    for label in labels:
        places.append((label, counts[label]))
        counts[label] += 1
    with TemporaryDirectory(dir=folder) as beside, PngFolder(Path(beside)) as pngs:
        pngs.put({image_name(spec, *place): image for place, image in zip(places, images, strict=True)})
        sha256 = pngs.finish(folder)
    describe(folder, spec, dict(zip(places, origins, strict=True)), sha256)


def describe(folder: Path, spec: ImagesSpec, origins: Mapping[tuple[int, int], str], sha256: Mapping[str, str]) -> None:
    """metadata.jsonl and labels.json. origins: by (label, index), in the order of the lines. sha256: by file name."""
    lines = []
    for (label, index), origin in origins.items():
        name = image_name(spec, label, index)
        line = {"file_name": name, "label": int(label), "class": spec.classes[label], "origin": origin, "sha256": sha256[name]}
        lines.append(json.dumps(line))
    (folder / METADATA).write_text("\n".join(lines) + "\n")
    labels = {}
    for label, (name, known_as) in enumerate(zip(spec.classes, generator_labels(spec), strict=True)):
        readable = synset_name(name)
        labels[name] = {
            "label": label,
            "generator_label": known_as,
            "wordnet_id": name if readable else None,
            "name": readable,
        }
    (folder / LABELS).write_text(json.dumps(labels, indent=1) + "\n")


def read_set(folder: Path, spec: ImagesSpec, ipc: int) -> Split:
    """The first `ipc` images of each class, all with ipc = 0.

    Raises StageError when a class has too few, or a file is missing, cannot be decoded or is not the one that was written.
    """
    sha256 = _written_sha256(folder)
    images, labels, names = [], [], []
    for label, name in enumerate(spec.classes):
        paths = sorted((folder / "images" / name).glob("*.png"))
        if len(paths) < max(ipc, 1):
            raise StageError(
                f"class {name} has {len(paths)} images, {max(ipc, 1)} are needed",
                where=str(folder),
                fix="lower evaluate.ipc",
            )
        for path in paths[:ipc] if ipc else paths:
            images.append(_read_image(path, spec, sha256.get(str(path.relative_to(folder)))))
            labels.append(label)
            names.append(f"{name}/{path.name}")
    return Split(np.stack(images), np.array(labels, dtype=np.int64), names)


def _written_sha256(folder: Path) -> dict[str, str]:
    """By file name, from metadata.jsonl; sets written before it listed them have none. Every listed file must be there."""
    path = folder / METADATA
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for line in lines:
        if not (folder / line["file_name"]).is_file():
            raise StageError(
                f"expected an image, as {METADATA} lists it; there is none",
                code="corrupt-image",
                where=str(folder / line["file_name"]),
                fix="delete the set; it is made again",
            )
    return {line["file_name"]: line["sha256"] for line in lines if "sha256" in line}


def _read_image(path: Path, spec: ImagesSpec, sha256: str | None) -> Uint8:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise StageError(
            f"expected SHA-256 {sha256[:12]}, as {METADATA} lists it, got {found[:12]}",
            code="corrupt-image",
            where=str(path),
            fix="delete the set; it is made again",
        )
    try:
        with Image.open(io.BytesIO(content)) as opened:
            pixels = np.asarray(opened.convert("L" if spec.channels == 1 else "RGB"), dtype=np.uint8)
    except OSError as err:
        raise StageError(f"cannot be decoded: {err}", code="corrupt-image", where=str(path)) from err
    if pixels.shape[:2] != (spec.size, spec.size):
        raise StageError(f"is {pixels.shape[1]} x {pixels.shape[0]}, expected {spec.size} x {spec.size}", where=str(path))
    return pixels.reshape(spec.size, spec.size, spec.channels)
