"""docs/fields.md: every field of a sweep file and of a preset, made from the specs themselves."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.evaluation import EvaluateSpec, ReferenceSpec
from ddgd_ray.spec.pick import PickSpec
from ddgd_ray.spec.preset import DitWeightsSpec, WeightsSpec
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import AutoencoderSpec, FinetuneSpec, ImagesSpec, PretrainSpec, SampleSpec, StageSpec
from ddgd_ray.spec.sweep import SET_BY_SWEEP
from ddgd_ray.spec.sweep_spec import SweepSpec

HEAD = """# Every field

Made from the specs by `ddgd-ray show --fields > docs/fields.md`; a test holds this file to them. `ddgd-ray show FILE` prints
what a sweep file comes to, each value with its source: default, preset, recipe, protocol, file, `--set`, or varied. Fields of
a preset are written in a sweep file by dotted path below `set:` or `vary:`, on the command line as `--set PATH=VALUE`. What
determines a result enters its key; `resources`, `budget` and the places of images and weights do not.
"""
PRESET_HEAD = """
## Fields of a preset

One YAML file a preset in `ddgd_ray/spec/presets/` (docs/data.md); sections are `images`, `autoencoder`, `backbone`, `finetune`,
`sample`, `select`, `evaluate`, `reference`.
"""
SECTIONS: tuple[tuple[str, str, type[Spec]], ...] = (
    ("images", "which real images, and how they are split", ImagesSpec),
    ("autoencoder", "trained here", AutoencoderSpec),
    ("autoencoder", "or weights from outside", WeightsSpec),
    ("backbone", "a small DiT, trained here", PretrainSpec),
    ("backbone", "or weights from outside", DitWeightsSpec),
    ("finetune", "the two memory losses", FinetuneSpec),
    ("sample", "drawing the set", SampleSpec),
    ("select", "picking it from a pool", PickSpec),
    ("evaluate", "the classifiers that judge a set", EvaluateSpec),
    ("reference", "the network trained on all real images", ReferenceSpec),
)
UNITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def field_reference() -> str:
    """The whole text of docs/fields.md."""
    parts = [HEAD, "\n## Fields of a sweep file\n", *_table(SweepSpec, "", set())]
    parts.append(PRESET_HEAD)
    for name, about, spec in SECTIONS:
        stage = f" Stage `{spec.stage}`, version {spec.version}." if issubclass(spec, StageSpec) else ""
        parts.append(f"\n### {name}: {about}\n\n{_first_line(spec)}{stage}\n")
        parts += _table(spec, name, {"images"} if name != "images" else set())
    parts.append("\n### protocol: below `evaluate.protocol` and `reference.protocol`\n")
    parts.append(f"\n{_first_line(ProtocolSpec)} The defaults are those of `quick-small`; a named protocol has its own.\n")
    parts += _table(ProtocolSpec, "evaluate.protocol", set())
    return "".join(parts)


def _first_line(spec: type[Spec]) -> str:
    text = " ".join((spec.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _table(spec: type[Spec], prefix: str, left_out: set[str]) -> Iterator[str]:
    yield "\n| field | values | default | |\n| --- | --- | --- | --- |\n"
    yield from (f"| {line}|\n" for line in _lines(spec, prefix, left_out))


def _lines(spec: type[Spec], prefix: str, left_out: set[str]) -> Iterator[str]:
    of_sweep = SET_BY_SWEEP if issubclass(spec, StageSpec) else {}
    for name, info in spec.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        if name in left_out:
            continue
        inner = _inner(info.annotation)
        if inner is ProtocolSpec:
            yield f"`{path}` | a name, or fields | quick-small | see protocol below "
        elif inner is not None and not _is_many(info.annotation):
            yield from _lines(inner, path, set())
        elif path in of_sweep:
            yield f"`{path}` | | | set by the sweep: `{of_sweep[path]}` "
        else:
            yield f"`{path}` | {_cell(_values(info))} | {_cell(_default(info))} | {_cell(info.description or '')} "
            if inner is not None:
                yield from _lines(inner, f"{path}.STAGE" if _is_mapping(info.annotation) else f"{path}[]", set())


def _inner(annotation: Any) -> type[Spec] | None:
    """The spec inside an annotation such as Spec, Spec | None, tuple[Spec, ...] or dict[str, Spec]."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _inner(part)) is not None), None)


def _is_many(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, dict)


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _values(info: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(part, key):g}" for part in info.metadata for key, sign in UNITS.items() if hasattr(part, key)]
    text = _type_words(info.annotation)
    return ", ".join([text, *bounds]) if text else ", ".join(bounds)


def _type_words(annotation: Any) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true, false", type(None): ""}
    if annotation in names:
        return names[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(map(str, args))
    if origin is tuple:
        return f"list of {_type_words(args[0])}" if args[-1] is Ellipsis else "(" + ", ".join(map(_type_words, args)) + ")"
    if origin is dict:
        return "mapping"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(word for part in args if (word := _type_words(part))))
    if origin is typing.Annotated:
        return _type_words(args[0])
    return "mapping" if _inner(annotation) is not None else str(annotation)


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        if info.default_factory is None:
            return "required"
        made = info.default_factory()  # type: ignore[call-arg]
        return str(made) if made else "none"
    value = info.default
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
