"""The interface of a stage, and the one way to execute it. Torch-free: the engine imports this and no other stage.

A stage module offers `run(spec, inputs, out, ctx) -> metrics`: it reads the folders in `inputs`, writes files into the empty
folder `out`, and returns named numbers that summarise what it made.
"""

import importlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, StageError
from ddgd_ray.spec.stages import StageSpec
from ddgd_ray.store import Artifact, Store, key_of

log = logging.getLogger(__name__)

CURVES = "curves.jsonl"


@dataclass(frozen=True)
class Outside:
    """An input that no stage made: its fingerprint enters the key, its path does not."""

    fingerprint: str
    path: str


@dataclass(frozen=True)
class StageCall:
    """One stage with its inputs: keys of other calls as (stage, key), or outside inputs."""

    spec: StageSpec
    inputs: Mapping[str, "tuple[str, str] | Outside"]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of(self.spec, self.input_keys()))

    @property
    def stage(self) -> str:
        return self.spec.stage

    @property
    def ref(self) -> tuple[str, str]:
        return (self.stage, self.key)

    def input_keys(self) -> dict[str, str]:
        return {name: value.fingerprint if isinstance(value, Outside) else value[1] for name, value in self.inputs.items()}


@dataclass
class Context:
    """What a stage may know of its surroundings; nothing here changes what it computes.

    report(step, metrics): a point of its curves. chunk: rows a forward pass without gradient may hold. keep: a folder, the
    same for all ranks, that outlives a crash of the stage and is gone once it is published; None: nothing is kept.
    checkpoint_steps: optimizer steps between checkpoints, 0 for none. micro_batch: rows that a pass with gradient may hold, 0
    for a worker's whole share. compiled: torch.compile the network's blocks. recompute: keep no activations inside a block.
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


def publish_call(call: StageCall, store: Store, ctx: Context) -> tuple[Artifact, bool]:
    """The artifact of `call` and whether it was there already; otherwise runs the stage under a lease on its key."""
    found = store.get(*call.ref)
    if found is not None:
        return found, True
    with store.lease(call.key):
        found = store.get(*call.ref)  # made by another process while we waited
        if found is not None:
            return found, True
        return make(call, store, ctx), False


def make(call: StageCall, store: Store, ctx: Context) -> Artifact:
    """Run the stage in a scratch folder and publish it; the caller holds the lease on the key."""
    with store.scratch(call.key) as scratch:
        started = time.monotonic()
        metrics = run_call(call, store, scratch, ctx)
        seconds = time.monotonic() - started
        artifact = store.publish(scratch, call.spec, call.input_keys(), metrics, seconds)
        store.drop_kept(call.key)
    log.info("%s %s published in %.1f s", call.key[:8], call.stage, seconds)
    return artifact


def run_call(call: StageCall, store: Store, out: Path, ctx: Context) -> dict[str, float]:
    """Run the stage into `out`, with a folder to keep checkpoints in; curves reported on the way land in curves.jsonl."""
    module: Any = importlib.import_module(f"ddgd_ray.stages.{call.stage}")
    inputs = {name: _input_path(name, value, call, store) for name, value in call.inputs.items()}
    keep = store.keep(call.key)
    with (keep / (CURVES if ctx.rank == 0 else f"{ctx.rank}.{CURVES}")).open("a", buffering=1) as curves:

        def report(step: int, metrics: Mapping[str, float]) -> None:
            point = {name: float(value) for name, value in metrics.items()}
            curves.write(json.dumps({"step": step, "time": time.time()} | point) + "\n")
            ctx.report(step, point)

        metrics: dict[str, float] = module.run(call.spec, inputs, out, replace(ctx, report=report, keep=keep))
    _write_curves(Path(curves.name), out / CURVES)
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise StageError(f"{', '.join(bad)} not finite", code="non-finite", where=f"{call.stage} {call.key[:8]}")
    return metrics


def _write_curves(kept: Path, target: Path) -> None:
    """A stage that went on from a checkpoint reports some steps again: the later line of a step stands."""
    points = [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")]
    sound = {point["step"]: json.dumps(point) for point in points}
    target.write_text("".join(f"{sound[step]}\n" for step in sorted(sound)))


def _input_path(name: str, value: "tuple[str, str] | Outside", call: StageCall, store: Store) -> Path:
    if isinstance(value, Outside):
        return Path(value.path)
    artifact = store.get(*value)
    if artifact is None:
        raise ArtifactError(
            f"{call.stage} needs the {value[0]} artifact {value[1][:8]} as its {name}, which is not in the store",
            where=str(store.root),
            fix="run the same command again: it is made first",
        )
    store.verify(artifact, contents=False)
    return artifact.path


def read_curves(artifact: Artifact) -> list[dict[str, float]]:
    """The points that the stage reported, in order; each has `step` and `time` (seconds since 1970)."""
    path = artifact.path / CURVES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
