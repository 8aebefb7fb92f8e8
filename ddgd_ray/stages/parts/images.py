"""Real images for the stages: uint8 arrays, decoded in parallel, the same for every source.

Shapes: N images, B batch, S side in pixels, C channels; images are (N, S, S, C) uint8.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import index_classes
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.pictures import CorruptImage
from ddgd_ray.stages.parts.pictures import Uint8 as Uint8
from ddgd_ray.stages.parts.readers import Int64, Listing, list_source

SKIPPED = "skipped.jsonl"
PART = 16  # images a task of the pool decodes: enough that handing it over costs nothing, few enough to share a batch out


@dataclass(frozen=True)
class Skipped:
    """A file that could not be decoded: its row in the listing, its stable name, why, and where it lies on this machine."""

    row: int
    file: str
    reason: str
    path: str


@dataclass(frozen=True)
class ImageBatch:
    """Decoded images. images: (B, S, S, C) uint8. rows: (B,) of the listing. skipped: rows that cannot be decoded."""

    images: Uint8
    rows: Int64
    skipped: list[Skipped]


@dataclass(frozen=True)
class Split:
    """Labelled images.

    images: (N, S, S, C) uint8. labels: (N,) int64, places in `ImagesSpec.classes`. names: N stable names.
    """

    images: Uint8
    labels: Int64
    names: list[str]
    skipped: Sequence[Skipped] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Int64) -> "Split":
        return Split(self.images[rows], self.labels[rows], [self.names[row] for row in rows], self.skipped)


def list_splits(spec: ImagesSpec, root: Path, *wanted: str) -> list[Listing]:
    """The wanted listings: `train` (what may be distilled), `validation` (held out of the training images) and `test`.

    Validation is the last `validation_per_class` training images of each class, corrupt ones counted: which images are held
    out does not depend on which are skipped. Raises StageError when files are missing or a class has too few.
    """
    train, test = list_source(spec, root)
    is_held = np.zeros(len(train), dtype=bool)
    for label, name in enumerate(spec.classes):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) <= spec.validation_per_class:
            raise StageError(
                f"class {name} has {len(rows)} training images, needs more than validation_per_class = "
                f"{spec.validation_per_class}",
                where=str(root),
                fix="lower images.validation_per_class or add images",
            )
        is_held[rows[len(rows) - spec.validation_per_class :]] = True
    rows_of = {
        "train": (train, np.flatnonzero(~is_held)),
        "validation": (train, np.flatnonzero(is_held)),
        "test": (test, np.arange(len(test))),
    }
    return [listing.take(rows) for listing, rows in (rows_of[name] for name in wanted)]


def read_splits(spec: ImagesSpec, root: Path, *wanted: str, num_threads: int = 1) -> list[Split]:
    """The images of list_splits, decoded. Raises StageError for corrupt files, by the policy of spec.on_corrupt."""
    listings = list_splits(spec, root, *wanted)
    splits = [read_all(spec, listing, num_threads=num_threads) for listing in listings]
    check_skipped(spec, root, [one for split in splits for one in split.skipped], sum(map(len, listings)))
    for name, listing, split in zip(wanted, listings, splits, strict=True):
        check_classes(spec, root, name, listing.labels, split.labels)
    return splits


def read_all(spec: ImagesSpec, listing: Listing, *, num_threads: int) -> Split:
    """Every image of the listing that can be decoded."""
    (batch,) = stream(spec, listing, [np.arange(len(listing))], num_threads=num_threads, ahead=0)
    return Split(batch.images, listing.labels[batch.rows], [listing.names[row] for row in batch.rows], batch.skipped)


def joined(splits: Sequence[Split]) -> Split:
    """The splits as one, one after the other."""
    return Split(
        np.concatenate([split.images for split in splits]),
        np.concatenate([split.labels for split in splits]),
        [name for split in splits for name in split.names],
        [one for split in splits for one in split.skipped],
    )


def stream(
    spec: ImagesSpec, listing: Listing, blocks: Iterable[Int64], *, num_threads: int, ahead: int
) -> Iterator[ImageBatch]:
    """One batch for each block of rows, in order, decoded by num_threads threads; `ahead` batches before they are asked for.

    Threads, not processes: Pillow holds no lock while it decodes and resizes, and nothing has to be copied between them.
    """

    def decode(rows: Int64, target: Uint8) -> list[Skipped]:
        skipped = []
        for place, row in enumerate(rows):
            try:
                target[place] = listing.picture(int(row))
            except CorruptImage as err:
                skipped.append(Skipped(int(row), listing.names[row], err.what, err.where))
        return skipped

    waiting: deque[tuple[Int64, Uint8, list[Future[list[Skipped]]]]] = deque()
    with ThreadPoolExecutor(num_threads, "decode") as pool:
        try:
            for rows in blocks:
                images = np.empty((len(rows), spec.size, spec.size, spec.channels), np.uint8)
                parts = [slice(start, start + PART) for start in range(0, len(rows), PART)]
                waiting.append((rows, images, [pool.submit(decode, rows[part], images[part]) for part in parts]))
                if len(waiting) > ahead:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:  # whoever stops listening does not wait for what nobody asks for any more
            pool.shutdown(cancel_futures=True)


def _finished(rows: Int64, images: Uint8, parts: list[Future[list[Skipped]]]) -> ImageBatch:
    skipped = [one for part in parts for one in part.result()]
    if skipped:
        is_sound = ~np.isin(rows, [one.row for one in skipped])
        rows, images = rows[is_sound], images[is_sound]
    return ImageBatch(images, rows, skipped)


def within_limit(
    spec: ImagesSpec, root: Path, batches: Iterator[ImageBatch], known: Sequence[Skipped], num_read: int
) -> Iterator[ImageBatch]:
    """The batches. Raises StageError once more is skipped than `spec` allows. known: what was skipped before.

    Before the error is raised the rest is decoded too, so that the error names all corrupt files and not the first alone.
    """
    skipped = list(known)
    for batch in batches:
        skipped += batch.skipped
        if len(skipped) > _most(spec):
            skipped += [one for later in batches for one in later.skipped]
            check_skipped(spec, root, skipped, num_read)
        yield batch


def _most(spec: ImagesSpec) -> int:
    return spec.max_corrupt if spec.on_corrupt == "skip" else 0


def check_skipped(spec: ImagesSpec, root: Path, skipped: Sequence[Skipped], num_read: int) -> None:
    """Raises StageError, listing the skipped files, when they are more than `spec` allows."""
    most = _most(spec)
    if len(skipped) > most:
        allowed = f", images.max_corrupt allows {most}" if most else ""
        shown = "\n".join(f"    {one.path}: {one.reason}" for one in skipped[:20])
        raise StageError(
            f"{len(skipped)} of {num_read} images cannot be decoded{allowed}:\n{shown}",
            code="corrupt-image",
            where=str(root),
            fix="replace or remove these files"
            + (", or raise images.max_corrupt" if most else ", or set images.on_corrupt: skip"),
        )


def check_classes(spec: ImagesSpec, root: Path, split: str, listed: Int64, sound: Int64) -> None:
    """Raises StageError when a class had images but none of them could be decoded."""
    lost = [name for label, name in enumerate(spec.classes) if (listed == label).any() and not (sound == label).any()]
    if lost:
        raise StageError(
            f"no {split} image of {len(lost)} of {len(spec.classes)} classes can be decoded: {', '.join(lost[:10])}",
            code="corrupt-image",
            where=str(root),
            fix="replace the files of these classes",
        )


def record_skipped(out: Path, spec: ImagesSpec, skipped: Sequence[Skipped]) -> dict[str, float]:
    """The metric num_skipped, and skipped.jsonl (file, reason) written; neither where `spec` lets nothing be skipped."""
    if spec.on_corrupt == "fail":
        return {}
    lines = [json.dumps({"file": one.file, "reason": one.reason}) for one in skipped]
    (out / SKIPPED).write_text("".join(f"{line}\n" for line in lines))
    return {"num_skipped": float(len(skipped))}


def generator_labels(spec: ImagesSpec) -> list[int]:
    """The generative model's label of each class."""
    return list(range(len(spec.classes))) if spec.labels == "position" else index_classes(spec.classes)
