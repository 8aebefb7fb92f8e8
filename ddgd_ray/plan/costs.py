"""Seconds and bytes that stages will take, by rates that are read from published artifacts or a calibration file.

A stage's work is counted in units that its seconds grow with: images seen in training, denoising steps times images. A rate is
seconds a unit in one family of equal networks and sizes; a family never seen goes by its stage's others, with a wider range.
"""

import json
import logging
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.spec.evaluation import STAGE_SPECS
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import TRAIN_PER_CLASS
from ddgd_ray.stages.base import StageCall
from ddgd_ray.storage.store import Artifact, Store, write_atomically

log = logging.getLogger(__name__)

SCHEMA = 1
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "calibration.json"
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
        return (family, images_seen) if images_seen else (f"{family} untouched", 1.0)  # a control without fine-tuning
    if stage == "autoencoder":
        return f"{spec['kind']} {images['size']}", float(spec["steps"] * spec["batch_size"]) if spec["kind"] == "kl" else 1.0
    if stage == "sample":
        passes = 1 if spec["guidance"] == 1 else 2
        return f"{inputs['backbone'][:12]} {spec['dtype']}", float(spec["ipc"] * num_classes * spec["steps"] * passes)
    if stage == "evaluate":
        return _training(spec, images, num_classes)
    return f"{images.get('source', '')} {images.get('size', '')} {spec.get('method', '')}{spec.get('space', '')}".strip(), 1.0


def _training(spec: Mapping[str, Any], images: Mapping[str, Any], num_classes: int) -> tuple[str, float]:
    protocol = ProtocolSpec.model_validate({name: value for name, value in spec["protocol"].items() if name != "label"})
    ipc = spec["ipc"] or TRAIN_PER_CLASS.get(images["source"], PER_CLASS_UNKNOWN) - images["validation_per_class"]
    num_images = ipc * num_classes
    batch = min(protocol.batch_of(ipc), num_images)
    per_epoch = num_images // batch if protocol.drop_last else -(-num_images // batch)
    fixed = protocol.steps_large if ipc > 100 and protocol.steps_large else protocol.steps
    steps = fixed or per_epoch * protocol.num_epochs(ipc)
    soft = " teacher" if protocol.labels == "teacher" else ""
    return f"{spec['network']} {protocol.size or images['size']}{soft} {spec['dtype']}", float(steps * batch)


def rates_of(store: Store) -> Rates:
    """Rates of the store's artifacts; of a stage with more than MAX_READ, some are left out."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage in STAGE_SPECS:
        for key in store.keys(stage)[:MAX_READ]:  # sorted by hash: a random choice
            try:
                artifact = store.get(stage, key)
            except ArtifactError as err:
                log.warning("passed over: %s", err)
                continue
            if artifact is None or not artifact.seconds:
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
    """Rates of the shipped calibration, or of `file` in its place; families that the store holds replace theirs."""
    rates = {stage: dict(families) for stage, families in read_calibration(file or SHIPPED).items()}
    for stage, families in rates_of(store).items():
        rates.setdefault(stage, {}).update(families)
    return rates


def read_calibration(file: Path) -> Rates:
    """Rates of a calibration file. Raises SpecError when the file is none."""
    try:
        content = json.loads(file.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        return {
            stage: {family: Rate(**rate) for family, rate in families.items()} for stage, families in content["stages"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        what = f"expected a calibration file of schema {SCHEMA}: {err}"
        fix = "make one: ddgd-ray plan FILE --write-calibration PATH"
        raise SpecError(what, code="calibration", where=str(file), fix=fix) from err


def write_calibration(rates: Rates, file: Path) -> None:
    stages = {stage: {family: vars(rate) for family, rate in families.items()} for stage, families in rates.items()}
    write_atomically(file, json.dumps({"schema": SCHEMA, "stages": stages}, indent=1, sort_keys=True) + "\n")


def cost_of(call: StageCall, rates: Rates) -> Cost | None:
    """The cost of a call; None where no artifact of its stage was ever seen."""
    families = rates.get(call.stage)
    if not families:
        return None
    family, units = work_of(call.stage, call.spec.canonical(), call.input_keys())
    rate = families.get(family)
    if rate is not None:
        return Cost(rate.mean * units, rate.low * units, rate.high * units, rate.size_bytes)
    others = list(families.values())
    mean = statistics.median(other.mean for other in others)
    low, high = min(other.low for other in others) / UNSEEN, max(other.high for other in others) * UNSEEN
    size = statistics.median(other.size_bytes for other in others)
    return Cost(mean * units, low * units, high * units, size, is_known=False)
