"""What becomes of a job when Ray Train fails: its own start, or its workers again and again."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cluster.train import WorkerGroup, publish_with_train
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_job
from ddgd_ray.spec.sweep_spec import WIDE_STAGES, ResourcesSpec
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import make
from ddgd_ray.storage.store import Artifact, Store

ONE_ARM = {"controls": (), "seeds.distill": (0,), "vary": {"finetune.memory_real.pop": ("max_similarity",)}}
TWO = WorkerGroup(2, {"CPU": 1.0}, max_failures=2)


PINNED = WorkerGroup(2, {"CPU": 1.0}, nodes=("one", "one"), max_failures=2)


def run_wide(conductor: Conductor, store: Store, resources: ResourcesSpec, group: WorkerGroup) -> None:
    def publish(call: StageCall, store: Store, ctx: Context) -> tuple[Artifact, bool]:
        return publish_with_train(call, store, ctx, group if call.stage in WIDE_STAGES else WorkerGroup())

    while not conductor.is_finished:
        job = conductor.next()
        assert job is not None
        outcome = run_job(job, store, resources, publish)
        conductor.ended(job.id, outcome)


@pytest.fixture
def sweep_with(monkeypatch: pytest.MonkeyPatch, tiny: Any, tmp_path: Path, ray_cluster: None) -> Any:
    """sweep_with(errors, group): the wide calls of Train raise these, one after another, and then do their work."""
    from ray.train.torch import TorchTrainer

    def run(errors: list[Exception], group: WorkerGroup = TWO) -> tuple[Result, Counter[str]]:
        fits: Counter[str] = Counter()

        def fit(trainer: Any) -> None:
            settings = trainer.train_loop_config
            fits[settings["call"].stage] += 1
            if errors:
                raise errors.pop(0)
            make(settings["call"], settings["store"], settings["ctx"])

        monkeypatch.setattr(TorchTrainer, "fit", fit)
        return run_sweep(tiny(ONE_ARM), tmp_path, functools.partial(run_wide, group=group)), fits

    return run


def test_a_start_that_fails_is_tried_again(sweep_with: Any) -> None:
    """As when another process took the port that Train had chosen: it gives up at once."""
    from ray.train import ControllerError

    result, fits = sweep_with([ControllerError(OSError("address already in use"))])
    assert result.exit_code == 0
    assert fits["finetune"] == 2


def test_a_start_that_fails_each_time_is_named(sweep_with: Any) -> None:
    from ray.train import ControllerError

    result, fits = sweep_with([ControllerError(OSError("address already in use"))] * 20)
    (error,) = (error for record in result.failed for error in record.errors.values() if "not run" not in error)
    assert fits["finetune"] == 3
    assert "address already in use" in error
    assert "workers were lost" not in error


def test_waiting_for_room_uses_up_no_attempt(sweep_with: Any) -> None:
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    result, fits = sweep_with([ControllerError(WorkerGroupStartupTimeoutError(2)) for _ in range(5)])
    assert result.exit_code == 0
    assert fits["finetune"] == 6


def test_workers_lost_again_and_again_are_final_and_named(sweep_with: Any) -> None:
    from ray.train import WorkerGroupError

    result, fits = sweep_with([WorkerGroupError("all of it", {1: RuntimeError("connection reset\nby rank 0")})])
    (error,) = (error for record in result.failed for error in record.errors.values() if "not run" not in error)
    assert fits["finetune"] == 1
    assert "its workers were lost 3 times, the last time rank 1 by RuntimeError: by rank 0" in error


def test_workers_on_nodes_of_their_own_are_tried_again_as_a_whole(sweep_with: Any) -> None:
    """Train makes up for none there: with the node the place may be gone."""
    from ray.train import WorkerGroupError

    lost = [WorkerGroupError("all of it", {0: RuntimeError("gone")}) for _ in range(2)]
    result, fits = sweep_with(lost, PINNED)
    assert result.exit_code == 0
    assert fits["finetune"] == 3
