"""The identity of a sweep: whether one that comes again under a name is the same, a larger one, or another."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import images_source, known_sha256
from ddgd_ray.inputs.weights import script_file, weights_source
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.evaluation import ReferenceSpec
from ddgd_ray.spec.preset import DitWeightsSpec, Preset, WeightsSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.spec.sweep import Sweep

FREE = ("name", "resources", "budget", "race", "claims")
"""Parts of a sweep file that change no result and may change at any time."""
MAY_GROW = (
    "vary",
    "parts",
    "seeds.distill",
    "seeds.evaluate",
    "evaluate.networks",
    "evaluate.ipc",
    "evaluate.also",
    "controls",
    "sets",
    "quality",
    "search.trials",
    "search.first",
    "objective.finalists",
)
"""Fields that keep every result they had when they get more values, or a larger one."""
PLACES: dict[str, type[Spec]] = {
    "images": ImagesSpec,
    "autoencoder": WeightsSpec,
    "backbone": DitWeightsSpec,
    "reference": ReferenceSpec,
}
"""Sections of a preset whose excluded fields say where something lies: what lies there has a fingerprint of its own."""


@dataclass(frozen=True)
class Change:
    """One field that differs: `path: was A, is B`. keeps: all that is done belongs to the changed sweep too."""

    line: str
    keeps: bool


def identity_of(sweep: Sweep) -> dict[str, Any]:
    """All that decides what the results of a run folder mean, as JSON gives it back."""
    preset = sweep.preset_with({})
    fingerprint, _ = images_source(preset.images)
    parts = {
        **{name: value for name, value in sweep.spec.canonical().items() if name not in (*FREE, "set", "recipe")},
        "objective": sweep.spec.objective.identity(),  # what was never given does not appear
        "settings": sweep.preset.data,  # the preset with `set` and `recipe` put in
        "space": {name: value.canonical() for name, value in sweep.space.items()},
        "images": fingerprint,
        "weights": _weights(sweep, preset),
    }
    identity: dict[str, Any] = json.loads(json.dumps(parts))
    return identity


def _weights(sweep: Sweep, preset: Preset) -> dict[str, str]:
    """Fingerprints of what comes from outside, without the images. What is missing has none: its stage will say so."""
    found = {}
    for name, one in {"autoencoder": preset.autoencoder, "backbone": preset.backbone}.items():
        if isinstance(one, WeightsSpec):
            with suppress(StageError):
                found[name] = weights_source(one).fingerprint
    if "inception" in sweep.spec.quality:
        found["inception"] = f"sha256:{known_sha256(script_file(preset.reference.inception))}"
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The fields that differ. A part that an earlier version of this program did not write down is taken as equal."""
    # where there are no fingerprints of weights, their places have to do
    placed = PLACES if "weights" in before else ("images",)
    then = {name: before.get(name, value) for name, value in now.items()}
    then["weights"] = now["weights"] | then["weights"]  # of what one of the two did not use or have, nothing is known
    now = {**now, "weights": then["weights"] | now["weights"]}
    return _changes(_without_places(then, placed), _without_places(now, placed), "")


def _without_places(identity: Mapping[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    """The fields that decide results: not the places of outside inputs; nor, where timing decides anyway, `parallel`."""
    found, settings = dict(identity), dict(identity.get("settings") or {})
    for name in settings.keys() & sections:
        excluded = {field for field, info in PLACES[name].model_fields.items() if info.exclude}
        settings[name] = {field: value for field, value in settings[name].items() if field not in excluded}
    found["settings"] = {name: section for name, section in settings.items() if section}
    search = identity.get("search") or {}
    if search.get("mode") == "asynchronous":
        found["search"] = {name: value for name, value in search.items() if name != "parallel"}
    return found


def _changes(before: Any, now: Any, path: str) -> list[Change]:
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted(before.keys() | now.keys()):
            inner = f"{path}.{name}" if path else name
            if before.get(name) != now.get(name):
                found += _changes(before.get(name), now.get(name), inner)
        return found
    field = next((field for field in MAY_GROW if path == field or path.startswith(f"{field}.")), None)
    line = f"{path}: was {json.dumps(before)}, is {json.dumps(now)}"
    return [Change(line, field is not None and _has_grown(before, now, field))]


def _has_grown(before: Any, now: Any, field: str) -> bool:
    if isinstance(before, list) and isinstance(now, list):
        is_kept = field != "evaluate.ipc" or max(before) == max(now)  # the largest is sampled: another one is another set
        return is_kept and set(map(json.dumps, before)) <= set(map(json.dumps, now))
    if before is None:
        return field in ("sets", "parts")  # one more set, one more part; a new field of `vary` makes other arms
    numbers = isinstance(before, int | float) and isinstance(now, int | float)
    return numbers and now >= before
