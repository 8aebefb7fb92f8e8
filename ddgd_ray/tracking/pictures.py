"""What a trial shows: its set, and what its memories held on the way."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ddgd_ray.errors import StageError
from ddgd_ray.report.grids import GAP, PER_CLASS, draw_grid, set_folder
from ddgd_ray.run.lineage import spec_of
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.spec.stages import FinetuneSpec
from ddgd_ray.storage.store import Artifact, Store
from ddgd_ray.tracking.names import step_of

MAX_CLASSES = 20
SIDE = 40


@dataclass(frozen=True)
class Picture:
    """One image of a series: shown under `name` at `step`."""

    image: Image.Image
    name: str
    step: int
    seconds: float


def trial_pictures(trial: TrialRecord, built: Sequence[Artifact], store: Store) -> Iterator[Picture]:
    """The set, and PNG files that the fine-tuning left under memory/. Raises StageError for a set that cannot be drawn.

    built: the artifacts of the trial's own model and set that are there.
    """
    folder = set_folder(trial, store)
    tuned = [artifact for artifact in built if artifact.stage == "finetune"]
    if folder is not None and folder.is_dir():  # one that was made elsewhere may be gone
        step = max((spec_of(artifact, FinetuneSpec).steps for artifact in tuned), default=0)
        try:
            image = draw_grid({trial.name: folder})
        except (OSError, ValueError) as err:
            raise StageError(f"its pictures cannot be drawn: {err}", where=str(folder), fix="repair the folder") from err
        yield Picture(image, "distilled", step, built[-1].created if built else trial.finished)
    for artifact in tuned:
        for file in sorted((artifact.path / "memory").rglob("*.png")):
            name, step = step_of(file.stem)
            with Image.open(file) as opened:
                place = file.relative_to(artifact.path).with_name(name)
                yield Picture(opened.convert("RGB"), place.as_posix(), step, artifact.created)


def portraits(store: Store) -> dict[str, Artifact]:
    """{key of a fine-tuning: what its memories held, decoded}; a report makes them."""
    found = (store.get("portray", key) for key in store.keys("portray"))
    return {artifact.inputs["adapter"]: artifact for artifact in found if artifact is not None}


def memory_pictures(portrait: Artifact) -> Iterator[Picture]:
    """A grid for each memory and step: a row for each of the first classes, its images from left to right."""
    grids: dict[tuple[str, int], list[list[Path]]] = {}
    for entry in json.loads((portrait.path / "index.json").read_text()):
        files = [portrait.path / name for name in entry["files"][:PER_CLASS]]
        grids.setdefault((entry["memory"], int(entry["step"])), []).append(files)
    for (memory, step), rows in sorted(grids.items()):
        rows = rows[:MAX_CLASSES]
        step_px = SIDE + GAP
        canvas = Image.new("RGB", (step_px * max(1, *map(len, rows)), step_px * len(rows)), "white")
        for top, files in enumerate(rows):
            for left, file in enumerate(files):
                with Image.open(file) as opened:
                    tile = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
                canvas.paste(tile, (left * step_px, top * step_px))
        yield Picture(canvas, f"memory/{memory}", step, portrait.created)
