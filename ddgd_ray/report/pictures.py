"""Pictures for the page, as data URIs: sets side by side, each image beside its nearest real ones, memories."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ddgd_ray.report.dd_ranking import RANDOM
from ddgd_ray.report.grids import chosen_arms, images_by_class, set_folder
from ddgd_ray.report.memories import portrait_of
from ddgd_ray.report.published import image_of, json_of
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import CEILING

PER_CLASS = 5
MAX_CLASSES = 20
MAX_PIXELS = 1_500_000
"""Pixels of all pictures of one table; their side shrinks to fit."""
LEAST_SIDE, MOST_SIDE = 24, 64
LEAST_SHOWN = 40


@dataclass(frozen=True)
class Strip:
    """Pictures in one PNG; width and height in pixels on the page."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class PictureTable:
    """A table of pictures. columns: titles of the sets; rows: class and a strip for each column, None without such an image."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Strip | None]]]
    note: str


def side_for(num_images: int, native: int) -> int:
    """The side in pixels at which so many pictures are kept. native: their own side."""
    fitting = int((MAX_PIXELS / max(1, num_images)) ** 0.5)
    return min(native, MOST_SIDE, max(LEAST_SIDE, fitting))


def strip(rows: Sequence[Sequence[Path]], side: int, alt: str) -> Strip:
    """One strip of the pictures in rows, a pixel apart; tiny ones are shown as a multiple of their pixels."""
    tiles = [[_tile(path, side) for path in row] for row in rows]
    is_grey = all(tile.mode == "L" for row in tiles for tile in row)
    size = (max(map(len, tiles)) * (side + 1) - 1, len(tiles) * (side + 1) - 1)
    canvas = Image.new("L" if is_grey else "RGB", size, 128 if is_grey else (128, 128, 128))
    for row, images in enumerate(tiles):
        for place, tile in enumerate(images):
            canvas.paste(tile, (place * (side + 1), row * (side + 1)))
    factor = max(1, LEAST_SHOWN // side)
    return Strip(data_uri(canvas), alt, size[0] * factor, size[1] * factor)


def _tile(path: Path, side: int) -> Image.Image:
    opened = image_of(path)
    image = opened.convert("L" if opened.mode in ("1", "L", "I", "I;16") else "RGB")
    if image.size == (side, side):
        return image
    resample = Image.Resampling.LANCZOS if min(image.size) > side else Image.Resampling.NEAREST
    return image.resize((side, side), resample)


def data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def native_side(sets: Mapping[str, Mapping[str, Sequence[Path]]]) -> int:
    first = next((path for images in sets.values() for paths in images.values() for path in paths), None)
    if first is None:
        return MOST_SIDE
    return max(image_of(first).size)


def set_pictures(run: Run, *, all_pictures: bool = False) -> PictureTable | None:
    """The sets side by side: real images, controls, arms, at one seed, so that images at one place came from the same noise."""
    arms = [arm for arm in chosen_arms(run) if arm != CEILING] if not all_pictures else [*run.ranked, *run.controls]
    trials = run.first_trials()
    controls = [arm for arm in run.controls if arm in arms and arm != RANDOM]
    order = [*([RANDOM] if RANDOM in arms else []), *controls, *(arm for arm in arms if arm in run.ranked)]
    sets = {}
    for arm in order:
        folder = set_folder(trials[arm], run.store) if arm in trials else None
        if folder is not None:
            sets[arm] = images_by_class(folder, PER_CLASS)
    if not sets:
        return None
    classes = list(dict.fromkeys(name for images in sets.values() for name in images))
    shown = classes[:MAX_CLASSES]
    side = side_for(len(sets) * len(shown) * PER_CLASS, native_side(sets))
    rows = []
    for name in shown:
        cells = []
        for arm, images in sets.items():
            paths = images.get(name, [])
            cells.append(strip([paths], side, f"{len(paths)} images of class {name}, {title_of(arm)}") if paths else None)
        rows.append((name, cells))
    seeds = sorted({trials[arm].seed for arm in sets})
    note = f"The first {PER_CLASS} images of each class, seed {', '.join(map(str, seeds))}."
    note += " Images at the same place of sampled sets came from the same noise."
    note += left_out(len(shown), len(classes), "classes") + left_out(
        len(sets), len(run.ranked) + len(run.controls), "sets", ALL
    )
    return PictureTable("Sets side by side", [title_of(arm) for arm in sets], rows, note)


ALL = "; all with --all-pictures"


def left_out(num_shown: int, num: int, what: str, how: str = "") -> str:
    return f" {num_shown} of {num} {what} are shown{how}." if num_shown < num else ""


def title_of(arm: str) -> str:
    return "real" if arm == RANDOM else arm


def memory_pictures(run: Run, arms: Sequence[str]) -> list[PictureTable]:
    """A table of what the memories held over the fine-tuning, for each arm that was portrayed."""
    tables = []
    for arm in arms:
        portrait = portrait_of(run, arm)
        if portrait is not None:
            tables.append(_memory_table(arm, portrait.path, json_of(portrait, "index.json")))
    return tables


def _memory_table(arm: str, folder: Path, index: Sequence[Mapping[str, Any]]) -> PictureTable:
    """The table of one arm. index: one entry a strip, with memory (real, gen), step, class, files."""
    columns = list(dict.fromkeys((entry["memory"], entry["step"]) for entry in index))
    classes = list(dict.fromkeys(entry["class"] for entry in index))
    at = {(entry["memory"], entry["step"], entry["class"]): [folder / name for name in entry["files"]] for entry in index}
    side = side_for(sum(map(len, at.values())), native_side({"": {str(place): paths for place, paths in at.items()}}))
    names = {"real": "real memory", "gen": "generated memory"}
    rows = []
    for name in classes:
        cells = []
        for memory, step in columns:
            paths = at.get((memory, step, name), [])
            alt = f"{len(paths)} rows of the {names[memory]} of class {name} after step {step}"
            cells.append(strip([paths], side, alt) if paths else None)
        rows.append((name, cells))
    titles = [f"{names[memory]}, step {step}" for memory, step in columns]
    note = "Latents in the memories of the first seed, decoded: a few rows from the oldest to the newest, after so many steps."
    return PictureTable(f"Memories of {arm}", titles, rows, note)
