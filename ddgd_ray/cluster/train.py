"""The door to Ray Train: fine-tuning and sampling on one or several workers."""

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddgd_ray.cluster import key_values
from ddgd_ray.cluster.placement import Amounts, Placement
from ddgd_ray.cluster.stop_order import stop_file_here
from ddgd_ray.cluster.train_failures import error_of_ours, told_of
from ddgd_ray.cluster.verdicts import leave_verdict, num_verdicts, verdict_of
from ddgd_ray.conduct.job_log import job_log, log_file, send_log
from ddgd_ray.errors import DdgdError, StageError, Stopped
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import make, publish_call, run_call
from ddgd_ray.storage.store import Artifact, Store

NODE = "ray.io/node-id"
AGREE_S = 5.0
START_ATTEMPTS = 5  # Train waits a minute for room each time; admission has made sure that there is some

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerGroup:
    """The workers of one job.

    each: amounts of one worker. nodes: the node of each worker, in order; () lets Ray choose. max_failures: how many losses of
    workers Train makes up for. Where nodes are given it makes up for none: with a node its place is gone, and the whole job is
    handed out anew.
    """

    num_workers: int = 1
    each: Amounts = field(default_factory=dict)
    placement: Placement = "pack"
    nodes: tuple[str, ...] = ()
    max_failures: int = 0
    log: tuple[str, str] = ("", "")
    """The run, and the name of the job's log in it. A rank has its own log beside that one; "" for none."""


def publish_with_train(call: StageCall, store: Store, ctx: Context, group: WorkerGroup) -> tuple[Artifact, bool]:
    """The same as of stages.publish.publish_call. A fine-tuning, and what has several workers, runs under Train.

    One worker is Train's local mode: this process, no start-up. More are processes of their own, gloo or NCCL between them.
    """
    if call.stage != "finetune" and group.num_workers == 1:
        return publish_call(call, store, ctx)
    with store.lease(call.key):
        found = store.get(*call.ref)
        if found is not None:
            return found, True
        if group.num_workers == 1:
            _fit_here(call, store, ctx)
        else:
            _fit(call, store, ctx, group)
        made = store.get(*call.ref)
        assert made is not None
        return made, False


def _fit_here(call: StageCall, store: Store, ctx: Context) -> None:
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import ScalingConfig

    with _run_name(call, store) as name:

        def only_rank() -> None:
            make(call, store, ctx)

        trainer = TorchTrainer(
            only_rank,
            scaling_config=ScalingConfig(num_workers=0),
            run_config=RunConfig(name=name, storage_path=str(_train_folder(store))),
        )
        _raising_ours(trainer)


def _fit(call: StageCall, store: Store, ctx: Context, group: WorkerGroup) -> None:
    """Run a stage on several workers.

    Raises the DdgdError that a rank raised; EngineError when workers were lost more often than Train may make up for;
    RuntimeError when Train made up for no loss or failed itself, after which the job may be tried again.
    """
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train gives is typed as the older one

    each, gpus = dict(group.each), group.each.get("GPU", 0)
    scaling = ScalingConfig(
        num_workers=group.num_workers,
        use_gpu=bool(gpus),
        resources_per_worker=each,
        placement_strategy=group.placement.upper(),
        label_selector=[{NODE: node} for node in group.nodes] or None,
    )
    is_whole = gpus >= 1 and ctx.device != "cpu"  # NCCL refuses two ranks on one GPU
    retries, preemptions = (0, 0) if group.nodes else (group.max_failures, -1)
    _remove_groups(_name_of(call, store))  # of a process that died before it could
    with _run_name(call, store) as name:
        run = RunConfig(
            name=name,
            **_storage(store),
            failure_config=FailureConfig(retries, controller_failure_limit=START_ATTEMPTS, max_preemption_failures=preemptions),
        )
        settings = {"call": call, "store": store, "ctx": ctx, "name": name, "log": group.log}
        trainer = TorchTrainer(
            _worker,
            train_loop_config=settings,
            scaling_config=scaling,
            run_config=run,
            torch_config=TorchConfig(backend="nccl" if is_whole else "gloo"),
        )
        try:
            _raising_ours(trainer)
        except DdgdError:
            raise
        except Exception as err:
            raise (verdict_of(name) or told_of(err, retries, f"{call.stage} {call.key[:8]}")) from err
        finally:
            _remove_groups(name)
        verdict = verdict_of(name)
        if verdict is not None:
            raise verdict


@contextmanager
def _run_name(call: StageCall, store: Store) -> Iterator[str]:
    """A name for one of Train's runs. What the run leaves behind is removed afterwards.

    Train resumes silently under a name it knows, with another configuration too: the checkpoints are the stage's own
    (stages/parts/checkpoint.py), so every attempt has a new name.
    """
    name = f"{_name_of(call, store)}-{uuid.uuid4().hex[:6]}"
    try:
        yield name
    finally:
        shutil.rmtree(_train_folder(store) / name, ignore_errors=True)
        if store.remote is not None:
            store.remote.discard(f"train/{name}")
        key_values.remove_all(f"{name}/")


def _name_of(call: StageCall, store: Store) -> str:
    return f"{key_values.store_name(store)}-{call.key[:16]}"


def _train_folder(store: Store) -> Path:
    return (store.root / "train").absolute()


def _storage(store: Store) -> dict[str, Any]:
    """The storage in which all workers see what Train writes: the store's folder, or the place behind its URL."""
    if store.remote is None:
        return {"storage_path": str(_train_folder(store))}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, base = store.remote.opened
    return {"storage_path": f"{base}/train", "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _raising_ours(trainer: Any) -> None:
    try:
        trainer.fit()
    except Exception as err:
        cause = error_of_ours(err)
        if cause is not None:
            raise cause from err
        raise


def _worker(settings: dict[str, Any]) -> None:
    """Do the work of one rank. Rank 0 publishes; the others compute their share and drop what they wrote.

    A DdgdError ends the run and is not repeated: each rank leaves it as a verdict. When all ranks do so within AGREE_S seconds,
    they return; one rank alone raises, so that Train ends the others, which wait for it.
    """
    from ray import train

    call, store, name = settings["call"], settings["store"], settings["name"]
    world = train.get_context()
    rank, num_ranks = world.get_world_rank(), world.get_world_size()
    if rank == 0:
        _record_group(name)
    if verdict_of(name) is not None or store.has(*call.ref):  # known to those who were before us
        return
    try:
        with stop_file_here(store, settings["ctx"].stop_file) as stop_file, _rank_log(call, store, rank, settings["log"]):
            mine = {"device": _device(settings["ctx"]), "rank": rank, "num_ranks": num_ranks, "stop_file": stop_file}
            _run_rank(call, store, replace(settings["ctx"], **mine))
    except DdgdError as err:
        leave_verdict(name, rank, err)
        deadline = time.monotonic() + AGREE_S
        while num_verdicts(name) < num_ranks:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    except Exception:
        if rank == 0 or not store.has(*call.ref):  # once rank 0 has published, nothing of the others counts
            raise


@contextmanager
def _rank_log(call: StageCall, store: Store, rank: int, log_of_job: tuple[str, str]) -> Iterator[None]:
    """Log what a rank does beside the log of its job, in `STAGE-KEY.rank0.log` and so on."""
    run, name = log_of_job
    if not run:
        yield
        return
    from ray import get_runtime_context

    own = f"{name.removesuffix('.log')}.rank{rank}.log"
    head = {"node": get_runtime_context().get_node_id()[:8], "stage": call.stage, "key": call.key, "rank": rank}
    try:
        with job_log(log_file(own, store, run), head, takes_output=True):
            try:
                yield
            except Exception:
                log.info("rank %d failed", rank, exc_info=True)
                raise
    finally:
        send_log(own, store, run)


def _run_rank(call: StageCall, store: Store, ctx: Context) -> None:
    if ctx.rank == 0:
        try:
            make(call, store, ctx)
        except Stopped:
            with suppress(StageError):  # an older checkpoint is there
                store.push_kept(call.key)  # for whoever goes on, before this process may end
            raise
        return
    with tempfile.TemporaryDirectory() as folder:
        run_call(call, store, Path(folder), ctx)


def _device(ctx: Context) -> str:
    from ray.train.torch import get_device

    return ctx.device if ctx.device == "cpu" else str(get_device())


def _record_group(name: str) -> None:
    """Leave the id of the placement group that this rank runs in.

    Train gives its groups no name, and without Ray's dashboard a group outlives a process that died, and holds its GPUs.
    """
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        key_values.put(f"{name}/group/{group.id.hex()}", "")


def _remove_groups(prefix: str) -> None:
    """Remove the placement groups that were recorded under names with this prefix."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for key in key_values.keys(prefix):
        kind, _, hex_id = key.partition("/")[2].partition("/")
        if kind == "group":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(hex_id)))
            key_values.remove(key)
