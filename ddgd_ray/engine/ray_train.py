"""The door to Ray Train: fine-tuning and sampling on one or several workers."""

import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddgd_ray.errors import DdgdError
from ddgd_ray.spec.sweep_spec import WIDE_STAGES
from ddgd_ray.stages.base import Context, StageCall, make, publish_call, run_call
from ddgd_ray.store import Artifact, Store


def publish_with_train(call: StageCall, store: Store, ctx: Context, *, workers: int, gpus: float) -> tuple[Artifact, bool]:
    """Like stages.base.publish_call; a fine-tuning, and with several workers a sampling, runs under a TorchTrainer.

    One worker is Train's local mode: this process, no start-up. More are processes of their own, gloo or NCCL between them.
    """
    if call.stage != "finetune" and not (call.stage in WIDE_STAGES and workers > 1):
        return publish_call(call, store, ctx)
    with store.lease(call.key):
        found = store.get(*call.ref)
        if found is not None:
            return found, True
        _fit(call, store, ctx, workers, gpus)
        made = store.get(*call.ref)
        assert made is not None
        return made, False


def _fit(call: StageCall, store: Store, ctx: Context, workers: int, gpus: float) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    is_local = workers == 1
    scaling = ScalingConfig(
        num_workers=0 if is_local else workers,
        use_gpu=bool(gpus) and not is_local,
        resources_per_worker=None if is_local else ({"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}),
    )
    # Train resumes silently under a name it knows; without checkpoints of ours to resume from, every attempt has a new name
    run = RunConfig(
        name=f"{call.key[:16]}-{uuid.uuid4().hex[:6]}",
        storage_path=str((store.root / "train").absolute()),
        failure_config=FailureConfig(max_failures=0),
    )
    settings = {"call": call, "store": store, "ctx": ctx, "is_local": is_local}
    try:
        TorchTrainer(_worker, train_loop_config=settings, scaling_config=scaling, run_config=run).fit()
    except Exception as err:
        cause = _ours(err)
        if cause is not None:
            raise cause from err
        raise


def _worker(settings: dict[str, Any]) -> None:
    """One rank. Rank 0 publishes; the others compute their share and drop what they wrote."""
    call, store, ctx = settings["call"], settings["store"], settings["ctx"]
    if settings["is_local"]:
        make(call, store, ctx)
        return
    from ray import train
    from ray.train.torch import get_device

    world = train.get_context()
    mine = replace(ctx, device=str(get_device()), rank=world.get_world_rank(), num_ranks=world.get_world_size())
    if mine.rank == 0:
        make(call, store, mine)
        return
    with tempfile.TemporaryDirectory() as folder:
        run_call(call, store, Path(folder), mine)


def _ours(err: BaseException) -> DdgdError | None:
    """The DdgdError behind what Train raises: workers' errors come wrapped."""
    if isinstance(err, DdgdError):
        return err
    behind = [*getattr(err, "worker_failures", {}).values(), err.__cause__, err.__context__, getattr(err, "cause", None)]
    found = (_ours(inner) for inner in behind if isinstance(inner, BaseException))
    return next((inner for inner in found if inner is not None), None)
