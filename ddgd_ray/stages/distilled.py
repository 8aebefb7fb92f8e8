"""A distilled set on disk: ImageFolder of PNGs with metadata.jsonl; written by sample and select, read by evaluate.

Shapes: N images, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.images import Split, Uint8


def write_set(folder: Path, spec: ImagesSpec, images: Uint8, labels: Sequence[int], origins: Sequence[str]) -> None:
    """images/CLASS/00000.png and so on, numbered in the order given; origins say where each image comes from."""
    counts = dict.fromkeys(spec.classes, 0)
    lines = []
    for image, label, origin in zip(images, labels, origins, strict=True):
        name = spec.classes[label]
        relative = f"images/{name}/{counts[name]:05d}.png"
        counts[name] += 1
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(-1) if spec.channels == 1 else image).save(path)
        lines.append(json.dumps({"file_name": relative, "label": int(label), "class": name, "origin": origin}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def read_set(folder: Path, spec: ImagesSpec, ipc: int) -> Split:
    """The first `ipc` images of each class, all with ipc = 0. Raises StageError when a class has too few or an image is bad."""
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
            try:
                with Image.open(path) as opened:
                    pixels = np.asarray(opened.convert("L" if spec.channels == 1 else "RGB"), dtype=np.uint8)
            except OSError as err:
                raise StageError(f"cannot be decoded: {err}", code="corrupt-image", where=str(path)) from err
            if pixels.shape[:2] != (spec.size, spec.size):
                raise StageError(
                    f"is {pixels.shape[1]} x {pixels.shape[0]}, expected {spec.size} x {spec.size}", where=str(path)
                )
            images.append(pixels.reshape(spec.size, spec.size, spec.channels))
            labels.append(label)
            names.append(f"{name}/{path.name}")
    return Split(np.stack(images), np.array(labels, dtype=np.int64), names)
