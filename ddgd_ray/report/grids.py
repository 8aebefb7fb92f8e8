"""Pictures of sets: real images beside distilled ones, a row per class."""

from collections.abc import Collection, Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from ddgd_ray.inputs.setfolder import class_folders, set_files
from ddgd_ray.report.dd_ranking import RANDOM
from ddgd_ray.report.published import entries_of_set, image_of
from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import CEILING
from ddgd_ray.storage.store import Store

PER_CLASS = 10
MAX_ARMS = 12
"""Arms with pictures unless all are asked for, controls among them."""
GAP = 2
LABEL_WIDTH = 84
HEADER = 16


def images_by_class(folder: Path, limit: int) -> dict[str, list[Path]]:
    """{class: its first `limit` images} of a set of ours, or of one that was made elsewhere."""
    if not (folder / "metadata.jsonl").is_file():  # a set that was made elsewhere
        names = class_folders(folder)
        return {name: [Path(path) for path in paths[:limit]] for name, paths in set_files(folder, names).items()}
    found: dict[str, list[Path]] = {}
    for entry in entries_of_set(folder):
        paths = found.setdefault(entry["class"], [])
        if len(paths) < limit:
            paths.append(folder / entry["file_name"])
    return found


def draw_grid(columns: Mapping[str, Path], per_class: int = PER_CLASS, side: int = 40) -> Image.Image:
    """One picture with a row a class and a block of images a set. columns: {title: folder of the set}; side: in pixels."""
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
                tile = image_of(path).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(tile, (left + place * step, top))
    return canvas


def set_folder(trial: TrialRecord, store: Store) -> Path | None:
    """The folder of the trial's set; None while it is not published, and of a trial without one."""
    if trial.set is None:
        return Path(trial.folder) if trial.folder else None
    artifact = store.get(*trial.set)
    return artifact.path if artifact is not None else None


def chosen_arms(run: Run, limit: int = MAX_ARMS) -> list[str]:
    """The arms that have pictures unless all are asked for: controls, and the best by the objective up to `limit`."""
    return [*run.ranked[: max(1, limit - len(run.controls))], *run.controls]


def write_grids(run: Run, out: Path, *, arms: Collection[str] | None = None) -> list[Path]:
    """The paths of grid-ARM.png for the first seed of every arm, or of `arms`; random real images, if any, are on the left."""
    first: dict[str, Path] = {}
    titles: dict[str, str] = {}
    for trial in sorted(run.trials, key=lambda trial: trial.seed):
        if trial.arm in first or trial.arm == CEILING or not (arms is None or trial.arm in arms):
            continue
        folder = set_folder(trial, run.store)
        if folder is not None:
            first[trial.arm] = folder
            titles[trial.arm] = trial.arm if trial.is_control else f"distilled: {trial.arm}"
    real = {"real": first.pop(RANDOM)} if RANDOM in first else {}
    written = []
    for arm, folder in first.items():
        path = out / f"grid-{arm}.png"
        draw_grid({**real, titles[arm]: folder}).save(path)
        written.append(path)
    return written
