"""A preset: images, networks and recipe of one data set. Sweeps override it by dotted path."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ddgd_ray.errors import SpecError
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.check import check
from ddgd_ray.spec.evaluation import EvaluateSpec, ReferenceSpec
from ddgd_ray.spec.load import Document, Path_, nearest, read
from ddgd_ray.spec.pick import PickSpec
from ddgd_ray.spec.stages import (
    AdoptSpec,
    AutoencoderSpec,
    EncodeSpec,
    FinetuneSpec,
    ImagesSpec,
    PretrainSpec,
    SampleSpec,
    StageSpec,
)


class WeightsSpec(Spec):
    """Pre-trained weights in diffusers layout, from the hub's cache or a local folder. Their fingerprint enters the keys."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", exclude=True)
    revision: str = Field("main", exclude=True)
    """A branch, tag or commit; what a branch pointed to is recorded by its commit."""
    folder: str = Field("", exclude=True)
    """A local folder in its place; may start with `~` or hold $VARIABLES."""

    def adopted(self) -> AdoptSpec:
        return AdoptSpec(part="autoencoder")


class DitWeightsSpec(WeightsSpec):
    file: str = Field("", exclude=True)
    """A checkpoint (.pt) in the layout of DiT's own code in their place; may start with `~` or hold $VARIABLES."""
    heads: int = Field(0, ge=0)
    """Attention heads of `file`; 0: by its width, as published (S 6, B 12, L and XL 16)."""
    timestep_shift: Literal[0, 1] = 0
    """0: trained with DiT's own code, as all published DiTs. 1: with diffusers' DiT.

    stages/parts/backbone.py says what differs.
    """

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.folder and self.file:
            raise ValueError("folder and file are both given", "remove one of the two")
        if self.heads and not self.file:
            raise ValueError("heads means something with file only", "the config.json of a folder holds the number of heads")
        return self

    def adopted(self) -> AdoptSpec:
        return AdoptSpec(part="backbone", heads=self.heads, timestep_shift=self.timestep_shift)


@dataclass(frozen=True)
class Preset:
    """The validated sections. A section with `repo` names pre-trained weights, otherwise the network is trained here."""

    images: ImagesSpec
    autoencoder: AutoencoderSpec | WeightsSpec
    encode: EncodeSpec
    backbone: PretrainSpec | DitWeightsSpec
    finetune: FinetuneSpec
    sample: SampleSpec
    select: PickSpec
    evaluate: EvaluateSpec
    reference: ReferenceSpec


SECTIONS = ("images", "autoencoder", "backbone", "finetune", "sample", "select", "evaluate", "reference")
_FOLDER = resources.files("ddgd_ray.spec") / "presets"


def preset_names() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in _FOLDER.iterdir() if path.name.endswith(".yaml"))


def read_preset(name: str, where: str = "preset") -> Document:
    """The preset's YAML. Raises SpecError with the nearest name. where: who asks for it."""
    if name not in preset_names():
        raise SpecError(
            f"unknown preset {name!r}; known: {', '.join(preset_names())}",
            code="unknown-preset",
            where=where,
            fix=f"did you mean {nearest(name, preset_names())}?",
        )
    return read(Path(str(_FOLDER / f"{name}.yaml")))


def build_preset(document: Document, errors: list[SpecError]) -> Preset | None:
    """The preset, its sections validated; None where something is wrong, which goes to `errors`."""
    before = len(errors)
    data: Mapping[str, Any] = document.data
    for name in data:
        if name not in SECTIONS:
            errors.append(document.unknown_key((name,), SECTIONS))
    images = check(ImagesSpec, document, ("images",), errors)
    if images is None:
        return None
    parts: dict[str, Any] = {"encode": EncodeSpec(images=images), "images": images}
    cls: type[StageSpec]
    outside: type[WeightsSpec]
    for name, cls, outside in (("autoencoder", AutoencoderSpec, WeightsSpec), ("backbone", PretrainSpec, DitWeightsSpec)):
        section = data.get(name, {})
        if isinstance(section, Mapping) and "repo" in section:
            parts[name] = check(outside, document, (name,), errors)
        else:
            parts[name] = check(cls, document, (name,), errors, images)
    for name, cls in (
        ("finetune", FinetuneSpec),
        ("sample", SampleSpec),
        ("select", PickSpec),
        ("evaluate", EvaluateSpec),
    ):
        parts[name] = check(cls, document, (name,), errors, images)
    parts["reference"] = check(ReferenceSpec, document, ("reference",), errors)
    if len(errors) == before and not parts["select"].draws:
        errors.extend(_of_no_use(parts["sample"], document))
    return Preset(**parts) if len(errors) == before else None


def _of_no_use(sample: SampleSpec, document: Document) -> list[SpecError]:
    """What is asked of a sampling that nobody draws."""
    asked = {
        "guide": sample.guide.name != "none",
        "start": sample.start.name != "noise",
        "spectral_gain": sample.spectral_gain > 1,
    }
    return [
        SpecError(
            f"select.of: real draws no samples: sample.{field} would do nothing",
            where=document.where(("sample", field)),
            fix=f"leave sample.{field} out, or set select.of to generated or both",
        )
        for field, is_asked in asked.items()
        if is_asked
    ]


# fields that a name alone may stand for: of their own spec, whose `name` it is
NAMED = ("evaluate.protocol", "reference.protocol", "sample.guide", "sample.start")


def _spelled_out(document: Document) -> dict[Path_, Any]:
    """What is given by name alone, spelled out, so that a field can be put beside the name."""
    found: dict[Path_, Any] = {}
    for section, field in (path.split(".") for path in NAMED):
        inner = document.data.get(section)
        if isinstance(inner, Mapping) and isinstance(inner.get(field), str):
            found[(section, field)] = {"name": inner[field]}
    return found


def _conflicts(overrides: Mapping[str, tuple[Any, str]]) -> list[SpecError]:
    """Errors of fields that are given a value and fields below them: one of the two would be lost."""
    errors = []
    for path, (_, where) in overrides.items():
        above = next((path[:place] for place, sign in enumerate(path) if sign == "." and path[:place] in overrides), None)
        value = overrides[above][0] if above else None
        is_name = above in NAMED and isinstance(value, str)
        if above is not None and not is_name and not isinstance(value, Mapping):
            what = f"{above} is given a value, and {path} is a field below it"
            errors.append(SpecError(what, code="conflict", where=where, fix=f"leave out one of the two: {above} or {path}"))
    return errors


def with_overrides(document: Document, overrides: Mapping[str, tuple[Any, str]], errors: list[SpecError]) -> Document:
    """A copy with {dotted path: (value, where it was written)} put in; sections are made as needed."""
    values: dict[Path_, Any] = _spelled_out(document)
    errors.extend(_conflicts(overrides))
    for path, (value, where) in sorted(overrides.items(), key=lambda item: item[0].count(".")):  # the whole before its parts
        section, _, field = path.partition(".")
        if section in SECTIONS and field:
            if path in NAMED and isinstance(value, str):
                # another protocol has fields of its own, another guide keeps those that were set for it
                is_whole = field == "protocol"
                values[(section, field) if is_whole else (section, field, "name")] = {"name": value} if is_whole else value
            else:
                values[tuple(path.split("."))] = value
        else:
            errors.append(
                SpecError(
                    f"{path} is not a field of a preset; its sections are {', '.join(SECTIONS)}",
                    code="unknown-key",
                    where=where,
                    fix=f"did you mean {nearest(section, SECTIONS)}.{field or 'FIELD'}?",
                )
            )
    places = {path: document.line(path) for path in values}
    return document.replaced(values, places | {tuple(path.split(".")): where for path, (_, where) in overrides.items()})
