"""How a classifier is trained and tested. The named protocols are spec/protocols/*.yaml; each says where it comes from."""

import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ddgd_ray.spec.base import Spec, canonical_json
from ddgd_ray.spec.load import nearest, read

NO_AUGMENTATION = "-noaug"
_FOLDER = resources.files("ddgd_ray.spec") / "protocols"
_AUGMENTATION_OFF = {"crop_scale": 1.0, "flip": False, "shift": 0, "jitter": 0.0, "lighting": 0.0, "cutmix": False}
UpTo = tuple[tuple[int, int], ...]


def protocol_names() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in _FOLDER.iterdir() if path.name.endswith(".yaml"))


@functools.cache
def _shipped(name: str) -> Mapping[str, Any] | None:
    """The fields of a named protocol, None for a name that is none. NAME-noaug is NAME without augmentation."""
    base = name.removesuffix(NO_AUGMENTATION)
    if base not in protocol_names():
        return None
    fields = read(Path(str(_FOLDER / f"{base}.yaml"))).data
    return fields if base == name else {**fields, **_AUGMENTATION_OFF}


class ProtocolSpec(Spec):
    """A named protocol, its fields overridden one by one, or one of the user's own. No result travels without the label."""

    name: str = Field("quick-small", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Of spec/protocols, whose fields are the defaults of all others; or a new one, which must give epochs or steps."""
    label: str = ""
    """The name where the protocol is as shipped, otherwise name+HASH of what differs. Derived, never written by hand."""
    size: int = Field(0, ge=0, le=1024)
    """Pixels a side that the networks see; 0: as the data set's images are."""
    test_resize: int = Field(0, ge=0, le=2048)
    """Shorter side of test images before the central crop of `size`; 0: size."""
    epochs: int = Field(0, ge=0)
    """Passes over a set with more images a class than epochs_up_to names."""
    epochs_up_to: UpTo = ()
    """(images a class, epochs): the first pair whose number is not exceeded counts."""
    steps: int = Field(0, ge=0)
    """Optimizer steps whatever the size of the set, in place of epochs; 0: epochs count."""
    steps_large: int = Field(0, ge=0)
    """The same for sets with more than 100 images a class; 0: as `steps`."""
    batch_size: int = Field(64, ge=1)
    batch_size_up_to: UpTo = ()
    drop_last: bool = False
    """Leave out what is left of an epoch when it fills no batch."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(3e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["one_cycle", "step", "half_cosine"] = "one_cycle"
    """one_cycle peaks at learning_rate; step multiplies by 0.2 after 2/3 and 5/6 of the epochs; half_cosine falls to half."""
    labels: Literal["hard", "teacher"] = "hard"
    """teacher: the preset's reference network answers for each augmented batch (KL divergence at `temperature`)."""
    temperature: float = Field(20.0, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop_scale: float = Field(1.0, gt=0, le=1)
    """Least share of the area that a random resized crop takes; 1: no such crops."""
    flip: bool = False
    shift: int = Field(0, ge=0)
    """Random translation, pixels."""
    jitter: float = Field(0.0, ge=0, lt=1)
    """Brightness, contrast and saturation by factors from 1 - jitter to 1 + jitter, in random order."""
    lighting: float = Field(0.0, ge=0)
    """Standard deviation of PCA lighting (AlexNet)."""
    cutmix: bool = False
    """With every batch, beta = 1."""
    num_tests: int = Field(4, ge=1)
    """Evenly over training, the last one after the last step. `best` is the best of them: an oracle."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if not isinstance(data, Mapping):
            return data
        name = data.get("name", cls.model_fields["name"].default)
        shipped = _shipped(name) if isinstance(name, str) else None
        if shipped is None and not (data.get("epochs") or data.get("steps")):
            known = f"known: {', '.join(protocol_names())}, each also with {NO_AUGMENTATION}"
            raise ValueError(
                f"protocol {name!r} is none of ours and has neither epochs nor steps; {known}",
                f"did you mean {nearest(str(name), protocol_names())}? A protocol of your own must give one of the two",
            )
        given = {key: _frozen(value) for key, value in data.items() if key not in ("name", "label")}
        fields = {**(shipped or {}), **given, "name": name}
        fields["label"] = _label(cls, str(name), given, shipped)
        if data.get("label") not in (None, "", fields["label"]):
            raise ValueError("a protocol's label follows from its fields", "leave it out")
        return fields

    @field_validator("steps")
    @classmethod
    def _has_an_end(cls, steps: int, info: ValidationInfo) -> int:
        if not (steps or info.data.get("epochs", 1)):
            raise ValueError("the protocol is left with neither epochs nor steps", "give 1 or more of one of them")
        return steps

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.schedule == "one_cycle" and not self.steps:
            raise ValueError("schedule one_cycle counts steps", "give steps, or another schedule")
        for pairs in (self.epochs_up_to, self.batch_size_up_to):
            limits = [limit for limit, _ in pairs]
            if limits != sorted(set(limits)) or any(min(pair) < 1 for pair in pairs):
                raise ValueError(f"expected pairs of positive numbers, rising, got {pairs}", "e.g. [[10, 2000], [50, 1500]]")
        return self

    def without_augmentation(self) -> "ProtocolSpec":
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in ("name", "label")}
        return ProtocolSpec.model_validate({**own, **_AUGMENTATION_OFF, "name": self.name + NO_AUGMENTATION})

    def num_epochs(self, ipc: int) -> int:
        """The number of epochs for a set of `ipc` images a class; 0 where the protocol gives steps."""
        return _up_to(self.epochs_up_to, ipc, self.epochs)

    def batch_of(self, ipc: int) -> int:
        return _up_to(self.batch_size_up_to, ipc, self.batch_size)


def _up_to(pairs: UpTo, ipc: int, beyond: int) -> int:
    return next((value for limit, value in pairs if ipc <= limit), beyond)


def _label(cls: type[ProtocolSpec], name: str, given: Mapping[str, Any], shipped: Mapping[str, Any] | None) -> str:
    defaults = {key: field.default for key, field in cls.model_fields.items()} | dict(shipped or {})
    other = {key: value for key, value in given.items() if value != defaults.get(key)}
    if shipped is not None and not other:
        return name
    try:
        return f"{name}+{hashlib.sha256(canonical_json(other).encode()).hexdigest()[:6]}"
    except (TypeError, ValueError):  # no plain values: the fields' own checks say what is wrong
        return name


def _frozen(value: Any) -> Any:
    """The value with tuples in place of lists: JSON has lists where YAML and specs have tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
