"""Settings for images of one's own: whatever the folder is like, its sweep file is sound and can be planned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.inputs.survey import survey
from ddgd_ray.plan.own_images import TIERS, as_overrides, ema_decay, ipc_for, resources_for, settings, tiers_for
from ddgd_ray.plan.sweep_text import sweep_text
from ddgd_ray.spec.load import parse
from ddgd_ray.spec.sweep import Sweep, check_sweep


def make(root: Path, train: dict[str, int], val: dict[str, int] | None = None, side: int = 40, channels: int = 3) -> Path:
    splits = {"train": train, "val": val} if val else {"": train}
    for split, counts in splits.items():
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shape = (side, side, 3)[: 3 if channels == 3 else 2]
                noise = np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{number}.png")
    return root


FOLDERS: dict[str, dict[str, Any]] = {
    "the fewest images": {"train": {"a": 4, "b": 4}},
    "names that YAML reads otherwise": {"train": {"1": 9, "on": 9, "null": 9, "a b": 9, "c: #d": 9, "1e3": 9}},
    "a split": {"train": {"a": 20, "b": 12}, "val": {"a": 3, "b": 2}},
    "many classes": {"train": {f"class-{number:03d}": 6 for number in range(120)}},
    "digits": {"train": {"a": 8, "b": 8}, "side": 8, "channels": 1},
    "small pictures": {"train": {"a": 8, "b": 8}, "side": 16},
    "large pictures": {"train": {"a": 30, "b": 30}, "side": 200},
}


@pytest.fixture(params=FOLDERS, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path / "images", **FOLDERS[request.param])


def sweep_of(folder: Path, share: float = 1.0, tier: int = 0) -> Sweep:
    found = survey(folder)
    chosen = settings(found, TIERS[tier], share)
    text = sweep_text("mine", "imagefolder", chosen, heading=["mine"], ipc=ipc_for(found), resources=resources_for(2, 0))
    return check_sweep(parse(text, "mine.yaml"), folder, {})


@pytest.mark.parametrize("share", [0.25, 1.0, 3.0])
def test_the_text_of_any_folder_is_a_sweep_that_can_be_planned(folder: Path, share: float) -> None:
    sweep = sweep_of(folder, share)
    trials = planned_trials(sweep)
    assert len(trials) == 3 * 3 + 2 * 3  # three arms and two controls at three seeds
    preset = sweep.preset_with({})
    assert preset.images.classes == survey(folder).classes
    assert preset.images.validation_per_class >= 1


def test_what_was_written_is_what_was_chosen(folder: Path) -> None:
    sweep = sweep_of(folder)
    read = sweep.spec.set
    assert {path: read[path] for path in read} == dict(as_overrides(settings(survey(folder))))


def test_memories_fill_and_the_average_forgets(folder: Path) -> None:
    tune = sweep_of(folder).preset_with({}).finetune
    classes = len(survey(folder).classes)
    for memory in (tune.memory_real, tune.memory_gen):
        assert tune.steps * tune.batch_size / classes >= memory.size
    assert tune.ema_decay**tune.steps < 0.1


def test_no_batch_is_larger_than_the_training_images(folder: Path) -> None:
    preset, found = sweep_of(folder).preset_with({}), survey(folder)
    held = preset.images.validation_per_class + preset.images.test_per_class
    num_train = sum(count - held for count in found.train.values())
    assert max(preset.finetune.batch_size, preset.backbone.batch_size) <= num_train  # type: ignore[union-attr]


def test_images_are_not_blown_up_beyond_the_smallest_tier(tmp_path: Path) -> None:
    assert [tier.size for tier in tiers_for(survey(make(tmp_path / "a", {"a": 4, "b": 4}, side=100)))] == [32, 64]
    assert [tier.size for tier in tiers_for(survey(make(tmp_path / "b", {"a": 4, "b": 4}, side=20)))] == [32]


@pytest.mark.parametrize("steps", [1, 5, 50, 150, 400, 1500, 12000])
def test_the_average_forgets_its_start_however_few_steps(steps: int) -> None:
    assert ema_decay(steps) ** steps < 0.1


def test_a_larger_share_trains_longer_and_changes_nothing_else(tmp_path: Path) -> None:
    found = survey(make(tmp_path, {"a": 30, "b": 30}))
    short, long = (as_overrides(settings(found, TIERS[0], share)) for share in (0.5, 2.0))
    changed = {path for path in short if short[path] != long[path]}
    assert changed == {"autoencoder.steps", "backbone.steps"}
