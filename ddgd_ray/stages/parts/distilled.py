"""A distilled set on disk, written by sample and select, read by evaluate, torchvision's ImageFolder and `datasets`.

images/CLASS/00000.png and so on; metadata.jsonl, one line an image; labels.json, one entry a class.
Shapes: N images, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import synset_name
from ddgd_ray.inputs.setfolder import LABELS, METADATA, set_files, written_metadata, written_sha256
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.images import Split, Uint8, generator_labels
from ddgd_ray.stages.parts.pictures import for_classifier, open_picture
from ddgd_ray.stages.parts.png_folder import PngFolder
from ddgd_ray.storage.store import file_sha256


def image_name(spec: ImagesSpec, label: int, index: int) -> str:
    return f"images/{spec.classes[label]}/{index:05d}.png"


def write_set(folder: Path, spec: ImagesSpec, images: Uint8, labels: Sequence[int], origins: Sequence[str]) -> None:
    """Writes a set. The images of a class are numbered in the order given; origins say where each image comes from."""
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
    """Writes metadata.jsonl and labels.json. origins: by (label, index), in the order of the lines. sha256: by file name."""
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


def read_set(folder: Path, spec: ImagesSpec, ipc: int, *, size: int = 0, num_threads: int = 1) -> Split:
    """The first `ipc` images of each class, all with ipc = 0, as a classifier at `size` sees them (0: spec.size).

    The folder may be any folder of class folders (inputs/setfolder.py). Raises StageError when a class has too few, and one
    that lists the files that are missing, cannot be decoded or are not the ones that were written.
    """
    files = set_files(folder, spec.classes)
    few = {name: len(paths) for name, paths in files.items() if len(paths) < ipc}
    if few:
        raise StageError(
            f"ipc {ipc} is more than the images of {len(few)} of {len(files)} classes: "
            + ", ".join(f"{name} has {count}" for name, count in list(few.items())[:10]),
            where=str(folder),
            fix=f"use ipc {min(few.values())} or less",
        )
    chosen = {name: paths[:ipc] if ipc else paths for name, paths in files.items()}
    sha256 = written_sha256(folder)
    paths = [path for per_class in chosen.values() for path in per_class]
    side = size or spec.size

    def read(path: str) -> Uint8 | StageError:
        try:
            expected = sha256.get(os.path.relpath(path, folder))
            found = file_sha256(Path(path)) if expected else ""
            if expected and found != expected:
                what = f"expected SHA-256 {expected[:12]}, as {METADATA} lists it, got {found[:12]}"
                return StageError(what, where=path, fix="put the image back")
            return for_classifier(open_picture(path, spec.channels), side, side, path)
        except StageError as err:
            return err

    with ThreadPoolExecutor(num_threads, "decode") as pool:
        found = list(pool.map(read, paths))
    bad = [one for one in found if isinstance(one, StageError)]
    if bad:
        raise StageError(
            f"{len(bad)} of {len(paths)} images of the set cannot be used:\n"
            + "\n".join(f"    {one.where}: {one.what}" for one in bad[:20]),
            code="corrupt-image",
            where=str(folder),
            fix="delete the set; it is made again" if sha256 else "replace or remove these files",
        )
    labels = np.repeat(np.arange(len(chosen)), [len(per_class) for per_class in chosen.values()])
    names = [f"{name}/{os.path.basename(path)}" for name, per_class in chosen.items() for path in per_class]
    return Split(np.stack([one for one in found if not isinstance(one, StageError)]), labels.astype(np.int64), names)


def origins(folder: Path) -> dict[str, str]:
    """The origin of each image by CLASS/FILE, as metadata.jsonl says."""
    return {line["file_name"].partition("/")[2]: line["origin"] for line in written_metadata(folder)}
