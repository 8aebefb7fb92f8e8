"""Sweeps that would end well and mean something else: each is refused or warned of before any stage runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.cli import main
from ddgd_ray.errors import SpecErrors
from ddgd_ray.method.classifiers import build_network
from ddgd_ray.plan.network_traps import LEAST_SIDE
from ddgd_ray.plan.trap import Trap
from ddgd_ray.plan.traps import machine_traps, refuse, traps
from ddgd_ray.run.warned import read_warnings
from ddgd_ray.spec.stages import NETWORKS
from ddgd_ray.spec.sweep import Sweep, read_sweep

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "ablations").glob("*.yaml"))
Tiny = Callable[..., Sweep]


def found(sweep: Sweep) -> dict[str, Trap]:
    return {trap.code: trap for trap in traps(sweep)}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_sweeps_are_in_no_trap(path: Path) -> None:
    """The search spaces reach to memories that fit the full-size presets: on the embedded data some are too large."""
    arms = {trap.arms for trap in traps(read_sweep(path, {}))}
    assert arms <= {"where memory_real.size 512", "where memory_gen.size 512"}


def test_a_folder_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    sweep = read_sweep(ROOT / "ablations" / "memory.yaml", {"images.root": str(tmp_path)})
    with pytest.raises(SpecErrors, match=r"root-unread.*--set images.root.*preset fashion never reads a folder"):
        refuse(sweep)


@pytest.mark.parametrize("metric", ["val_top1", "top1_selected"])
def test_choosing_by_images_that_nobody_holds_out_is_refused(metric: str, tiny: Tiny) -> None:
    sweep = tiny({"images.validation_per_class": 0, "objective.metric": metric})
    with pytest.raises(SpecErrors, match=f"no-validation.*{metric}.*none are held out"):
        refuse(sweep)


def test_choosing_on_the_test_images_needs_none_held_out(tiny: Tiny) -> None:
    assert "no-validation" not in found(tiny({"images.validation_per_class": 0, "objective.metric": "top1_last"}))


@pytest.mark.parametrize(("decay", "steps", "is_caught"), [(0.9999, 150, True), (0.99, 60, True), (0.99, 200, False)])
def test_an_average_of_the_start_is_warned_of(decay: float, steps: int, is_caught: bool, tiny: Tiny) -> None:
    changes: dict[str, Any] = {"finetune.ema_decay": decay, "finetune.steps": steps, "backbone.steps": 1000}
    assert ("average-of-start" in found(tiny(changes))) == is_caught
    assert "average-of-start" not in found(tiny(changes | {"finetune.ema_warmup": True}))
    assert "average-of-start" not in found(tiny(changes | {"sample.weights": "raw"}))


def test_the_decay_that_is_proposed_frees_the_sweep(tiny: Tiny) -> None:
    changes = {"finetune.ema_decay": 0.9999, "finetune.steps": 150, "backbone.steps": 1000}
    fix = found(tiny(changes))["average-of-start"].fix
    decay = float(fix.partition("to ")[2].partition(",")[0])
    assert "average-of-start" not in found(tiny(changes | {"finetune.ema_decay": decay}))


def test_a_backbone_whose_average_is_its_start_is_warned_of(tiny: Tiny) -> None:
    fixes = [trap.fix for trap in traps(tiny({"backbone.ema_decay": 0.9999})) if trap.code == "average-of-start"]
    assert any("backbone.ema_decay" in fix for fix in fixes)


def test_a_memory_that_never_fills_is_warned_of_and_names_its_arms(tiny: Tiny) -> None:
    trap = found(tiny())["never-full"]  # 3 steps of 20 over 10 classes: 6 latents for 32 places
    assert "about 6 arrive in 3 steps of 20" in trap.what
    assert "never-full" not in found(tiny({"finetune.memory_real.size": 4, "finetune.memory_gen.size": 4}))
    assert "never-full" not in found(tiny({"finetune.lambda_r": 0.0, "finetune.lambda_g": 0.0})), "no memory is in use"


def test_only_the_cells_in_a_trap_are_named(tiny: Tiny, tmp_path: Path) -> None:
    text = "name: a\npreset: digits\nset: {finetune.batch_size: 20}\nvary: {finetune.steps: [3, 400]}\n"
    (tmp_path / "a.yaml").write_text(text)
    trap = found(read_sweep(tmp_path / "a.yaml", {}))["never-full"]
    assert trap.arms == "where steps 3"


def test_the_ends_of_a_space_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("finetune.memory_real.size: {type: int, low: 8, high: 512, log: true}\n")
    text = "name: a\npreset: digits\nset: {finetune.steps: 100}\nsearch: {space: space.yaml, algorithm: random}\n"
    (tmp_path / "a.yaml").write_text(text)
    trap = found(read_sweep(tmp_path / "a.yaml", {}))["never-full"]
    assert "512" in trap.what
    assert trap.arms == "where memory_real.size 512"


@pytest.mark.parametrize("part", ["finetune", "backbone"])
def test_a_batch_larger_than_the_training_images_is_refused(part: str, tiny: Tiny) -> None:
    assert "batch-too-large" not in found(tiny({f"{part}.batch_size": 1200}))
    with pytest.raises(SpecErrors, match=r"batch-too-large.*1201 images is more than the 1200 training images"):
        refuse(tiny({f"{part}.batch_size": 1201}))


def test_images_of_a_folder_are_counted_for_its_batches(tiny: Tiny, tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (tmp_path / split / name).mkdir(parents=True)
        for number in range(6):
            noise = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / split / name / f"{number}.png")
    of_folder = {"images.source": "imagefolder", "images.root": str(tmp_path), "images.classes": ("a", "b")}
    of_folder |= {"images.validation_per_class": 1, "backbone.batch_size": 4}
    assert "than the 10 training images" in found(tiny(of_folder))["batch-too-large"].what


def test_a_batch_that_workers_cannot_share_is_refused(tiny: Tiny) -> None:
    assert "batch-not-shared" in found(tiny({"resources.workers": 3}))
    assert "batch-not-shared" not in found(tiny({"resources.workers": 4}))


def test_memories_of_ranks_that_are_not_there_are_refused(tiny: Tiny) -> None:
    local = {"finetune.memory_scope": "local", "finetune.local_ranks": 2}
    assert "local-ranks" in found(tiny(local))
    assert "local-ranks" not in found(tiny(local | {"resources.workers": 2}))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_least_sides_are_those_of_the_networks(name: str) -> None:
    least = LEAST_SIDE.get(name, 1)
    build_network(name, num_classes=2, channels=1, size=max(least, 8))
    if name in LEAST_SIDE:
        with pytest.raises(ValueError, match=f"at least {least} px"):
            build_network(name, num_classes=2, channels=1, size=least - 1)


def test_a_network_that_cannot_take_the_images_is_refused(tiny: Tiny) -> None:
    trap = found(tiny({"evaluate.networks": ("convnet3", "convnet6")}))["network-too-large"]
    assert trap.level == "refuse"
    assert "convnet6 takes images of 64 px and more, and these are 8 px" in trap.what


def test_a_network_of_timm_made_for_other_sizes_is_refused(tiny: Tiny) -> None:
    sweep = tiny({"evaluate.networks": ("timm/vit_tiny_patch16_224", "timm/resnet10t")})
    (trap,) = (trap for trap in traps(sweep) if trap.code == "network-too-large")
    assert "vit_tiny_patch16_224 does not take images of 8 px with 1 channels" in trap.what


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"backbone.patch": 3}, "patch"),
        ({"autoencoder.kind": "kl", "images.size": 30}, "size-not-halved"),
        ({"autoencoder.kind": "kl", "autoencoder.widths": (12, 16)}, "widths"),
    ],
)
def test_shapes_that_no_network_has_are_refused(changes: dict[str, Any], code: str, tiny: Tiny) -> None:
    assert found(tiny(changes))[code].level == "refuse"


def test_resources_that_no_machine_here_has_are_named(tiny: Tiny) -> None:
    sweep = tiny(
        {"resources.stages": {"finetune": {"gpus": 1, "workers": 2}, "encode": {"memory_gb": 64}}, "resources.cpus": 4}
    )
    words = {trap.what for trap in machine_traps(sweep, cores=4, gpus=1, memory_gb=32)}
    assert words == {
        "a job of finetune holds 8 cpus, and here are 4",
        "a job of finetune holds 2 gpus, and here are 1",
        "a job of encode holds 64 memory_gb, and here are 32",
    }
    assert machine_traps(sweep, cores=8, gpus=2, memory_gb=64) == []


@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_plan_and_sweep_refuse_the_same_before_anything_is_written(
    command: str, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, str(tiny_file), "--run-dir", str(tmp_path / "runs"), "--set", "images.validation_per_class=0"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error[no-validation]" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_doctor_tells_the_traps_of_a_sweep(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", str(tiny_file), "--run-dir", str(tmp_path), "--set", "images.root=/nowhere", "--fast"])
    out = capsys.readouterr().out
    assert "FAIL  sweep      --set images.root: preset digits never reads a folder" in out
    assert "WARN  sweep" in out


def test_a_sweep_keeps_its_warnings_for_its_report(tiny_file: Path, tmp_path: Path) -> None:
    sweep = read_sweep(tiny_file, {"seeds.distill": (0,), "controls": ()})
    words = ["sweep", str(tiny_file), "--run-dir", str(tmp_path), "--executor", "local", "--no-tracking"]
    done = subprocess.run(
        [sys.executable, "-m", "ddgd_ray.cli", *words, "--set", "seeds.distill=[0]", "--set", "controls=[]"],
        check=True,
        capture_output=True,
        text=True,
    )
    kept = read_warnings(tmp_path / "tiny")
    assert kept == refuse(sweep)
    assert {trap.code for trap in kept} == {"average-of-start", "never-full"}
    assert all(trap.line() in done.stdout for trap in kept)
    assert "never fills" in (tmp_path / "tiny" / "sweep.log").read_text()


def test_warnings_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert read_warnings(tmp_path) == []
    (tmp_path / "warnings.json").write_text('[{"code": "x"}]')
    assert read_warnings(tmp_path) == []
