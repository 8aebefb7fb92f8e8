"""What pulls samples toward the data, and what they start from: parts of a sampling.

method/guidance.py and method/inversion.py have the mathematics.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.load import nearest


class NamedSpec(Spec):
    """A choice by name with constants of its own: `guide: mode`, or a mapping with `name` and what differs."""

    constants: ClassVar[Mapping[str, Mapping[str, Any]]]
    """{name: {field: default}}. A field that a name does not list means nothing to it, and is refused beside it."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if not isinstance(data, Mapping):
            return data
        name = data.get("name", cls.model_fields["name"].default)
        if not isinstance(name, str) or name not in cls.constants:
            known = ", ".join(cls.constants)
            raise ValueError(f"{name!r} is none of: {known}", f"did you mean {nearest(str(name), list(cls.constants))}?")
        own = cls.constants[name]
        if not own:  # so that `none` and another can be varied beside constants of the other; spec/sweep.py refuses idle ones
            return {"name": name}
        for field in data:
            if field in cls.model_fields and field not in own and field != "name":
                with_it = [other for other, fields in cls.constants.items() if field in fields]
                if data[field] != cls.model_fields[field].default:
                    what = f"{field} means nothing to {name}, but to {' and '.join(with_it)}"
                    raise ValueError(what, f"leave {field} out, or choose one of these")
        return {**own, **data}


class GuideSpec(NamedSpec):
    name: Literal["none", "mode", "manifold", "features", "transport"] = "none"
    """mode: toward the k-means centre of the image. manifold: the same along the data's tangent space there. features: toward
    the DiT features of the training image nearest to that centre. transport: a group of images toward all weighted centres."""
    strength: float = Field(0.0, ge=0)
    """Of a step, in units of the step's noise: lambda of mode guidance."""
    start: float = Field(1.0, ge=0, le=1)
    """Share of the steps, counted from the clean end, below which guidance begins; 1: with the first step."""
    stop: float = Field(0.0, ge=0, le=1)
    """Share of the steps left at which it ends: with 50 steps and 0.5 those with index 49 ... 26 are guided."""
    radius: float = Field(0.0, ge=0, le=1)
    """manifold: share of the class's latents, the nearest to the centre, that tell the tangent space."""
    tangents: int = Field(0, ge=0)
    """manifold: its dimension."""
    from_depth: float = Field(0.0, ge=0, le=1)
    """features: the first of the DiT's blocks whose output counts, as a share of its depth: blocks 4 ... 12 of 28."""
    to_depth: float = Field(0.0, ge=0, le=1)
    group: int = Field(0, ge=0)
    """transport: images of a class drawn and moved together, by index: 0 ... group - 1, and so on."""
    epsilon: float = Field(0.0, ge=0)
    """transport: weight of the entropy, in units of the mean cost."""
    iterations: int = Field(0, ge=0)
    """transport: Sinkhorn iterations."""

    constants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "none": {},
        "mode": {"strength": 0.1, "start": 1.0, "stop": 0.5},
        "manifold": {"strength": 0.1, "start": 1.0, "stop": 0.5, "radius": 0.1, "tangents": 3},
        "features": {"strength": 0.5, "start": 1.0, "stop": 0.5, "from_depth": 0.15, "to_depth": 0.43},
        "transport": {"strength": 0.1, "start": 1.0, "stop": 0.5, "group": 10, "epsilon": 0.1, "iterations": 5},
    }

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.name != "none" and self.start <= self.stop:
            raise ValueError(
                f"expected stop below start = {self.start}, got {self.stop}", "guidance goes down from start to stop"
            )
        for field in ("tangents", "to_depth", "group", "epsilon", "iterations"):
            if field in self.constants[self.name] and not getattr(self, field):
                raise ValueError(f"{field} must be above 0", f"try {self.constants[self.name][field]}")
        if self.to_depth < self.from_depth:
            raise ValueError(f"expected to_depth >= from_depth = {self.from_depth}, got {self.to_depth}", "swap the two")
        return self

    @property
    def needs_modes(self) -> bool:
        return self.name != "none"

    def blocks(self, depth: int) -> slice:
        """The blocks of a DiT of that depth whose output counts: at least one."""
        last = max(1, round(self.to_depth * depth))
        return slice(min(last, max(1, round(self.from_depth * depth))) - 1, last)

    def window(self, num_steps: int) -> tuple[int, int]:
        """The first and the last index guided, the last one excluded."""
        return round(self.start * num_steps), round(self.stop * num_steps)


class StartSpec(NamedSpec):
    name: Literal["noise", "prototype", "inversion"] = "noise"
    """prototype: the image's k-means centre, noised part of the way (D4M). inversion: a Gaussian fitted to the class's latents
    after DDIM inversion part of the way, and of many groups of draws the one most like the class (D3HR)."""
    strength: float = Field(1.0, gt=0, le=1)
    """Share of the steps that are run: the way to noise at which they begin."""
    groups: int = Field(0, ge=0)
    """inversion: groups of draws that are compared, of one image for each index."""

    constants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "noise": {},
        "prototype": {"strength": 0.7},
        "inversion": {"strength": 0.64, "groups": 1000},
    }

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.name == "inversion" and not self.groups:
            raise ValueError("groups must be above 0", "try 1000")
        return self


class ModesChoiceSpec(Spec):
    """The points that guides pull to and prototypes start from: k-means of each class's latents."""

    num: int = Field(0, ge=0)
    """Centres a class; image i has centre i mod num. 0: as many as images are drawn a class."""
    kind: Literal["centre", "nearest"] = "centre"
    """The centre itself, or the real latent nearest to it."""
    seed: int = Field(0, ge=0)
    """Of k-means."""
