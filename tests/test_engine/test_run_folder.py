"""The run folder: one driver at a time, one sweep a folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.engine.run_folder import RunFolder, open_store
from ddgd_ray.errors import ArtifactError, SpecError


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
        "import os; from pathlib import Path; from ddgd_ray.engine.run_folder import RunFolder\n"
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
    ],
    ids=["seeds", "evaluate-seeds", "networks", "controls", "wider-grid"],
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
    monkeypatch.setattr("ddgd_ray.engine.identity.images_source", lambda spec: ("sha256:other", Path()))
    with pytest.raises(SpecError, match="images: was .*digits.*, is .*other"):
        folder.remember(tiny(), amend=True)


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
    ],
    ids=["recipe", "another-grid", "fewer", "objective"],
)
def test_another_sweep_under_the_same_name_is_refused_with_the_difference(
    folder: RunFolder, tiny: Any, other: dict[str, Any], named: str
) -> None:
    folder.remember(tiny())
    with pytest.raises(SpecError, match="another sweep") as caught:
        folder.remember(tiny(other))
    assert named in str(caught.value)


def test_a_relative_run_folder_means_the_same_place_in_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder, store = RunFolder(Path("runs"), "tiny"), open_store(Path("runs"))
    monkeypatch.chdir("/")
    assert folder.path == tmp_path / "runs" / "tiny"
    assert store.root == tmp_path / "runs" / "store"
