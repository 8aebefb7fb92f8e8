"""The run folder: one driver at a time, one sweep a folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.spec.sweep import Sweep, read_sweep


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path, "tiny")
    folder.prepare()
    return folder


def test_a_second_driver_is_refused_and_told_who_holds_the_run(folder: RunFolder) -> None:
    with folder.lock(), pytest.raises(ArtifactError, match=r"locked by process \d+ on") as caught, folder.lock():
        pass
    assert caught.value.exit_code == 6


def test_the_lock_of_a_dead_driver_is_free(folder: RunFolder) -> None:
    code = (
        "import os; from pathlib import Path; from ddgd_ray.run.folder import RunFolder\n"
        f"with RunFolder(Path({str(folder.run_dir)!r}), 'tiny').lock(): os._exit(137)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 137
    with folder.lock():
        pass


def test_the_same_sweep_may_come_again(folder: RunFolder, tiny: Any) -> None:
    folder.remember(tiny())
    folder.remember(tiny())


@pytest.mark.parametrize(
    "more",
    [
        {"seeds.distill": (0, 1, 2)},
        {"seeds.evaluate": (0, 1)},
        {"evaluate.networks": ("convnet3_slim", "resnet_slim")},
        {"controls": ("random_real", "plain")},
        {"vary": {"finetune.memory_real.pop": ("max_similarity", "fifo", "random")}},
        {"evaluate.ipc": (1, 2)},
    ],
    ids=["seeds", "evaluate-seeds", "networks", "controls", "wider-grid", "smaller-sets"],
)
def test_a_sweep_grows_when_told_to(folder: RunFolder, tiny: Any, more: dict[str, Any]) -> None:
    folder.remember(tiny())
    with pytest.raises(SpecError, match="smaller sweep of the same kind") as caught:
        folder.remember(tiny(more))
    assert "--amend" in str(caught.value)
    folder.remember(tiny(more), amend=True)
    folder.remember(tiny(more))
    with pytest.raises(SpecError, match="another sweep"):
        folder.remember(tiny(), amend=True)


@pytest.mark.parametrize("free", [{"resources.cpus": 2}, {"resources.max_failures": 0}])
def test_how_a_sweep_runs_may_change_at_any_time(folder: RunFolder, tiny: Any, free: dict[str, Any]) -> None:
    folder.remember(tiny())
    folder.remember(tiny(free))


def test_other_images_are_another_sweep(folder: RunFolder, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.remember(tiny())
    monkeypatch.setattr("ddgd_ray.run.identity.images_source", lambda spec: ("sha256:other", Path()))
    with pytest.raises(SpecError, match="images: was .*digits.*, is .*other"):
        folder.remember(tiny(), amend=True)


@pytest.fixture
def of_folder(tiny_file: Path, tmp_path: Path) -> Callable[..., Sweep]:
    """The tiny sweep on a folder of images."""
    (tmp_path / "folder.yaml").write_text(tiny_file.read_text().replace("preset: digits", "preset: imagefolder"))

    def read(root: Path, **others: Any) -> Sweep:
        given = {"images.root": str(root), "images.classes": ("a", "b"), **others}
        return read_sweep(tmp_path / "folder.yaml", given)

    return read


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root, rng = tmp_path / "images", np.random.default_rng(0)
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (root / part).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / part / f"{number}.png")
    return root


def test_the_same_images_at_another_place_continue_a_run(
    folder: RunFolder, images: Path, of_folder: Callable[..., Sweep]
) -> None:
    folder.remember(of_folder(images))
    moved = shutil.copytree(images, images.with_name("moved"))
    folder.remember(of_folder(moved))
    settings = json.loads((folder.path / "sweep.json").read_text())["identity"]["settings"]
    assert settings["images"]["root"] == str(moved), "where they are now"
    (moved / "train/a/0.png").unlink()
    with pytest.raises(SpecError, match="another sweep") as caught:
        folder.remember(of_folder(moved), amend=True)
    assert "images: was" in str(caught.value)


def test_weights_go_by_their_content_not_by_their_place(folder: RunFolder, tiny: Any, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("here", "there", "other")]
    for place in folders:
        place.mkdir()
        (place / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        (place / "diffusion_pytorch_model.safetensors").write_bytes(b"1" if place.name == "other" else b"0")

    def using(place: Path) -> Sweep:
        sweep: Sweep = tiny()
        weights = {"repo": "who/what", "folder": str(place)}
        return replace(sweep, preset=sweep.preset.replaced({("autoencoder",): weights}))

    folder.remember(using(folders[0]))
    folder.remember(using(folders[1]))
    with pytest.raises(SpecError, match=r"another sweep:\n *weights.autoencoder: was .*"):
        folder.remember(using(folders[2]), amend=True)


def test_weights_that_are_not_here_are_asked_for_by_nobody_who_does_not_need_them(
    folder: RunFolder, tiny: Any, tmp_path: Path
) -> None:
    """Ready-made sets are judged without a generator."""
    weights = {"repo": "who/what", "folder": str(tmp_path / "nowhere")}
    without = replace(tiny(), preset=tiny().preset.replaced({("autoencoder",): weights}))
    folder.remember(without)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "nowhere" / "diffusion_pytorch_model.safetensors").write_bytes(b"0")
    folder.remember(without)
    shutil.rmtree(tmp_path / "nowhere")
    folder.remember(without)


def test_a_run_without_fingerprints_of_its_weights_goes_by_their_place(folder: RunFolder, tiny: Any) -> None:
    folder.remember(tiny())
    sweep = json.loads((folder.path / "sweep.json").read_text())
    del sweep["identity"]["weights"]
    sweep["identity"]["settings"]["reference"]["inception"] = "a.pt"
    (folder.path / "sweep.json").write_text(json.dumps(sweep))
    with pytest.raises(SpecError, match=r"settings.reference.inception: was .*a.pt"):
        folder.remember(tiny(), amend=True)


@pytest.mark.parametrize(("mode", "is_free"), [("asynchronous", True), ("deterministic", False)])
def test_what_is_tried_at_once_may_change_where_timing_decides_anyway(
    folder: RunFolder, tiny_file: Path, tmp_path: Path, mode: str, is_free: bool
) -> None:
    text = tiny_file.read_text()
    grid = text[text.index("vary:") : text.index("seeds:")]
    (tmp_path / "space.yaml").write_text("finetune.memory_real.size: {type: int, low: 8, high: 64}\n")
    file = tmp_path / "search.yaml"
    asked = f"search: {{space: space.yaml, algorithm: random, mode: {mode}}}\nobjective: {{metric: top1_last}}\n"
    file.write_text(text.replace(grid, asked))
    folder.remember(read_sweep(file, {}))
    with nullcontext() if is_free else pytest.raises(SpecError, match="search.parallel: was 2, is 3"):
        folder.remember(read_sweep(file, {"search.parallel": 3}))


def test_a_lock_left_by_another_host_needs_force(folder: RunFolder) -> None:
    line = "process 1 on elsewhere since 2020-01-01 00:00:00\n"
    (folder.path / "lock").write_text(line)
    assert folder.holder() == line.strip()
    with pytest.raises(ArtifactError, match="elsewhere") as caught, folder.lock():
        pass
    assert "--force-unlock" in str(caught.value)
    with folder.lock(force=True):
        assert f"process {os.getpid()} " in folder.holder()
    assert folder.holder() == ""


LEFT = "process 1 on elsewhere since 2020-01-01 00:00:00 for job slurm/41\n"


def test_a_job_that_starts_again_elsewhere_takes_over_its_lock(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.path / "lock").write_text(LEFT)
    monkeypatch.setenv("DDGD_JOB", "slurm/41")
    with folder.lock():
        assert f"process {os.getpid()} " in folder.holder()
        assert folder.holder().endswith(" for job slurm/41")


@pytest.mark.parametrize("job", ["", "slurm/4", "slurm/141", "1"])
def test_no_other_job_takes_over_the_lock_of_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    (folder.path / "lock").write_text(LEFT)
    monkeypatch.setenv("DDGD_JOB", job)
    with pytest.raises(ArtifactError, match="elsewhere"), folder.lock():
        pass
    assert (folder.path / "lock").read_text() == LEFT


def test_a_job_does_not_take_over_from_a_living_driver(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDGD_JOB", "slurm/41")
    with folder.lock(), pytest.raises(ArtifactError, match="for job slurm/41"), folder.lock():
        pass


def test_an_order_to_stop_does_not_outlive_the_start_it_was_for(folder: RunFolder) -> None:
    folder.order_stop(now=True)
    assert folder.is_told_to_stop
    folder.withdraw_stop()
    assert not folder.is_told_to_stop
    assert not list(folder.path.glob("stop*"))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"finetune.lambda_g": 0.5}, "settings.finetune.lambda_g: was null, is 0.5"),
        ({"vary": {"finetune.memory_real.pop": ("fifo", "random")}}, "vary.finetune.memory_real.pop"),
        ({"controls": ()}, 'controls: was ["random_real"], is []'),
        ({"objective.metric": "top1_last"}, 'objective.metric: was "val_top1", is "top1_last"'),
        ({"evaluate.ipc": (2, 3)}, "evaluate.ipc: was [2], is [2, 3]"),
    ],
    ids=["recipe", "another-grid", "fewer", "objective", "larger-sets"],
)
def test_another_sweep_under_the_same_name_is_refused_with_the_difference(
    folder: RunFolder, tiny: Any, other: dict[str, Any], named: str
) -> None:
    folder.remember(tiny())
    with pytest.raises(SpecError, match="another sweep") as caught:
        folder.remember(tiny(other), amend=True)
    assert named in str(caught.value)


def test_a_relative_run_folder_means_the_same_place_in_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder, store = RunFolder(Path("runs"), "tiny"), open_store(Path("runs"))
    monkeypatch.chdir("/")
    assert folder.path == tmp_path / "runs" / "tiny"
    assert store.root == tmp_path / "runs" / "store"
