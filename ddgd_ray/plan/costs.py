"""Seconds and bytes that stages will take, by rates read from published artifacts, `plan --measure`, or a calibration file.

A stage's work is counted in units that its seconds grow with: images seen in training, denoising steps times images. A rate is
seconds a unit in one family of equal networks and sizes; a family never seen goes by its stage's others, with a wider range.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import statistics
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.plain_files import read_json
from ddgd_ray.spec.evaluation import STAGE_SPECS
from ddgd_ray.spec.protocol import ProtocolSpec, StepPlan
from ddgd_ray.spec.stages import TRAIN_PER_CLASS
from ddgd_ray.stages.base import StageCall
from ddgd_ray.storage.store import Artifact, Store, write_atomically

log = logging.getLogger(__name__)

SCHEMA = 1
UNTOUCHED = "untouched"
"""Ends the families of fine-tunings of no steps: what they take tells nothing about the others, nor these about them."""
MAX_READ = 400
"""The most artifacts of one stage that a calibration reads."""
UNSEEN = 3.0
"""A family that was never seen may be this many times dearer or cheaper than others of its stage."""
PER_CLASS_UNKNOWN = 1000


@dataclass(frozen=True)
class Rate:
    """Seconds a unit: mean, and the tenth and ninetieth percentile of n artifacts. size_bytes: mean size of one."""

    n: int
    low: float
    mean: float
    high: float
    size_bytes: float


@dataclass(frozen=True)
class Cost:
    """The cost of one stage call. is_known: it was estimated from artifacts of the call's own family."""

    seconds: float = 0.0
    low_s: float = 0.0
    high_s: float = 0.0
    size_bytes: float = 0.0
    is_known: bool = True


Rates = Mapping[str, Mapping[str, Rate]]
"""{stage: {family: rate}}"""


def work_of(stage: str, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[str, float]:
    """The family and the units of work of a call, from its canonical spec and the keys of its inputs."""
    images = spec.get("images") or {}
    num_classes = len(images.get("classes", ())) or 1
    if stage in ("finetune", "pretrain"):
        network = inputs.get("backbone", "")[:12] or f"{spec.get('layers')}x{spec.get('heads')}x{spec.get('head_dim')}"
        family = f"{network} {spec.get('adapter', 'scratch')} {spec.get('dtype', '')}".strip()
        images_seen = float(spec["steps"] * spec["batch_size"])
        return (family, images_seen) if images_seen else (f"{family} {UNTOUCHED}", 1.0)  # a control without fine-tuning
    if stage == "autoencoder":
        widths = "-".join(map(str, spec["widths"]))
        return f"{spec['kind']} {images['size']} {widths}", float(spec["steps"] * spec["batch_size"]) if spec[
            "kind"
        ] == "kl" else 1.0
    if stage == "sample":
        passes = 1 if spec["guidance"] == 1 else 2
        guide = spec.get("guide", {}).get("name", "")  # gradients make a step dearer, a mode's pull does not
        family = f"{inputs['backbone'][:12]} {spec['dtype']}" + (f" {guide}" if guide in ("features", "transport") else "")
        return family, float(spec["ipc"] * num_classes * spec["steps"] * passes)
    if stage == "evaluate":
        return _training(spec, images, num_classes)
    of_folder = f" {inputs['images'][-8:]}" if images.get("source") == "imagefolder" and "images" in inputs else ""
    method = f"{spec.get('method', '')}{spec.get('rule', '')}{spec.get('space', '')}{' set' if 'set' in inputs else ''}"
    return f"{images.get('source', '')} {spec.get('size') or images.get('size', '')} {method}{of_folder}".strip(), 1.0


def kind_of(call: StageCall) -> tuple[str, str]:
    """Stage and family, without the keys in it: calls of one kind do the same work on other weights and images."""
    family, _ = work_of(call.stage, call.spec.canonical(), call.input_keys())
    keys = {key[:12] for key in call.input_keys().values()} | {key[-8:] for key in call.input_keys().values()}
    words = [word for word in family.split() if word not in keys]
    return call.stage, " ".join("folder" if word == "imagefolder" else word for word in words)


def _training(spec: Mapping[str, Any], images: Mapping[str, Any], num_classes: int) -> tuple[str, float]:
    protocol = ProtocolSpec.model_validate({name: value for name, value in spec["protocol"].items() if name != "label"})
    ipc = spec["ipc"] or TRAIN_PER_CLASS.get(images["source"], PER_CLASS_UNKNOWN) - images["validation_per_class"]
    num_images = ipc * num_classes
    steps = StepPlan.of(protocol.of(num_classes, spec["network"]), num_images, num_classes)
    soft = " teacher" if protocol.labels == "teacher" else ""
    return f"{spec['network']} {protocol.size or images['size']}{soft} {spec['dtype']}", float(steps.num_steps * steps.batch)


def rates_of(store: Store) -> Rates:
    """Rates of the store's artifacts; of a stage with more than MAX_READ, some are left out.

    The checkpoints that ship with the package are left out too: another machine made them.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage in STAGE_SPECS:
        for key in store.keys(stage)[:MAX_READ]:  # sorted by hash: a random choice
            try:
                artifact = store.get(stage, key)
            except ArtifactError as err:
                log.warning("passed over: %s", err)
                continue
            if artifact is None or not artifact.seconds or any(map(artifact.path.is_relative_to, store.read_only)):
                continue
            family, units = work_of(stage, artifact.manifest["spec"], artifact.manifest["inputs"])
            found.setdefault(stage, {}).setdefault(family, []).append((artifact.seconds / units, _size(artifact)))
    return {stage: {family: _rate(values) for family, values in families.items()} for stage, families in found.items()}


def _size(artifact: Artifact) -> float:
    return float(sum(entry["bytes"] for entry in artifact.manifest["files"].values()))


def _rate(values: Iterable[tuple[float, float]]) -> Rate:
    rates, sizes = zip(*values, strict=True)
    ordered = sorted(rates)
    tenth = int(0.1 * (len(ordered) - 1))
    return Rate(len(ordered), ordered[tenth], statistics.fmean(ordered), ordered[-1 - tenth], statistics.fmean(sizes))


def known_rates(store: Store, file: Path | None = None) -> Rates:
    """Rates that were measured on this machine, or of `file` in their place; families that the store holds replace theirs."""
    found = read_calibration(file) if file is not None else of_this_machine()
    rates = {stage: dict(families) for stage, families in found.items()}
    for stage, families in rates_of(store).items():
        rates.setdefault(stage, {}).update(families)
    return rates


def read_calibration(file: Path) -> Rates:
    """Rates of a calibration file. Raises SpecError when the file is none."""
    try:
        content = read_json(file)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        return {
            stage: {family: Rate(**rate) for family, rate in families.items()} for stage, families in content["stages"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        what = f"expected a calibration file of schema {SCHEMA}: {getattr(err, 'strerror', None) or err}"
        fix = "make one: ddgd-ray plan FILE --write-calibration PATH"
        raise SpecError(what, code="calibration", where=str(file), fix=fix) from err


def write_calibration(rates: Rates, file: Path) -> None:
    stages = {stage: {family: vars(rate) for family, rate in families.items()} for stage, families in rates.items()}
    content = {"schema": SCHEMA, "machine": machine(), "stages": stages}
    write_atomically(file, json.dumps(content, indent=1, sort_keys=True) + "\n")


def machine_file() -> Path:
    """Where what `plan --measure` finds is kept: beside the hashes of files, of this machine and user."""
    cache = Path(os.environ.get("DDGD_CACHE") or "~/.cache/ddgd-ray").expanduser()
    return cache / f"rates-{hashlib.sha256(machine().encode()).hexdigest()[:12]}.json"


def machine() -> str:
    """What rates depend on and a restart does not change: the processor, its number, and torch's version."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {os.cpu_count()} cores, torch {importlib.metadata.version('torch')}"


def of_this_machine() -> Rates:
    """What was measured here before; nothing where nothing was, or where it cannot be read."""
    try:
        return read_calibration(machine_file()) if machine_file().is_file() else {}
    except SpecError as err:
        log.warning("%s", err)
        return {}


def remember(rates: Rates) -> None:
    """Add to what was measured on this machine."""
    merged = {stage: dict(families) for stage, families in of_this_machine().items()}
    for stage, families in rates.items():
        merged.setdefault(stage, {}).update(families)
    machine_file().parent.mkdir(parents=True, exist_ok=True)
    write_calibration(merged, machine_file())


def cost_of(call: StageCall, rates: Rates) -> Cost | None:
    """The cost of a call; None where no artifact of its stage was ever seen."""
    families = rates.get(call.stage)
    if not families:
        return None
    family, units = work_of(call.stage, call.spec.canonical(), call.input_keys())
    rate = families.get(family)
    if rate is not None:
        return Cost(rate.mean * units, rate.low * units, rate.high * units, rate.size_bytes)
    others = [rate for name, rate in families.items() if name.endswith(UNTOUCHED) == family.endswith(UNTOUCHED)]
    if not others:
        return None
    mean = statistics.median(other.mean for other in others)
    low, high = min(other.low for other in others) / UNSEEN, max(other.high for other in others) * UNSEEN
    size = statistics.median(other.size_bytes for other in others)
    return Cost(mean * units, low * units, high * units, size, is_known=False)
