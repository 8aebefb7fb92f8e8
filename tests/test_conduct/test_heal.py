"""A sweep with damaged artifacts: they are set aside and made again, and the table is the same."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run
from ddgd_ray.spec.sweep import Sweep


def accuracies(result: Result) -> dict[str, float]:
    rows = read_run(result.folder.path, open_store(result.folder.run_dir)).rows
    return {row.key: row.metrics["top1_last"] for row in rows}


def test_a_sweep_sets_damage_aside_makes_it_again_and_ends_with_the_same_table(
    tiny: Callable[..., Sweep], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = tiny({"seeds.distill": (0,)})
    calm = accuracies(run_sweep(sweep, tmp_path, run_in_process))
    store = tmp_path / "store"
    evaluated, emptied, *_ = sorted((store / "evaluate").iterdir())
    for path in evaluated.rglob("*"):
        path.unlink()  # made again, from sets of which one is damaged
    evaluated.rmdir()
    (emptied / "manifest.json").write_text("")
    samples = sorted(path for path in (store / "sample").rglob("*") if path.is_file() and path.name != "manifest.json")
    for path in samples:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        healed = run_sweep(sweep, tmp_path, run_in_process)
    assert healed.exit_code == 0
    assert accuracies(healed) == calm
    assert len(list((store / "damaged").iterdir())) >= 2
    assert "SHA-256" in caplog.text
    assert run_sweep(sweep, tmp_path, run_in_process).num_ran == 0
