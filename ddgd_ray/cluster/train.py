"""The door to Ray Train: fine-tuning and sampling on one or several workers."""

import json
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

from ddgd_ray import errors
from ddgd_ray.cluster.key_values import drop, names, stop_file_here, store_name, tell, told
from ddgd_ray.cluster.placement import Amounts, Placement
from ddgd_ray.errors import DdgdError, EngineError, NoRoom, StageError, Stopped
from ddgd_ray.spec.sweep_spec import WIDE_STAGES
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import make, publish_call, run_call
from ddgd_ray.storage.store import Artifact, Store

NODE = "ray.io/node-id"
AGREE_S = 5.0
START_ATTEMPTS = 5  # Train waits a minute for room each time; admission has made sure that there is some

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Width:
    """The workers of one stage. nodes: where each must run, in order; none: Ray chooses. max_failures: losses to make up for.

    On pinned nodes Train makes up for none: with the node the place is gone, and the job is handed out again as a whole.
    """

    workers: int = 1
    each: Amounts = field(default_factory=dict)
    placement: Placement = "pack"
    nodes: tuple[str, ...] = ()
    max_failures: int = 0


def publish_with_train(call: StageCall, store: Store, ctx: Context, width: Width) -> tuple[Artifact, bool]:
    """Like stages.publish.publish_call; a fine-tuning, and with several workers a sampling, runs under a TorchTrainer.

    One worker is Train's local mode: this process, no start-up. More are processes of their own, gloo or NCCL between them.
    """
    if call.stage != "finetune" and not (call.stage in WIDE_STAGES and width.workers > 1):
        return publish_call(call, store, ctx)
    with store.lease(call.key):
        found = store.get(*call.ref)
        if found is not None:
            return found, True
        if width.workers == 1:
            _fit_here(call, store, ctx)
        else:
            _fit(call, store, ctx, width)
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


def _fit(call: StageCall, store: Store, ctx: Context, width: Width) -> None:
    """Raises what a rank raised of ours; EngineError when workers were lost more often than Train may make up for, RuntimeError
    when it made up for none or failed itself: the job may be tried again.
    """
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train gives is typed as the older one

    each, gpus = dict(width.each), width.each.get("GPU", 0)
    scaling = ScalingConfig(
        num_workers=width.workers,
        use_gpu=bool(gpus),
        resources_per_worker=each,
        placement_strategy=width.placement.upper(),
        label_selector=[{NODE: node} for node in width.nodes] or None,
    )
    is_whole = gpus >= 1 and ctx.device != "cpu"  # NCCL refuses two ranks on one GPU
    retries, preemptions = (0, 0) if width.nodes else (width.max_failures, -1)
    _remove_groups(_name_of(call, store))  # of a process that died before it could
    with _run_name(call, store) as name:
        run = RunConfig(
            name=name,
            **_storage(store),
            failure_config=FailureConfig(retries, controller_failure_limit=START_ATTEMPTS, max_preemption_failures=preemptions),
        )
        settings = {"call": call, "store": store, "ctx": ctx, "name": name}
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
            raise (verdict_of(name) or _named(err, retries, f"{call.stage} {call.key[:8]}")) from err
        finally:
            _remove_groups(name)
        verdict = verdict_of(name)
        if verdict is not None:
            raise verdict


@contextmanager
def _run_name(call: StageCall, store: Store) -> Iterator[str]:
    """Name of one of Train's runs; what it leaves behind is gone afterwards.

    Train resumes silently under a name it knows, with another configuration too: the checkpoints are the stage's own
    (stages/checkpoint.py), so every attempt has a new name.
    """
    name = f"{_name_of(call, store)}-{uuid.uuid4().hex[:6]}"
    try:
        yield name
    finally:
        shutil.rmtree(_train_folder(store) / name, ignore_errors=True)
        if store.remote is not None:
            store.remote.discard(f"train/{name}")
        forget(name)


def _name_of(call: StageCall, store: Store) -> str:
    return f"{store_name(store)}-{call.key[:16]}"


def _train_folder(store: Store) -> Path:
    return (store.root / "train").absolute()


def _storage(store: Store) -> dict[str, Any]:
    """Where all workers see what Train writes: the store's folder, or what is behind its URL."""
    if store.remote is None:
        return {"storage_path": str(_train_folder(store))}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, base = store.remote.opened
    return {"storage_path": f"{base}/train", "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _raising_ours(trainer: Any) -> None:
    try:
        trainer.fit()
    except Exception as err:
        cause = _ours(err)
        if cause is not None:
            raise cause from err
        raise


def _worker(settings: dict[str, Any]) -> None:
    """One rank. Rank 0 publishes; the others compute their share and drop what they wrote.

    An error of ours ends the run and is not repeated: each rank leaves word of it. When all do so at once, they return; one
    alone raises, so that Train ends the others, which wait for it.
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
        with stop_file_here(store, settings["ctx"].stop_file) as stop_file:
            mine = {"device": _device(settings["ctx"]), "rank": rank, "num_ranks": num_ranks, "stop_file": stop_file}
            _run_rank(call, store, replace(settings["ctx"], **mine))
    except DdgdError as err:
        leave_word(name, rank, err)
        deadline = time.monotonic() + AGREE_S
        while len(names(f"{name}/verdict/")) < num_ranks:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    except Exception:
        if rank == 0 or not store.has(*call.ref):  # once rank 0 has published, nothing of the others counts
            raise


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


def leave_word(name: str, rank: int, err: DdgdError) -> None:
    """For the process that waits for us: what Ray makes of an error on its way there keeps its text alone."""
    said = {"class": type(err).__name__, "what": err.what, "code": err.code, "where": err.where, "fix": err.fix}
    tell(f"{name}/verdict/{rank}", json.dumps(said))


def verdict_of(name: str) -> DdgdError | None:
    """The error of ours that a rank left word of; the lowest rank's."""
    for key in sorted(names(f"{name}/verdict/")):
        said = json.loads(told(key) or "{}")
        cls = getattr(errors, said.pop("class"), EngineError)
        return cls(said.pop("what"), **said)
    return None


def _record_group(name: str) -> None:
    """Train's placement group has no name; without a dashboard it outlives a trial that was stopped, and holds its GPUs."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        tell(f"{name}/group/{group.id.hex()}", "")


def _remove_groups(prefix: str) -> None:
    """Those recorded under names that begin so."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for key in names(prefix):
        kind, _, hex_id = key.partition("/")[2].partition("/")
        if kind == "group":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(hex_id)))
            drop(key)


def forget(name: str) -> None:
    for key in names(f"{name}/"):
        drop(key)


def _named(err: Exception, retries: int, where: str) -> Exception:
    """What became of a run of Train's, in one line; an EngineError is final."""
    failures = getattr(err, "worker_failures", None)
    if type(getattr(err, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        return NoRoom(
            "no room for its workers in several minutes: somebody else on this cluster holds what they need", where=where
        )
    if not failures:  # of Train itself, as when the port that it chose was taken meanwhile: it does not try again
        return RuntimeError(f"Ray Train gave up: {_last_line(err)}")
    rank, last = min(failures.items())
    cause = f"rank {rank} by {type(last).__name__}: {_last_line(last)}"
    if not retries:
        return RuntimeError(f"its workers were lost, {cause}")
    return EngineError(
        f"its workers were lost {retries + 1} times, the last time {cause}",
        code="workers",
        where=where,
        fix="see the run's log; run the same command again to go on from its last checkpoint",
    )


def _last_line(err: BaseException) -> str:
    return (str(err).strip().splitlines() or [""])[-1][:300]


def _ours(err: BaseException) -> DdgdError | None:
    """The DdgdError behind what Train raises: workers' errors come wrapped."""
    if isinstance(err, DdgdError):
        return err
    behind = [*getattr(err, "worker_failures", {}).values(), err.__cause__, err.__context__, getattr(err, "cause", None)]
    found = (_ours(inner) for inner in behind if isinstance(inner, BaseException))
    return next((inner for inner in found if inner is not None), None)
