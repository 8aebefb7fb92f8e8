"""A run as a sweep really leaves it: exported and opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ddgd_ray
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.exporting.layouts import LAYOUTS
from ddgd_ray.inputs.fingerprints import set_source

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    result = run_sweep(tiny({"seeds.distill": (0,)}), tmp_path_factory.mktemp("real"), run_in_process)
    assert result.exit_code == 0
    return ddgd_ray.open_run(result.folder.path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_distilled_set_is_exported_with_its_numbers(layout: str, run: Any, tmp_path: Path) -> None:
    out = run.export(layout, tmp_path / "out")
    mean = run.table("val_top1").loc[run.best, "mean"]
    card = (out / "README.md").read_text()
    assert f"The run's objective prefers this arm: {mean:.3f} (n=1) by val_top1" in card
    assert "fine-tuned on the real images for 3 steps of 20 images" in card
    stages = [stage["stage"] for stage in json.loads((out / "provenance.json").read_text())["stages"]]
    assert stages == ["autoencoder", "encode", "pretrain", "finetune", "sample"]
    if layout == "imagefolder":
        judged = run.data.store.get("evaluate", run.evaluations.set_index("arm").loc[run.best, "key"])
        exported = set_source(out, DIGITS)
        assert exported.smallest == 2
        drawn = run.data.store.get("sample", judged.inputs["set"])
        assert set_source(drawn.path, DIGITS).fingerprint == exported.fingerprint


def test_a_control_of_real_images_is_exported(run: Any, tmp_path: Path) -> None:
    card = (run.export("hf", tmp_path / "out", arm="random_real") / "README.md").read_text()
    assert "Nothing here is generated." in card


def test_its_frames_hold_the_curves_of_every_stage(run: Any) -> None:
    curves = run.curves(f"{run.best}-s0")
    assert {"pretrain", "finetune", "evaluate"} <= set(curves["stage"])
    tuned = curves[curves["stage"] == "finetune"]
    assert tuned["L_diffusion"].notna().all()
    assert list(tuned["step"]) == [0, 2]
    spent = run.costs.groupby("stage")["seconds"].sum()
    assert spent["finetune"] > 0
