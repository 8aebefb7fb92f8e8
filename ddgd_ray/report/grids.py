"""Pictures of sets: real images beside distilled ones, a row per class."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ddgd_ray.setfolder import class_folders, set_files
from ddgd_ray.store import Store

PER_CLASS = 10
GAP = 2
LABEL_WIDTH = 84
HEADER = 16


def _images_by_class(folder: Path, limit: int) -> dict[str, list[Path]]:
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
    sets = {title: _images_by_class(folder, per_class) for title, folder in columns.items()}
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


def write_grids(records: Sequence[Mapping[str, Any]], store: Store, out: Path) -> list[Path]:
    """grid-ARM.png for the first seed of every arm: real images (the random_real control) on the left when the run has them."""
    first: dict[str, Path] = {}
    titles: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        folder = set_folder(record, store)
        if folder is not None and record["arm"] != "full_data":
            first.setdefault(record["arm"], folder)
            titles[record["arm"]] = record["arm"] if record["is_control"] else f"distilled: {record['arm']}"
    real = {"real": first.pop("random_real")} if "random_real" in first else {}
    written = []
    for arm, folder in first.items():
        path = out / f"grid-{arm}.png"
        draw_grid({**real, titles[arm]: folder}).save(path)
        written.append(path)
    return written
