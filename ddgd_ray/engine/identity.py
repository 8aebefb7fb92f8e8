"""Whether a sweep that comes again under a name is the same, a larger one, or another."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.sources import images_source
from ddgd_ray.spec.sweep import Sweep

FREE = ("name", "resources", "budget", "race")
"""Parts of a sweep file that change no result and may change at any time."""
MAY_GROW = (
    "vary",
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


@dataclass(frozen=True)
class Change:
    """One field that differs: `path: was A, is B`. keeps: all that is done belongs to the changed sweep too."""

    line: str
    keeps: bool


def identity_of(sweep: Sweep) -> dict[str, Any]:
    """Everything that decides what a run folder's results mean, as JSON gives it back."""
    fingerprint, _ = images_source(sweep.preset_with({}).images)
    parts = {
        **{name: value for name, value in sweep.spec.canonical().items() if name not in (*FREE, "set", "recipe")},
        "objective": sweep.spec.objective.identity(),  # what was never given does not appear
        "settings": sweep.preset.data,  # the preset with `set` and `recipe` put in
        "space": {name: value.canonical() for name, value in sweep.space.items()},
        "images": fingerprint,
    }
    identity: dict[str, Any] = json.loads(json.dumps(parts))
    return identity


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs. A part that the earlier version of this program did not write down is taken as equal."""
    return _changes({name: before.get(name, value) for name, value in now.items()}, now, "")


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
        return set(map(json.dumps, before)) <= set(map(json.dumps, now))
    if before is None:
        return field == "sets"  # one more set; a new field of `vary` makes other arms
    numbers = isinstance(before, int | float) and isinstance(now, int | float)
    return numbers and now >= before
