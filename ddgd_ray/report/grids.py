"""Pictures of sets: real images beside distilled ones, a row per class."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ddgd_ray.inputs.setfolder import class_folders, set_files
from ddgd_ray.report.compare import CEILING
from ddgd_ray.report.dd_ranking import RANDOM
from ddgd_ray.run.reading import Run
from ddgd_ray.storage.store import Store

PER_CLASS = 10
MAX_ARMS = 12
"""Arms with pictures unless all are asked for, controls among them."""
GAP = 2
LABEL_WIDTH = 84
HEADER = 16


def images_by_class(folder: Path, limit: int) -> dict[str, list[Path]]:
    if not (folder / "metadata.jsonl").is_file():  # a set that was made elsewhere
        names = class_folders(folder)
        return {name: [Path(path) for path in paths[:limit]] for name, paths in set_files(folder, names).items()}
    found: dict[str, list[Path]] = {}
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        entry = json.loads(line)
        paths = found.setdefault(entry["class"], [])
        if len(paths) < limit:
            paths.append(folder / entry["file_name"])
    return found


def draw_grid(columns: Mapping[str, Path], per_class: int = PER_CLASS, side: int = 40) -> Image.Image:
    """One row a class, one block of images for each set in {title: artifact folder}, titles above and class names left."""
    sets = {title: images_by_class(folder, per_class) for title, folder in columns.items()}
    classes = list(next(iter(sets.values())))
    step = side + GAP
    block = per_class * step + 4 * GAP
    canvas = Image.new("RGB", (LABEL_WIDTH + len(sets) * block, HEADER + len(classes) * step), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, images) in enumerate(sets.items()):
        left = LABEL_WIDTH + column * block
        draw.text((left, 2), title, fill="black")
        for row, name in enumerate(classes):
            top = HEADER + row * step
            draw.text((2, top + side // 3), name[:13], fill="black")
            for place, path in enumerate(images.get(name, [])):
                with Image.open(path) as opened:
                    tile = opened.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(tile, (left + place * step, top))
    return canvas


def set_folder(record: Mapping[str, Any], store: Store) -> Path | None:
    """The folder of the record's set, None while it is not published."""
    if not record["build"]:
        return Path(record["folder"])
    artifact = store.get(*record["build"][-1])
    return artifact.path if artifact is not None else None


def chosen_arms(run: Run, limit: int = MAX_ARMS) -> list[str]:
    """The arms that have pictures unless all are asked for: controls, and the best by the objective up to `limit`."""
    return [*run.ranked[: max(1, limit - len(run.controls))], *run.controls]


def write_grids(
    records: Sequence[Mapping[str, Any]], store: Store, out: Path, *, arms: Collection[str] | None = None
) -> list[Path]:
    """grid-ARM.png for the first seed of every arm, or of `arms`: real images (random_real) on the left if the run has them."""
    first: dict[str, Path] = {}
    titles: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        if record["arm"] in first or record["arm"] == CEILING or not (arms is None or record["arm"] in arms):
            continue
        folder = set_folder(record, store)
        if folder is not None:
            first[record["arm"]] = folder
            titles[record["arm"]] = record["arm"] if record["is_control"] else f"distilled: {record['arm']}"
    real = {"real": first.pop(RANDOM)} if RANDOM in first else {}
    written = []
    for arm, folder in first.items():
        path = out / f"grid-{arm}.png"
        draw_grid({**real, titles[arm]: folder}).save(path)
        written.append(path)
    return written
