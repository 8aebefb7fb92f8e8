"""Rates of this machine for what a sweep lacks: a few steps of each missing stage on a few images, timed.

Each stage runs once to warm up, so that imports and first allocations never count, and again at one or more lengths: the
difference is what a unit of work takes, the rest what a call takes however long it is. What grows with the number of images is
measured on a part of them and multiplied. Nothing of it enters the user's store.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddgd_ray.conduct.quiet_clock import QuietClock
from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.conduct.work import context_of
from ddgd_ray.inputs.counts import TESTS_PER_CLASS, Counts, counts_of
from ddgd_ray.inputs.fingerprints import resolve
from ddgd_ray.inputs.imagefolder import image_files
from ddgd_ray.plan.costs import Rate, Rates, kind_of, work_of
from ddgd_ray.plan.plan import Trial, plan_arm
from ddgd_ray.spec.evaluation import EvaluateSpec, FeaturesSpec, SelectSpec
from ddgd_ray.spec.preset import with_overrides
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import AutoencoderSpec, FinetuneSpec, ImagesSpec, PretrainSpec, SampleSpec, StageSpec
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.stages.base import Context, Outside, StageCall
from ddgd_ray.stages.publish import publish_call, run_call
from ddgd_ray.storage.store import Artifact, Store

log = logging.getLogger(__name__)

ENOUGH_S = 1.5
"""Seconds that the longer of two lengths must take beyond the shorter."""
SHORTEST = 2
FACTOR = 4
"""The factor by which a length grows until it takes long enough."""
MAX_IPC = 10
MOST_TESTED = 20
"""The number of images a class that a classifier is tested on here."""
BUSY = 1.5
"""The factor from which on it is told what neighbours on the machine do to the clock."""
SPREAD = 1.25
"""The factor up and down of the range around one measurement, for other jobs on the machine."""


@dataclass(frozen=True)
class Measured:
    """What a call of one kind takes: seconds = fixed_s + unit_s * units; size_bytes of its artifact."""

    fixed_s: float
    unit_s: float
    size_bytes: float

    def seconds(self, units: float) -> float:
        return self.fixed_s + self.unit_s * units


Plan = Callable[[Sweep], Sequence[Trial]]
"""The trials of a sweep whose stages are to be measured, the same ones in the same order for equal structure."""


def measure(
    sweep: Sweep, plan: Plan, store: Store, known: Rates, tell: Callable[[str], None] = lambda text: None
) -> dict[tuple[str, str], Measured]:
    """{kind of call: what was measured}, for kinds that the store lacks and `known` has no rate of.

    tell: called with a line on what is measured now.
    """
    missing = {call.ref: call for trial in plan(sweep) for call in trial.calls() if not store.has(*call.ref)}
    wanted = {kind_of(call) for call in missing.values() if work_of_call(call)[0] not in known.get(call.stage, {})}
    if not wanted:
        return {}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in workers; before torch is imported, or it has no effect
    images = sweep.preset_with({}).images
    with tempfile.TemporaryDirectory(prefix="ddgd-measure-") as name:
        folder = Path(name)
        full = counts_of(images)
        few = _write_images(images, folder / "images", _needed(missing.values(), images), full)
        small = _on_few(sweep, folder / "images")
        bench = _Bench(Store(folder / "store", (store.root, *store.read_only)), sweep, few, full, tell)
        bench.store.prepare()
        pairs = zip(plan(sweep), plan(small), strict=True)
        with _stages_hushed():
            for ours, theirs in pairs:
                for call, stand_in in zip(ours.calls(), theirs.calls(), strict=True):
                    bench.run(stand_in, is_wanted=kind_of(call) in wanted, kind=kind_of(call))
        if bench.wall_s > BUSY * bench.quiet_s:
            slower = bench.wall_s / bench.quiet_s
            tell(f"done; other programs made it {slower:.1f} times slower, and are left out of what it says")
        return bench.found


@contextmanager
def _stages_hushed() -> Iterator[None]:
    """Errors of stages are logged, warnings are not: what a stage of two steps warns of is no news."""
    logger = logging.getLogger("ddgd_ray.stages")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def measured_rates(sweep: Sweep, store: Store, known: Rates, tell: Callable[[str], None] = lambda text: None) -> Rates:
    """The rates of all stages that the sweep lacks and `known` has no rates of; a search counts at the preset's values."""

    def plan(planned: Sweep) -> list[Trial]:
        return planned_trials(planned) + (plan_arm(planned, "typical", {}) if planned.spec.search else [])

    return rates_from([call for trial in plan(sweep) for call in trial.calls()], measure(sweep, plan, store, known, tell))


def rates_from(calls: Iterable[StageCall], measured: Mapping[tuple[str, str], Measured]) -> dict[str, dict[str, Rate]]:
    """The rates of the families of these calls: seconds a unit, on average over the calls that were measured."""
    per_family: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for call in calls:
        found = measured.get(kind_of(call))
        if found is not None:
            family, units = work_of_call(call)
            per_family.setdefault(call.stage, {}).setdefault(family, []).append(
                (found.seconds(units) / units, found.size_bytes)
            )
    return {stage: {family: _rate(values) for family, values in families.items()} for stage, families in per_family.items()}


def _rate(values: Sequence[tuple[float, float]]) -> Rate:
    mean, size = (sum(column) / len(values) for column in zip(*values, strict=True))
    return Rate(1, mean / SPREAD, mean, mean * SPREAD, size)


def work_of_call(call: StageCall) -> tuple[str, float]:
    return work_of(call.stage, call.spec.canonical(), call.input_keys())


class _Bench:
    """A store of its own in which shortened calls run in order, and those that are wanted are timed."""

    def __init__(self, store: Store, sweep: Sweep, few: Counts, full: Counts, tell: Callable[[str], None]) -> None:
        self.store, self.sweep, self.few, self.full, self.tell = store, sweep, few, full, tell
        self.found: dict[tuple[str, str], Measured] = {}
        self.wall_s, self.quiet_s = 0.0, 0.0
        self._stand_ins: dict[tuple[str, str], StageCall] = {}
        self._by_kind: dict[tuple[str, str], StageCall] = {}

    def run(self, call: StageCall, *, is_wanted: bool, kind: tuple[str, str]) -> None:
        """Publish the call's stand-in, whose artifact later calls read; time it if nobody has timed its kind."""
        if call.ref in self._stand_ins:
            return
        if kind in self._by_kind:  # another arm or seed: the same work
            self._stand_ins[call.ref] = self._by_kind[kind]
            return
        inputs = {
            name: value if isinstance(value, Outside) else self._stand_ins[value].ref for name, value in call.inputs.items()
        }
        short = StageCall(shortened(call.spec, SHORTEST), inputs)
        self._stand_ins[call.ref] = self._by_kind[kind] = short
        context = context_of(self.sweep.spec.resources, call.stage)
        artifact, _ = publish_call(short, self.store, context)  # the warm-up
        if is_wanted:
            self.tell(" ".join(kind).strip())
            self.found[kind] = self._timed(call, short, artifact, context)
            log.info("measured %s: %s", " ".join(kind), self.found[kind])

    def _timed(self, call: StageCall, short: StageCall, artifact: Artifact, ctx: Context) -> Measured:
        grows = self._growth(call)
        size = grows * sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        first = self._seconds(short, ctx)
        if not is_lengthy(call.spec):
            return Measured(grows * first, 0.0, size)
        before = short
        length, longest = SHORTEST, _length(call.spec)
        unit_s = first / max(1.0, work_of_call(short)[1])
        while length < longest:
            length = min(FACTOR * length, longest)
            longer = StageCall(shortened(call.spec, length), short.inputs)
            seconds = self._seconds(longer, ctx)
            unit_s = max(0.0, (seconds - first) / (work_of_call(longer)[1] - work_of_call(before)[1]))
            if seconds - first > ENOUGH_S:
                break
        fixed = max(0.0, first - unit_s * work_of_call(short)[1])
        return Measured(fixed + self._tests_s(call, short, ctx, first), unit_s, size)

    def _tests_s(self, call: StageCall, short: StageCall, ctx: Context, first: float) -> float:
        """Seconds of a classifier's further tests, on all images that it is judged by; 0 of other stages."""
        spec = call.spec
        if not isinstance(spec, EvaluateSpec):
            return 0.0
        num = min(spec.protocol.num_tests, _length(spec))
        more = max(2, min(num, MAX_IPC))
        often = StageCall(shortened(spec, SHORTEST, num_tests=more), short.inputs)
        once = max(0.0, (self._seconds(often, ctx) - first) / (min(more, SHORTEST) - 1 or 1))
        return once * (num * self.full.judged / max(1, self.few.judged) - 1)

    def _growth(self, call: StageCall) -> float:
        """The factor by which a call takes longer on all images than on the few here."""
        train, judged = self.full.train / max(1, self.few.train), self.full.judged / max(1, self.few.judged)
        is_of_all = (isinstance(call.spec, SelectSpec) and call.spec.method == "all") or (
            isinstance(call.spec, FeaturesSpec) and "set" not in call.inputs
        )
        if call.stage in ("encode", "quality") or is_of_all:
            return train
        return judged if call.stage in ("decode", "test") else 1.0

    def _seconds(self, call: StageCall, ctx: Context) -> float:
        with self.store.scratch(call.key) as out:
            self.store.drop_kept(call.key)
            with QuietClock(ctx.num_threads) as clock:
                run_call(call, self.store, out, ctx)
        self.store.drop_kept(call.key)
        self.wall_s += clock.wall_s
        self.quiet_s += clock.seconds
        return clock.seconds


def is_lengthy(spec: StageSpec) -> bool:
    return _length(spec) > SHORTEST


def _length(spec: StageSpec) -> int:
    """The number of steps of a stage, 0 where it has none; for a classifier by epochs, more than are ever needed here."""
    if isinstance(spec, AutoencoderSpec):
        return spec.steps if spec.kind == "kl" else 0
    if isinstance(spec, PretrainSpec | FinetuneSpec | SampleSpec):
        return spec.steps
    if isinstance(spec, EvaluateSpec):
        return spec.protocol.steps or 10**6
    return 0


def shortened(spec: Any, length: int, *, num_tests: int = 1) -> Any:
    """A copy of a spec with at most `length` steps and MAX_IPC images a class."""
    values = {name: getattr(spec, name) for name in type(spec).model_fields}
    if isinstance(spec, EvaluateSpec):
        values["protocol"] = _short_protocol(spec.protocol, length, num_tests)
    elif _length(spec):
        values["steps"] = min(length, _length(spec))
    if values.get("ipc"):
        values["ipc"] = min(values["ipc"], MAX_IPC)
    return type(spec).model_validate(values)


def _short_protocol(protocol: ProtocolSpec, length: int, num_tests: int) -> ProtocolSpec:
    values = {name: getattr(protocol, name) for name in type(protocol).model_fields if name != "label"}
    values |= {"steps": min(length, protocol.steps or length), "steps_large": 0, "num_tests": num_tests, "tests_from": 0.0}
    return ProtocolSpec.model_validate(values)


def _needed(calls: Iterable[StageCall], images: ImagesSpec) -> int:
    """The number of training images a class that the shortened calls need: for a batch, and for a set of MAX_IPC."""
    batches = [getattr(call.spec, "batch_size", 0) for call in calls if call.stage in ("pretrain", "finetune")]
    return max(MAX_IPC + 2, math.ceil(max(batches, default=0) / len(images.classes)) + 1)


def _write_images(images: ImagesSpec, to: Path, per_class: int, full: Counts) -> Counts:
    """A folder train/ and val/ of some of the images: links to a folder's own, noise of the same size in place of others."""
    held = _held_here(images)
    files = image_files(images, resolve(images.root, "images.root")) if images.source == "imagefolder" else None
    num_train, num_judged = 0, 0
    for label, name in enumerate(images.classes):
        of_train = files.train[name][: per_class + held] if files else [""] * (per_class + held)
        of_test = files.val[name][:MOST_TESTED] if files else [""] * min(MOST_TESTED, TESTS_PER_CLASS[images.source])
        num_train += len(of_train) - held
        num_judged += len(of_test) + held
        for split, paths in (("train", of_train), ("val", of_test)):
            (to / split / name).mkdir(parents=True)
            for number, path in enumerate(paths):
                _put(path, to / split / name, images, (label, number))
    return Counts(num_train, num_judged)


def _held_here(images: ImagesSpec) -> int:
    return min(images.validation_per_class, MOST_TESTED)


def _put(path: str, folder: Path, images: ImagesSpec, seed: tuple[int, int]) -> None:
    if path:
        os.symlink(path, folder / os.path.basename(path))
        return
    shape = (images.size, images.size) if images.channels == 1 else (images.size, images.size, 3)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"{seed[1]:05d}.png")


def _on_few(sweep: Sweep, root: Path) -> Sweep:
    """The same sweep, over the few images."""
    images = sweep.preset_with({}).images
    changes = {
        "images.source": "imagefolder",
        "images.root": str(root),
        "images.test_per_class": 0,
        "images.validation_per_class": _held_here(images),
    }
    document = with_overrides(sweep.preset, {path: (value, "measure") for path, value in changes.items()}, [])
    largest = min(MAX_IPC, max(sweep.spec.evaluate.ipc))
    evaluate = sweep.spec.evaluate.model_copy(update={"ipc": tuple(min(ipc, largest) for ipc in sweep.spec.evaluate.ipc)})
    return replace(sweep, preset=document, spec=sweep.spec.model_copy(update={"evaluate": evaluate}))
