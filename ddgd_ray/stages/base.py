"""The interface of a stage, and the one way to execute it. Torch-free: the engine imports this and no other stage.

A stage module offers `run(spec, inputs, out, ctx) -> metrics`: it reads the folders in `inputs`, writes files into the empty
folder `out`, and returns named numbers that summarise what it made.
"""

import importlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from ddgd_ray.errors import DamagedArtifact, StageError, Stopped
from ddgd_ray.spec.stages import StageSpec
from ddgd_ray.storage.commit import room_for
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Artifact, Store, key_of

log = logging.getLogger(__name__)

CURVES = "curves.jsonl"
RESUMABLE = ("encode", "sample")
"""Stages that keep, before each report, all they have made: stopping there loses nothing. Fine-tuning sees to itself."""
GOES_ON = (*RESUMABLE, "finetune")
ATTEMPTS = "attempts.jsonl"


@dataclass(frozen=True)
class Outside:
    """An input that no stage made: its fingerprint enters the key, its path does not."""

    fingerprint: str
    path: str


@dataclass(frozen=True)
class StageCall:
    """One stage with its inputs: keys of other calls as (stage, key), or outside inputs."""

    spec: StageSpec
    inputs: "Mapping[str, Ref | Outside]"
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of(self.spec, self.input_keys()))

    @property
    def stage(self) -> str:
        return self.spec.stage

    @property
    def ref(self) -> Ref:
        return Ref(self.stage, self.key)

    def input_keys(self) -> dict[str, str]:
        return {name: value.fingerprint if isinstance(value, Outside) else value.key for name, value in self.inputs.items()}


@dataclass
class Context:
    """What a stage may know of its surroundings; nothing here changes what it computes.

    report(step, metrics): a point of its curves. chunk: rows a forward pass without gradient may hold. keep: a folder
    that outlives a crash of the stage and is gone once it is published, one for all ranks where their hosts share the store;
    None: nothing is kept.
    checkpoint_steps: optimizer steps between checkpoints, 0 for none. micro_batch: rows that a pass with gradient may hold, 0
    for a worker's whole share. compiled: torch.compile the network's blocks. recompute: keep no activations inside a block.
    pack: classifiers to train at once; 0: as many as fit on a GPU, one on a CPU. stop_file: once this file exists, a stage that
    can go on from where it is keeps that and raises Stopped; once stop_file with `.now` behind it exists, so do the others.
    held: CPUs and GPUs of the job over all its workers, for the manifest.
    """

    report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    device: str = "cpu"
    chunk: int = 256
    num_threads: int = 1
    rank: int = 0
    num_ranks: int = 1
    keep: Path | None = None
    checkpoint_steps: int = 0
    micro_batch: int = 0
    compiled: bool = False
    recompute: bool = False
    pack: int = 0
    stop_file: Path | None = None
    held: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_told_to_stop(self) -> bool:
        return self.stop_file is not None and self.stop_file.exists()

    @property
    def is_told_to_stop_now(self) -> bool:
        return self.stop_file is not None and stop_now_file(self.stop_file).exists()


def stop_now_file(stop_file: Path) -> Path:
    return stop_file.with_name(f"{stop_file.name}.now")


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


def _there(call: StageCall, store: Store) -> Artifact | None:
    return store.sound(*call.ref) if store.still_has(*call.ref) else None


def _module_of(stage: str) -> Any:
    """The module that runs a stage: it has the stage's name, but for `test`, which would read as a file of tests."""
    return importlib.import_module(f"ddgd_ray.stages.{'final_test' if stage == 'test' else stage}")


def publish_packed(calls: Sequence[StageCall], store: Store, ctx: Context) -> None:
    """Calls of one stage that differ in their seeds alone, as many at once as module.num_at_once says; each is published."""
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
    """Run the stage in a scratch folder and publish it; the caller holds the lease on the key."""
    (artifact,) = make_packed([call], store, ctx)
    return artifact


def make_packed(calls: Sequence[StageCall], store: Store, ctx: Context) -> list[Artifact]:
    """Run the calls together, each in a scratch folder, and publish them; the seconds of each are an equal share.

    Of stages that go on from where they were, with those of the attempts before.
    """
    if not calls:
        return []
    kept = store.keep(calls[0].key) if calls[0].stage in GOES_ON else None
    with ExitStack() as scratches:
        outs = [scratches.enter_context(store.scratch(call.key)) for call in calls]
        started = time.monotonic()
        with room_for(outs[0]), _attempt(kept) if kept else nullcontext():
            metrics = run_calls(calls, store, outs, ctx)
        seconds = (time.monotonic() - started) / len(calls)
        with suppress(OSError, KeyError, TypeError):  # damaged notes of earlier attempts are no reason to lose the result
            seconds += seconds_before(kept, calls[0].stage) if kept else 0.0
        artifacts = []
        for call, out, found in zip(calls, outs, metrics, strict=True):
            artifacts.append(store.publish(out, call.spec, call.input_keys(), found, seconds, ctx.held))
            store.drop_kept(call.key)
            log.info("%s %s published in %.1f s", call.key[:8], call.stage, seconds)
    return artifacts


@contextmanager
def _attempt(kept: Path) -> Iterator[None]:
    """Note when it begins and, if it is stopped, when: its end is told by its points where it is killed."""
    curves = kept / CURVES
    offset = curves.stat().st_size if curves.is_file() else 0
    with (kept / ATTEMPTS).open("a", buffering=1) as file:
        file.write(json.dumps({"began": time.time(), "offset": offset}) + "\n")
        try:
            yield
        except Stopped:
            file.write(json.dumps({"stopped": time.time()}) + "\n")
            raise


def seconds_before(kept: Path, stage: str) -> float:
    """Of the attempts before the last, without what a later one did again: of a fine-tuning, points that it reported again."""
    curves = (kept / CURVES).read_bytes()
    attempts: list[dict[str, float]] = []
    for line in whole_lines((kept / ATTEMPTS).read_bytes()):
        if "began" in line:
            attempts.append(line)
        elif attempts:
            attempts[-1] |= line
    total, again_from, end = 0.0, math.inf, len(curves)
    for attempt in reversed(attempts):
        points = whole_lines(curves[int(attempt["offset"]) : end])
        if attempt is not attempts[-1]:
            stand = [point["time"] for point in points if point["step"] < again_from]
            until = max(stand, default=attempt["began"])
            if len(stand) == len(points):
                until = attempt.get("stopped", until)
            total += max(0.0, until - attempt["began"])
        if stage not in RESUMABLE:
            again_from = min([again_from, *(point["step"] for point in points)])
        end = int(attempt["offset"])
    return total


def whole_lines(content: bytes) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that is appended to; a line that a crash has cut is passed over."""
    found = []
    for text in content.splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


def run_call(call: StageCall, store: Store, out: Path, ctx: Context) -> dict[str, float]:
    """run_calls of one."""
    (metrics,) = run_calls([call], store, [out], ctx)
    return metrics


def run_calls(calls: Sequence[StageCall], store: Store, outs: Sequence[Path], ctx: Context) -> list[dict[str, float]]:
    """Run a stage into `outs`, with folders to keep checkpoints in; curves reported on the way land in curves.jsonl.

    Several calls go to the stage's run_packed: they have the same inputs.
    """
    module = _module_of(calls[0].stage)
    inputs = _input_paths(calls[0], store)
    with ExitStack() as files:
        ctxs, kept = [], []
        for call, out in zip(calls, outs, strict=True):
            keep = store.keep(call.key, is_helper=ctx.rank > 0)
            kept.append((keep if ctx.rank == 0 else out) / CURVES)
            curves = files.enter_context(kept[-1].open("a", buffering=1))
            ctxs.append(replace(ctx, report=_reporter(curves, call, ctx), keep=keep))
        found: list[dict[str, float]]
        if len(calls) == 1:
            found = [module.run(calls[0].spec, inputs, outs[0], ctxs[0])]
        else:
            found = module.run_packed([call.spec for call in calls], inputs, outs, ctxs)
    for call, curve, out, metrics in zip(calls, kept, outs, found, strict=True):
        _write_curves(curve, out / CURVES)
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise StageError(f"{', '.join(bad)} not finite", code="non-finite", where=f"{call.stage} {call.key[:8]}")
    return found


def shares_of(call: StageCall, store: Store, ctx: Context) -> Any:
    """The stage's work in parts: `len(shares)`, and `shares.make(places)`, which keeps them for the run that gathers them.

    For the holder of the lease and the processes that it has make them.
    """
    module = _module_of(call.stage)
    return module.Shares(call.spec, _input_paths(call, store), store.keep(call.key, is_helper=True), ctx)


def _reporter(curves: TextIO, call: StageCall, ctx: Context) -> Callable[[int, Mapping[str, float]], None]:
    def report(step: int, metrics: Mapping[str, float]) -> None:
        """Also where an order to stop is obeyed; not with several ranks, of which the others would wait for this one."""
        point = {name: float(value) for name, value in metrics.items()}
        curves.write(json.dumps({"step": step, "time": time.time()} | point) + "\n")
        ctx.report(step, point)
        if ctx.num_ranks == 1 and (ctx.is_told_to_stop_now or (call.stage in RESUMABLE and ctx.is_told_to_stop)):
            raise Stopped(f"told to stop at step {step}", where=f"{call.stage} {call.key[:8]}")

    return report


def _input_paths(call: StageCall, store: Store) -> dict[str, Path]:
    return {name: _input_path(name, value, call, store) for name, value in call.inputs.items()}


def _write_curves(kept: Path, target: Path) -> None:
    """A stage that went on from a checkpoint reports some steps again: the later line of a step stands."""
    sound = {point["step"]: json.dumps(point) for point in whole_lines(kept.read_bytes())}
    target.write_text("".join(f"{sound[step]}\n" for step in sorted(sound)))


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


def read_newest_point(kept: Path) -> dict[str, float]:
    """The last point that the stage which is being made has reported, {} before the first. kept: its folder in the store."""
    try:
        point = json.loads((kept / CURVES).read_bytes()[-4000:].splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return {}
    return point if isinstance(point, dict) else {}


def read_curves(artifact: Artifact) -> list[dict[str, float]]:
    """The points that the stage reported, in order; each has `step` and `time` (seconds since 1970)."""
    path = artifact.path / CURVES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
