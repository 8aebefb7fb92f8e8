"""The one way to execute a stage: find its artifact, or run it in a scratch folder and publish what it made. Torch-free."""

import importlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddgd_ray.errors import DamagedArtifact, StageError
from ddgd_ray.spec.stages import StageSpec
from ddgd_ray.stages.base import GOES_ON, Context, Outside, StageCall
from ddgd_ray.stages.curves import CURVES, attempt, reporter, seconds_before, write_curves
from ddgd_ray.storage.commit import room_for
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Artifact, Store

log = logging.getLogger(__name__)

CHUNKED = ("encode", "sample", "evaluate", "test")  # their rows without gradient follow ctx.chunk
LEAST_CHUNK = 8


def publish_call(call: StageCall, store: Store, ctx: Context) -> tuple[Artifact, bool]:
    """The artifact of `call` and whether it was there already; otherwise runs the stage under a lease on its key."""
    found = _there(call, store)
    if found is not None:
        return found, True
    with store.lease(call.key):
        found = store.get(*call.ref)  # made by another process while we waited
        if found is not None:
            return found, True
        return make(call, store, ctx), False


def publish_packed(calls: Sequence[StageCall], store: Store, ctx: Context) -> None:
    """Publishes calls of one stage that differ in their seeds alone, as many at once as the stage's `num_at_once` says."""
    module = _module_of(calls[0].stage)
    missing = [call for call in {call.key: call for call in calls}.values() if _there(call, store) is None]
    while missing:
        inputs = _input_paths(missing[0], store)
        num = module.num_at_once([call.spec for call in missing], inputs, ctx)
        with ExitStack() as leases:
            for key in sorted(call.key for call in missing[:num]):  # in one order everywhere: two workers cannot wait in a ring
                leases.enter_context(store.lease(key))
            make_packed([call for call in missing[:num] if not store.has(*call.ref)], store, ctx)
        missing = missing[num:]


def make(call: StageCall, store: Store, ctx: Context) -> Artifact:
    """The published artifact of a stage, run in a scratch folder; the caller holds the lease on the key."""
    (artifact,) = make_packed([call], store, ctx)
    return artifact


def make_packed(calls: Sequence[StageCall], store: Store, ctx: Context) -> list[Artifact]:
    """The published artifacts of calls that are run together, each in a scratch folder of its own.

    The seconds of each are an equal share of those of the pack, and for a stage that goes on from where it was, the seconds
    of its earlier attempts with them. Python modules are imported before the clock starts: the first run of a stage in a
    process has the seconds of the second.
    """
    if not calls:
        return []
    import_for(calls[0], ctx)
    return _made_within_memory(calls, store, ctx, 0)


def _made_within_memory(calls: Sequence[StageCall], store: Store, ctx: Context, num_failures: int) -> list[Artifact]:
    """The published artifacts, after as many attempts as it takes to find what fits into the GPU's memory.

    num_failures: attempts that did not fit so far. No attempt is made twice with the same settings.
    """
    while True:
        try:
            return _made(calls, store, ctx, num_failures)
        except Exception as err:
            if type(err).__name__ != "OutOfMemoryError":  # torch's; this module does without torch
                raise
            what = str(err).partition("\n")[0][:200]
        finally:
            _release()
        # outside of `except`: the error's traceback held the tensors of the failed attempt
        num_failures += 1
        if len(calls) > 1:
            log.warning("%s: out of memory with %d at once, each alone now: %s", calls[0].stage, len(calls), what)
            alone = replace(ctx, pack=1)
            return [one for call in calls for one in _made_within_memory([call], store, alone, num_failures)]
        ctx = _lighter(calls[0], ctx, what)


def _lighter(call: StageCall, ctx: Context, what: str) -> Context:
    """The context of another attempt that needs less memory. Raises StageError when nothing is left to make smaller.

    With several ranks one of them cannot begin anew alone. Nothing that is made smaller changes a result beyond rounding.
    """
    where = f"{call.stage} {call.key[:8]}"
    share = getattr(call.spec, "batch_size", 1) // ctx.num_ranks
    micro_batch = (ctx.micro_batch or share) // 2 if call.stage == "finetune" else 0
    if ctx.num_ranks == 1 and micro_batch:
        log.warning("%s: out of memory, again with micro_batch %d: %s", where, micro_batch, what)
        return replace(ctx, micro_batch=micro_batch)
    if ctx.num_ranks == 1 and call.stage in CHUNKED and ctx.chunk > LEAST_CHUNK:
        log.warning("%s: out of memory, again with chunk %d: %s", where, ctx.chunk // 2, what)
        return replace(ctx, chunk=ctx.chunk // 2)
    fix = "give the job a larger share of the GPU: resources.gpus" + (", or resources.recompute" if micro_batch else "")
    raise StageError(f"out of memory: {what}", code="out-of-memory", where=where, fix=fix)


def _release() -> None:
    """Lets a GPU have back what the stage no longer uses; nothing where torch was never imported."""
    if "torch" in sys.modules:
        importlib.import_module("ddgd_ray.stages.parts.device").release()


def _made(calls: Sequence[StageCall], store: Store, ctx: Context, num_failures: int) -> list[Artifact]:
    """The published artifacts of one attempt; metrics say how often memory did not suffice before it."""
    kept = store.keep(calls[0].key) if calls[0].stage in GOES_ON else None
    with ExitStack() as scratches:
        outs = [scratches.enter_context(store.scratch(call.key)) for call in calls]
        started = time.monotonic()
        with room_for(outs[0]), attempt(kept) if kept else nullcontext():
            metrics = run_calls(calls, store, outs, ctx)
        seconds = (time.monotonic() - started) / len(calls)
        with suppress(OSError, KeyError, TypeError):  # damaged notes of earlier attempts are no reason to lose the result
            seconds += seconds_before(kept, calls[0].stage) if kept else 0.0
        artifacts = []
        for call, out, found in zip(calls, outs, metrics, strict=True):
            found |= {"num_out_of_memory": float(num_failures)} if num_failures else {}
            artifacts.append(store.publish(out, call.spec, call.input_keys(), found, seconds, ctx.held))
            store.drop_kept(call.key)
            log.info("%s %s published in %.1f s", call.key[:8], call.stage, seconds)
    return artifacts


def run_call(call: StageCall, store: Store, out: Path, ctx: Context) -> dict[str, float]:
    """The metrics of one stage, run into `out`; see run_calls."""
    (metrics,) = run_calls([call], store, [out], ctx)
    return metrics


def run_calls(calls: Sequence[StageCall], store: Store, outs: Sequence[Path], ctx: Context) -> list[dict[str, float]]:
    """The metrics of each call, run into `outs` with folders to keep checkpoints in; their curves land in curves.jsonl.

    Several calls go to the stage's run_packed: they have the same inputs. Raises StageError for a metric that is not finite.
    """
    module = _module_of(calls[0].stage)
    inputs = _input_paths(calls[0], store)
    with ExitStack() as files:
        ctxs, kept = [], []
        for call, out in zip(calls, outs, strict=True):
            keep = store.keep(call.key, is_helper=ctx.rank > 0)
            kept.append((keep if ctx.rank == 0 else out) / CURVES)
            curves = files.enter_context(kept[-1].open("a", buffering=1))
            ctxs.append(replace(ctx, report=reporter(curves, call, ctx), keep=keep))
        found: list[dict[str, float]]
        if len(calls) == 1:
            found = [module.run(calls[0].spec, inputs, outs[0], ctxs[0])]
        else:
            found = module.run_packed([call.spec for call in calls], inputs, outs, ctxs)
    for call, curve, out, metrics in zip(calls, kept, outs, found, strict=True):
        write_curves(curve, out / CURVES)
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            fix = "lower the learning rate or the weights of the losses"
            raise StageError(f"{', '.join(bad)} not finite", code="non-finite", where=f"{call.stage} {call.key[:8]}", fix=fix)
    return found


def shares_of(call: StageCall, store: Store, ctx: Context) -> Any:
    """The stage's work in parts: `len(shares)`, and `shares.make(places)`, which keeps them for the run that gathers them.

    For the holder of the lease and the processes that it has make them.
    """
    module = _module_of(call.stage)
    return module.Shares(call.spec, _input_paths(call, store), store.keep(call.key, is_helper=True), ctx)


def import_for(call: StageCall, ctx: Context) -> None:
    """Imports the stage's module and the packages that the stage imports for some specs only.

    A package that is not installed is passed over: the stage itself says what to install.
    """
    _module_of(call.stage)
    for name in _packages_of(call.spec, ctx):
        with suppress(ImportError):
            importlib.import_module(name)


def _packages_of(spec: StageSpec, ctx: Context) -> Iterator[str]:
    """Names of the packages that are not imported with the stage's module."""
    if getattr(getattr(spec, "images", None), "source", "") == "digits":
        yield "sklearn.datasets"
    if getattr(spec, "network", "").startswith("timm/"):
        yield "timm"
    if getattr(spec, "adapter", "") == "lora":
        yield "peft"
    if ctx.compiled:
        yield "torch._dynamo"


def _there(call: StageCall, store: Store) -> Artifact | None:
    return store.sound(*call.ref) if store.still_has(*call.ref) else None


def _module_of(stage: str) -> Any:
    """The module that runs a stage: it has the stage's name, but for `test`, which would read as a file of tests."""
    return importlib.import_module(f"ddgd_ray.stages.{'final_test' if stage == 'test' else stage}")


def _input_paths(call: StageCall, store: Store) -> dict[str, Path]:
    return {name: _input_path(name, value, call, store) for name, value in call.inputs.items()}


def _input_path(name: str, value: Ref | Outside, call: StageCall, store: Store) -> Path:
    if isinstance(value, Outside):
        return Path(value.path)
    artifact = store.usable(*value)
    if artifact is None:
        raise DamagedArtifact(
            f"{call.stage} needs the {value.stage} artifact {value.key[:8]} as its {name}, which is not in the store",
            where=str(store),
            fix="run the same command again: it is made first",
        )
    return artifact.path
