"""A set as files: what lies where for torchvision, for Hugging Face's `datasets`, for webdataset; and tar files.

A layout takes an ImageSet and an empty folder and fills it; a card, labels, provenance and checksums come beside it. The bytes
of a tar file depend on names and contents alone: it holds no times, owners or modes of this machine.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddgd_ray.exporting.images import METADATA, ImageSet, SetImage

ROW_GROUP = 100  # images: what a reader decodes at once when it seeks
SHARD = 1000  # images


def fill_imagefolder(images: ImageSet, out: Path) -> None:
    """train/CLASS/00000.png, and train/metadata.jsonl, which `datasets` reads."""
    for image in images.images:
        path = out / "train" / images.name(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.content())
    _write_metadata(out / "train" / METADATA, images)


def fill_hf(images: ImageSet, out: Path) -> None:
    """data/train-00000-of-00001.parquet: the images' bytes, ClassLabels and the columns of metadata.jsonl."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features: dict[str, Any] = {
        name: {"dtype": "string", "_type": "Value"} for name in ("class", "file_name", "origin", "sha256")
    }
    features = {"image": {"_type": "Image"}, "label": {"names": list(images.classes), "_type": "ClassLabel"}} | features
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            *((name, pa.string()) for name in features if name not in ("image", "label")),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    (out / "data").mkdir()
    with pq.ParquetWriter(out / "data" / "train-00000-of-00001.parquet", schema, compression="none") as writer:
        for start in range(0, len(images.images), ROW_GROUP):
            lines = []
            for image in images.images[start : start + ROW_GROUP]:
                line = metadata_line(images, image)
                stored = {"bytes": image.content(), "path": line["file_name"].replace("/", "_")}
                lines.append(line | {"image": stored})
            writer.write_table(pa.Table.from_pylist(lines, schema=schema))
    _write_metadata(out / METADATA, images)


def fill_webdataset(images: ImageSet, out: Path) -> None:
    """train-000000.tar and on, SHARD images each: for every image KEY.png, KEY.cls and KEY.json.

    Classes are interleaved: a reader that does not shuffle sees all of them, and the first n samples are nearly balanced.
    """
    ordered = list(images.interleaved())
    for start in range(0, len(ordered), SHARD):
        with _archive(out / f"train-{start // SHARD:06d}.tar") as archive:
            for place, image in enumerate(ordered[start : start + SHARD], start=start):
                line = metadata_line(images, image)
                key = f"{place:08d}"
                _add_bytes(archive, f"{key}.cls", str(image.label).encode())
                _add_bytes(archive, f"{key}.json", json.dumps(line).encode())
                _add_bytes(archive, f"{key}{image.path.suffix.lower()}", image.content())
    _write_metadata(out / METADATA, images)


LAYOUTS: Mapping[str, Callable[[ImageSet, Path], None]] = {
    "imagefolder": fill_imagefolder,
    "hf": fill_hf,
    "webdataset": fill_webdataset,
}


def metadata_line(images: ImageSet, image: SetImage) -> dict[str, Any]:
    """The line of an image in metadata.jsonl."""
    return {
        "file_name": images.name(image),
        "label": image.label,
        "class": images.classes[image.label],
        "origin": image.origin,
        "sha256": image.sha256,
    }


def _write_metadata(path: Path, images: ImageSet) -> None:
    text = io.StringIO()
    for image in images.images:
        text.write(json.dumps(metadata_line(images, image)) + "\n")
    path.write_text(text.getvalue(), encoding="utf-8")


def pack(folder: Path, target: Path, top: str) -> None:
    """Write every file of `folder` into a new tar file as TOP/NAME, sorted by name."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    with _archive(target) as archive:
        for name, path in files:
            with path.open("rb") as file:
                archive.addfile(_entry(f"{top}/{name}", path.stat().st_size), file)


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        yield archive


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    archive.addfile(_entry(name, len(content)), io.BytesIO(content))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the owner's names are empty
    entry.size, entry.mode = size, 0o644
    return entry
