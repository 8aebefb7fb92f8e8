"""Each distilled image above the real training image nearest to it: copies would be seen at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ddgd_ray.report.dd_ranking import RANDOM
from ddgd_ray.report.grids import images_by_class, set_folder
from ddgd_ray.report.pictures import MAX_CLASSES, PictureTable, left_out, native_side, side_for, strip
from ddgd_ray.report.published import array_of, image_of, json_of
from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import CEILING
from ddgd_ray.storage.store import Artifact

PER_CLASS = 5
MAX_CANDIDATES = 2000
"""Real images that pixels are compared with."""
COMPARED_SIDE = 32

Pairs = Mapping[str, Sequence[tuple[Path, Path]]]


@dataclass(frozen=True)
class Nearest:
    """Nearest real images. pairs: {class: (image of the set, real image)}; how: in which space, among which images."""

    pairs: Pairs
    how: str


def nearest_pictures(run: Run, arms: Sequence[str]) -> PictureTable | None:
    """The table of pictures, a column for each of `arms`; None where the store holds no real images."""
    trials = run.first_trials()
    everything = _all_real(run)
    candidates = _Candidates(run, everything)
    found: dict[str, Nearest] = {}
    for arm in arms:
        folder = set_folder(trials[arm], run.store) if arm in trials and arm not in (CEILING, RANDOM) else None
        nearest = None
        if folder is not None:
            made = images_by_class(folder, PER_CLASS)
            nearest = _by_features(run, trials[arm], made, everything) or candidates.nearest(made)
        if nearest is not None:
            found[arm] = nearest
    if not found:
        return None
    classes = list(dict.fromkeys(name for nearest in found.values() for name in nearest.pairs))
    shown = classes[:MAX_CLASSES]
    sets = {arm: {name: [real for _, real in pairs] for name, pairs in one.pairs.items()} for arm, one in found.items()}
    side = side_for(2 * PER_CLASS * len(shown) * len(found), native_side(sets))
    rows = []
    for name in shown:
        cells = []
        for arm, nearest in found.items():
            pairs = nearest.pairs.get(name, ())
            alt = f"{len(pairs)} images of class {name}, {arm}, each above the real image nearest to it"
            cells.append(strip([[made for made, _ in pairs], [real for _, real in pairs]], side, alt) if pairs else None)
        rows.append((name, cells))
    how = " ".join(dict.fromkeys(nearest.how for nearest in found.values()))
    note = f"Above: the first {PER_CLASS} images of each class; below each: the real training image nearest to it. {how}"
    return PictureTable("Nearest real images", list(found), rows, note + left_out(len(shown), len(classes), "classes"))


def _all_real(run: Run) -> Artifact | None:
    """The artifact that holds every training image, where anything needed it."""
    for ref in dict.fromkeys(ref for trial in run.trials for ref in trial.refs() if ref.stage == "select"):
        artifact = run.store.get(*ref)
        if artifact is not None and artifact.spec["method"] == "all":
            return artifact
    return None


def _by_features(
    run: Run, trial: TrialRecord, made: Mapping[str, Sequence[Path]], everything: Artifact | None
) -> Nearest | None:
    """The nearest real images that the first quality of the set found, every training image considered; None without one."""
    import numpy as np

    for measure in trial.quality:
        artifact = run.store.get(*measure.ref)
        inputs = artifact.inputs if artifact is not None else {}
        features = [run.store.get("features", inputs[name]) if name in inputs else None for name in ("set", "real")]
        if artifact is None or everything is None or features[0] is None or features[1] is None:
            continue
        of_set, of_real = features[0], features[1]
        labels, rows = array_of(of_real, "labels.npy"), array_of(of_real, "rows.npy")
        places = {int(row): place for place, row in enumerate(rows)}
        order = np.empty(len(labels), np.int64)  # of each real image inside its class
        for known in np.unique(labels):
            mine = np.flatnonzero(labels == known)
            order[mine] = np.argsort(np.argsort(rows[mine]))
        real = images_by_class(everything.path, len(labels))
        names = list(everything.spec["images"]["classes"])
        nearest = [int(entry["row"]) for entry in json_of(artifact, "copies.json")["nearest"]]
        made_labels = array_of(of_set, "labels.npy")
        pairs: dict[str, list[tuple[Path, Path]]] = {}
        for name, paths in made.items():
            indices = np.flatnonzero(made_labels == names.index(name))
            for path, index in zip(paths, indices, strict=False):
                place = places[nearest[index]]
                pairs.setdefault(name, []).append((path, real[names[int(labels[place])]][int(order[place])]))
        return Nearest(pairs, f"Nearest by features {measure.space}, among all {len(labels)} training images.")
    return None


class _Candidates:
    """Training images that the store has, as pixels: all of them, evenly thinned out, or those that a control drew."""

    def __init__(self, run: Run, everything: Artifact | None) -> None:
        folder, of = everything.path if everything is not None else None, "training images"
        if folder is None:
            drawn = run.first_trials().get(RANDOM)
            folder, of = set_folder(drawn, run.store) if drawn is not None else None, f"training images that {RANDOM} drew"
        found = [path for paths in images_by_class(folder, 10**9).values() for path in paths] if folder is not None else []
        self._paths = found[:: max(1, -(-len(found) // MAX_CANDIDATES))]
        among = f"{len(self._paths)} of {len(found)}" if len(self._paths) < len(found) else str(len(found))
        self._how = f"Nearest in pixels, among {among} {of}."

    @cached_property
    def _pixels_nf(self) -> Any:
        import numpy as np

        return np.stack([_pixels(path) for path in self._paths])

    def nearest(self, made: Mapping[str, Sequence[Path]]) -> Nearest | None:
        import numpy as np

        if not self._paths:
            return None
        squares_N = (self._pixels_nf**2).sum(axis=1)
        pairs: dict[str, list[tuple[Path, Path]]] = {}
        for name, paths in made.items():
            own_MF = np.stack([_pixels(path) for path in paths])
            closest = (squares_N - 2 * own_MF @ self._pixels_nf.T).argmin(axis=1)
            pairs[name] = [(path, self._paths[int(place)]) for path, place in zip(paths, closest, strict=True)]
        return Nearest(pairs, self._how)


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    image = image_of(path).convert("RGB")
    if image.size != (COMPARED_SIDE, COMPARED_SIDE):  # sets made elsewhere have sizes of their own
        image = image.resize((COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32).reshape(-1) / 255
