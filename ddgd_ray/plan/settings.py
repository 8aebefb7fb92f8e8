"""Every setting of a sweep as it will be used, with where it comes from: a default, the preset, the recipe, the file, --set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.preset import SECTIONS, Preset, build_preset, read_preset
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.recipe import RECIPE
from ddgd_ray.spec.space import Choice, Distribution
from ddgd_ray.spec.sweep import SET_BY_SWEEP, Sweep

Source = Literal["default", "preset", "recipe", "protocol", "file", "--set", "varied", "sweep"]
OWN_OF_PRESET = ("set", "vary", "preset", "sets", RECIPE)  # of a sweep file: shown as what they set


@dataclass(frozen=True)
class Resolved:
    """One field: dotted path, the value that is used, and its source. where: `file:line`, or "" for a default."""

    path: str
    value: Any
    source: Source
    where: str = ""


def resolved(sweep: Sweep) -> list[Resolved]:
    """The preset's fields with all overrides, then the sweep's own, in the order of docs/fields.md."""
    preset = sweep.preset_with({})
    found = list(_of_preset(sweep, preset))
    for path, value in leaves(sweep.spec, ""):
        if path.partition(".")[0] not in OWN_OF_PRESET:
            place = sweep.source.places.get(tuple(path.split(".")), "")
            found.append(Resolved(path, value, _source_of(place, sweep), place))
    return found


def of_preset(name: str) -> dict[str, Any]:
    """{dotted path: value} of a preset by itself; {} of one that lacks what only you know. Raises SpecError for no preset."""
    preset = build_preset(read_preset(name), [])
    return {} if preset is None else {path: value for path, value in _fields(preset) if path not in SET_BY_SWEEP}


def _of_preset(sweep: Sweep, preset: Preset) -> Iterator[Resolved]:
    for path, place in sweep.places.items():
        if path == RECIPE:
            yield Resolved(path, _varied(sweep, path), "varied", place)
    for path, value in _fields(preset):
        place = sweep.preset.places.get(tuple(path.split(".")), "")
        named = path.removesuffix(".name")  # `sample.guide: mode` stands for `sample.guide.name: mode`
        if path in sweep.places or named in sweep.places:
            varied = path if path in sweep.places else named
            yield Resolved(varied, _varied(sweep, varied), "varied", sweep.places[varied])
        elif SET_BY_SWEEP.get(path) == path:
            continue  # the sweep's own field of that name follows
        elif path in SET_BY_SWEEP:
            yield Resolved(path, f"by {SET_BY_SWEEP[path]}", "sweep")
        elif not place and ".protocol." in path:
            yield _of_protocol(sweep, preset, path, value)
        else:
            yield Resolved(path, value, _source_of(place, sweep), place)


def _of_protocol(sweep: Sweep, preset: Preset, path: str, value: Any) -> Resolved:
    """A field of a protocol that nobody wrote: the named protocol's own, or a default."""
    section, _, field = path.partition(".protocol.")
    if field == "name":
        place = sweep.preset.places.get((section, "protocol"), "")
        return Resolved(path, value, _source_of(place, sweep), place)
    named: ProtocolSpec = getattr(preset, section).protocol
    if value == ProtocolSpec.model_fields[field].default:
        return Resolved(path, value, "default")
    return Resolved(path, value, "protocol", named.name)


def _varied(sweep: Sweep, path: str) -> Any:
    return sweep.spec.vary.get(path) or _words(sweep.space[path])


def _words(distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return distribution.values
    return f"{distribution.low:g} .. {distribution.high:g}"


def _source_of(place: str, sweep: Sweep) -> Source:
    """By the file that the value stands in."""
    if not place:
        return "default"
    file = place.rpartition(":")[0] or place
    if file.startswith("--"):
        return "--set"
    if file == sweep.source.source:
        return "file"
    return "recipe" if "/recipes/" in file else "preset"


def _fields(preset: Preset) -> Iterator[tuple[str, Any]]:
    for section in SECTIONS:
        for path, value in leaves(getattr(preset, section), section):
            if section == "images" or not path.startswith(f"{section}.images."):
                yield path, value


def leaves(spec: Spec, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field, fields of inner specs in their place."""
    for name in type(spec).model_fields:
        value, path = getattr(spec, name), f"{prefix}.{name}" if prefix else name
        if isinstance(value, Spec):
            yield from leaves(value, path)
        elif isinstance(value, Mapping) and any(isinstance(inner, Spec) for inner in value.values()):
            for key, inner in value.items():
                yield path + "." + str(key), inner.model_dump(exclude_unset=True)
        else:
            yield path, plain(value)


def plain(value: Any) -> Any:
    """The value in plain data, specs inside it as mappings of what is given."""
    if isinstance(value, Spec):
        return value.model_dump(mode="json", exclude_defaults=True)
    return tuple(map(plain, value)) if isinstance(value, tuple) else value
