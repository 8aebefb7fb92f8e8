"""Sweeps that would end with exit code 0 and a wrong or empty table: refused, or warned of, before any stage runs.

A trap is refused where the sweep cannot give what it asks for, and warned of where it gives something else than it seems to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from ddgd_ray.errors import DdgdError, SpecErrors
from ddgd_ray.inputs.counts import counts_of
from ddgd_ray.plan.network_traps import network_traps
from ddgd_ray.plan.trap import Trap
from ddgd_ray.spec.preset import Preset
from ddgd_ray.spec.space import Choice
from ddgd_ray.spec.stages import AutoencoderSpec, FinetuneSpec, MemorySpec, PretrainSpec
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import StageName

HALF = 0.5
"""An average that holds more than this share of the weights it started from is no average of what was learned."""
MAX_CELLS = 500
"""Cells of a grid that are looked at one by one; of a larger one each value by itself."""
WIDTH_UNIT = 8
"""Channels of the small autoencoder are normalised in groups of eight."""


def traps(sweep: Sweep) -> list[Trap]:
    """All traps of a sweep, equal ones of several configurations as one that names some of them."""
    found: dict[Trap, list[str]] = {}
    for trap in _of_sweep(sweep):
        found.setdefault(trap, [])
    cells = list(_configurations(sweep))
    for name, preset in cells:
        for trap in _of_preset(sweep, preset):
            found.setdefault(trap, []).append(name)
    return [_with_arms(trap, names, len(cells)) for trap, names in found.items()]


def refuse(sweep: Sweep) -> list[Trap]:
    """The traps that are warned of. Raises SpecErrors with those that are refused."""
    found = traps(sweep)
    errors = [trap.as_error() for trap in found if trap.level == "refuse"]
    if errors:
        raise SpecErrors(errors)
    return found


def _with_arms(trap: Trap, names: Sequence[str], num_cells: int) -> Trap:
    if not names or len(names) == num_cells:
        return trap
    shown = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
    return replace(trap, arms=f"where {shown}")


def _configurations(sweep: Sweep) -> Iterator[tuple[str, Preset]]:
    """(words, preset) of each configuration that is known beforehand; of a space, its first points and its ends."""
    points: list[Mapping[str, Any]] = [{}] if not sweep.spec.vary else []
    size = 1
    for values in sweep.spec.vary.values():
        size *= len(values)
    if size <= MAX_CELLS:
        points += sweep.spec.grid()
    else:
        points += [{path: value} for path, values in sweep.spec.vary.items() for value in values]
    if sweep.spec.search is not None:
        points += sweep.spec.search.first
        for path, distribution in sweep.space.items():
            parents = {parent: allowed[0] for parent, allowed in distribution.when.items()}
            ends = distribution.values if isinstance(distribution, Choice) else (distribution.low, distribution.high)
            points += [parents | {path: value} for value in ends]
    for point in points:
        words = ", ".join(f"{path.removeprefix('finetune.')} {value}" for path, value in point.items())
        yield words, sweep.preset_with(point)


def _of_sweep(sweep: Sweep) -> Iterator[Trap]:
    """Those that every configuration shares."""
    spec, preset = sweep.spec, sweep.preset_with({})
    images = preset.images
    if images.root and images.source in ("fashion", "digits"):
        what = (
            f"preset {spec.preset} never reads a folder: its images are {images.source}, and images.root would change nothing"
        )
        fix = "add --preset imagefolder, or give --images FOLDER in place of images.root"
        yield Trap("root-unread", "refuse", sweep.preset.where(("images", "root")), what, fix)
    chooses = bool(spec.vary) or bool(spec.parts) or spec.search is not None
    if chooses and spec.objective.needs_validation and not images.validation_per_class:
        metric = next(name for name in spec.objective.all_metrics if name in ("val_top1", "top1_selected"))
        what = f"{metric} is measured on held-out training images, and none are held out: no arm could be chosen"
        fix = "hold some out: --set images.validation_per_class=20; or choose on the test images: objective.metric: top1_last"
        yield Trap("no-validation", "refuse", sweep.source.where(("objective", "metric")), what, fix)
    yield from network_traps(sweep, preset)


def _of_preset(sweep: Sweep, preset: Preset) -> Iterator[Trap]:
    """Those of one configuration."""
    spec = sweep.spec
    tunes = bool(spec.vary) or bool(spec.parts) or spec.search is not None or {"plain", "pretrained"} & set(spec.controls)
    if not tunes:  # ready-made sets alone, or controls of real images: nothing of it runs
        return
    yield from _shape_traps(sweep, preset)
    yield from _batch_traps(sweep, preset)
    if isinstance(preset.backbone, PretrainSpec):
        held = preset.backbone.ema_decay**preset.backbone.steps
        if held > HALF:
            yield _average(sweep, "backbone", preset.backbone.steps, held, "or train longer: backbone.steps")
    tune = preset.finetune
    if not tune.steps:
        return
    held = 0.0 if tune.ema_warmup else tune.ema_decay**tune.steps
    if held > HALF and preset.sample.weights == "ema":
        yield _average(sweep, "finetune", tune.steps, held, "or set finetune.ema_warmup: true, or sample.weights: raw")
    yield from _memory_traps(sweep, preset)


def _average(sweep: Sweep, part: str, steps: int, held: float, more: str) -> Trap:
    what = f"after {steps} steps the averaged weights, which are used, still hold {held:.0%} of those that they started from"
    decay = 0.05 ** (1 / steps)
    fix = f"lower {part}.ema_decay, e.g. to {decay:.4g}, {more}"
    return Trap("average-of-start", "warn", _where(sweep, f"{part}.ema_decay"), what, fix)


def _memory_traps(sweep: Sweep, preset: Preset) -> Iterator[Trap]:
    tune = preset.finetune
    seen = tune.steps * tune.batch_size / len(preset.images.classes)
    if tune.memory_scope == "local":
        seen /= tune.local_ranks
    pairs = (("memory_real", tune.memory_real, tune.lambda_r), ("memory_gen", tune.memory_gen, tune.lambda_g))
    for name, memory, weight in pairs:
        if weight and seen < memory.size:
            yield _never_full(sweep, name, memory, seen, tune)


def _never_full(sweep: Sweep, name: str, memory: MemorySpec, seen: float, tune: FinetuneSpec) -> Trap:
    field = f"finetune.{name}.size"
    varied = f"finetune.{name}.pop" in sweep.spec.vary
    what = (
        f"{name} holds {memory.size} latents a class, and about {seen:.0f} arrive in {tune.steps} steps of {tune.batch_size}: "
    )
    what += "it never fills, and pop decides nothing" + (": its arms will be equal" if varied else "")
    fix = f"lower {field} to {max(2, int(seen / 2))}, or raise finetune.steps"
    return Trap("never-full", "warn", _where(sweep, field), what, fix)


def _batch_traps(sweep: Sweep, preset: Preset) -> Iterator[Trap]:
    """Batches that no epoch fills, and those that the workers cannot share."""
    try:
        num_train = counts_of(preset.images).train
    except DdgdError:
        return  # planning says what is missing
    if num_train < 1:  # and which class is used up
        return
    parts: list[tuple[str, int]] = [("finetune", preset.finetune.batch_size if preset.finetune.steps else 0)]
    if isinstance(preset.backbone, PretrainSpec):
        parts.append(("backbone", preset.backbone.batch_size))
    for part, batch in parts:
        if batch > num_train:
            what = f"a batch of {batch} images is more than the {num_train} training images: an epoch would have no step"
            fix = f"set {part}.batch_size to {max(1, num_train // 2)} or less"
            yield Trap("batch-too-large", "refuse", _where(sweep, f"{part}.batch_size"), what, fix)
    workers = sweep.spec.resources.of("finetune").workers
    tune = preset.finetune
    if tune.steps and tune.batch_size % workers:
        what = f"a batch of {tune.batch_size} images cannot be shared equally by {workers} workers"
        fix = f"set finetune.batch_size to a multiple of {workers}, or change resources.workers"
        yield Trap("batch-not-shared", "refuse", _where(sweep, "finetune.batch_size"), what, fix)
    if tune.steps and tune.memory_scope == "local" and tune.local_ranks != workers:
        what = f"memory_scope: local with local_ranks {tune.local_ranks}, and {workers} workers: the result depends on it"
        fix = f"set finetune.local_ranks: {workers}, or resources.workers: {tune.local_ranks}"
        yield Trap("local-ranks", "refuse", _where(sweep, "finetune.local_ranks"), what, fix)


def machine_traps(sweep: Sweep, *, cores: float, gpus: float, memory_gb: float) -> list[Trap]:
    """What a job asks for and no machine with these amounts has: there the sweep would not begin."""
    stages, resources = get_args(StageName), sweep.spec.resources
    lacking: dict[tuple[str, float, float], list[str]] = {}
    for stage in stages:
        amounts = resources.of(stage)
        asked = {"cpus": amounts.held["cpus"], "gpus": amounts.held["gpus"], "memory_gb": amounts.memory_gb * amounts.workers}
        for name, has in (("cpus", cores), ("gpus", gpus), ("memory_gb", memory_gb)):
            if asked[name] > has:
                lacking.setdefault((name, asked[name], has), []).append(stage)
    where, found = sweep.source.where(("resources",)), []
    for (name, amount, has), names in lacking.items():
        who = "any stage" if len(names) == len(stages) else ", ".join(names)
        what = f"a job of {who} holds {amount:g} {name}, and here are {has:.4g}"
        fix = f"lower resources.{name}, or join a cluster with --address (plan: --cores N --gpus N for another machine)"
        found.append(Trap("resources", "warn", where, what, fix))
    return found


def _shape_traps(sweep: Sweep, preset: Preset) -> Iterator[Trap]:
    """Sizes that the networks trained here cannot be built for."""
    autoencoder, backbone, size = preset.autoencoder, preset.backbone, preset.images.size
    if not isinstance(autoencoder, AutoencoderSpec):
        return
    halvings = len(autoencoder.widths) - 1 if autoencoder.kind == "kl" else 0
    if size % (1 << halvings):
        what = f"images of {size} px cannot be halved {halvings} times, as autoencoder.widths of {halvings + 1} entries asks"
        yield Trap("size-not-halved", "refuse", _where(sweep, "images.size"), what, f"use a multiple of {1 << halvings}")
        return
    odd = [width for width in autoencoder.widths if width % WIDTH_UNIT] if autoencoder.kind == "kl" else []
    if odd:
        what = f"the autoencoder's channels are normalised in groups of {WIDTH_UNIT}, and {odd[0]} is no multiple of it"
        yield Trap("widths", "refuse", _where(sweep, "autoencoder.widths"), what, "use multiples of 8, e.g. [16, 32, 32]")
    side = size >> halvings
    if isinstance(backbone, PretrainSpec) and side % backbone.patch:
        what = f"latents are {side} a side, not divisible by patch {backbone.patch}"
        divisors = [number for number in range(1, side + 1) if side % number == 0]
        fix = f"set backbone.patch to one of {', '.join(map(str, divisors[:4]))}"
        yield Trap("patch", "refuse", _where(sweep, "backbone.patch"), what, fix)


def _where(sweep: Sweep, path: str) -> str:
    """Where a field's value is written: where it varies, or in the preset with its overrides."""
    if path in sweep.places:
        return f"{sweep.places[path]} {path}"
    return sweep.preset.where(tuple(path.split(".")))
