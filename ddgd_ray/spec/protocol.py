"""How a classifier is trained and tested. The named protocols are spec/protocols/*.yaml; each says where it comes from."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ddgd_ray.spec.base import Spec, as_tuples, canonical_json
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


class CaseSpec(Spec):
    """Fields in place of the protocol's own, for some numbers of classes or some networks; a field that is None stays."""

    classes: tuple[int, int] = (1, 1_000_000)
    """The first and the last number of classes of the case."""
    networks: tuple[str, ...] = ()
    """Names or patterns such as `timm/vit*`; none: all networks."""
    epochs: int | None = Field(None, ge=1)
    epochs_up_to: UpTo | None = None
    batch_size: int | None = Field(None, ge=1)
    batch_size_up_to: UpTo | None = None
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)

    @property
    def changes(self) -> dict[str, Any]:
        """The fields that the case replaces."""
        return {name: value for name, value in self if name not in ("classes", "networks") and value is not None}

    def is_of(self, num_classes: int, network: str) -> bool:
        """Whether the case is that of a set with so many classes and of this network."""
        first, last = self.classes
        is_of_network = not self.networks or any(fnmatch(network, pattern) for pattern in self.networks)
        return first <= num_classes <= last and is_of_network


class ProtocolSpec(Spec):
    """A named protocol, its fields overridden one by one, or one of the user's own. No result travels without the label."""

    added: ClassVar[frozenset[str]] = frozenset({"stored_classes", "stored_dtype"})

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
    decays: Literal["all", "matrices"] = "all"
    """What weight decay acts on: all tensors, or those of more than one dimension (no biases, no norms)."""
    cases: tuple[CaseSpec, ...] = ()
    """Other values for some numbers of classes and some networks; a later case wins. A field that is set by hand leaves
    the cases of a named protocol."""
    schedule: Literal["one_cycle", "step", "half_cosine"] = "one_cycle"
    """one_cycle peaks at learning_rate; step multiplies by 0.2 after 2/3 and 5/6 of the epochs; half_cosine falls to half."""
    labels: Literal["hard", "teacher", "stored"] = "hard"
    """teacher: the preset's reference network answers for each augmented batch (KL divergence at `temperature`). stored: it has
    answered once for each image of the set; its answers are kept with the set, and CutMix mixes them."""
    stored_classes: int = Field(0, ge=0)
    """stored: classes an image whose answers are kept, the greatest; the others share what is left. 0: all."""
    stored_dtype: Literal["float16", "float32"] = "float16"
    """stored: of the answers kept."""
    temperature: float = Field(20.0, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop_scale: float = Field(1.0, gt=0, le=1)
    """Least share of the area that a random resized crop takes; 1: no such crops."""
    flip: bool = False
    shift: int = Field(0, ge=0)
    """Random translation, pixels."""
    jitter: float = Field(0.0, ge=0, lt=1)
    """Brightness, contrast and saturation by factors from 1 - jitter to 1 + jitter, in random order."""
    jitter_clamped: bool = True
    """Whether values are clamped to [0, 1] after each of the three, as torchvision does; the code of IDC does not."""
    lighting: float = Field(0.0, ge=0)
    """Standard deviation of PCA lighting (AlexNet)."""
    cutmix: bool = False
    """With every batch, beta = 1."""
    num_tests: int = Field(4, ge=1)
    """Evenly over training, the last one after the last step. `best` is the best of them: an oracle."""
    tests_from: float = Field(0.0, ge=0, lt=1)
    """The share of training after which the tests begin."""

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
        given = {key: as_tuples(value) for key, value in data.items() if key not in ("name", "label")}
        own = _changed(cls, given, shipped)
        fields = {**(shipped or {}), "cases": _cases_left(shipped, own), **given, "name": name}
        fields["label"] = _label(str(name), own, is_shipped=shipped is not None)
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
        if self.labels != "stored" and (self.stored_classes or self.stored_dtype != "float16"):
            what = f"stored_classes and stored_dtype mean something with labels: stored, not {self.labels}"
            raise ValueError(what, "leave them out, or set labels: stored")
        pairs_of_cases = (pairs for case in self.cases for pairs in (case.epochs_up_to or (), case.batch_size_up_to or ()))
        for pairs in (self.epochs_up_to, self.batch_size_up_to, *pairs_of_cases):
            limits = [limit for limit, _ in pairs]
            if limits != sorted(set(limits)) or any(min(pair) < 1 for pair in pairs):
                raise ValueError(f"expected pairs of positive numbers, rising, got {pairs}", "e.g. [[10, 2000], [50, 1500]]")
        return self

    def without_augmentation(self) -> "ProtocolSpec":
        own = {name: getattr(self, name) for name in type(self).model_fields if name not in ("name", "label")}
        return ProtocolSpec.model_validate({**own, **_AUGMENTATION_OFF, "name": self.name + NO_AUGMENTATION})

    def of(self, num_classes: int, network: str) -> "ProtocolSpec":
        """The protocol as it is for a set with so many classes and for this network: without cases, under the same label."""
        changes: dict[str, Any] = {"cases": ()}
        for case in self.cases:
            changes |= case.changes if case.is_of(num_classes, network) else {}
        return self.model_copy(update=changes)

    def num_epochs(self, ipc: int) -> int:
        """The number of epochs for a set of `ipc` images a class; 0 where the protocol gives steps."""
        return _up_to(self.epochs_up_to, ipc, self.epochs)

    def batch_of(self, ipc: int) -> int:
        return _up_to(self.batch_size_up_to, ipc, self.batch_size)


def _up_to(pairs: UpTo, ipc: int, beyond: int) -> int:
    return next((value for limit, value in pairs if ipc <= limit), beyond)


def _cases(fields: Mapping[str, Any]) -> tuple[CaseSpec, ...]:
    return tuple(case if isinstance(case, CaseSpec) else CaseSpec.model_validate(case) for case in fields.get("cases", ()))


def _cases_left(shipped: Mapping[str, Any] | None, set_by_hand: Iterable[str]) -> tuple[CaseSpec, ...]:
    """The cases of a named protocol without the fields that are set by hand, which would otherwise have no effect."""
    cases = (case.model_copy(update=dict.fromkeys(set(set_by_hand) & set(case.changes))) for case in _cases(shipped or {}))
    return tuple(case for case in cases if case.changes)


def _changed(cls: type[ProtocolSpec], given: Mapping[str, Any], shipped: Mapping[str, Any] | None) -> dict[str, Any]:
    """The given fields whose values are not those of the named protocol."""
    defaults = {key: field.default for key, field in cls.model_fields.items()} | dict(shipped or {})
    own = {key: value for key, value in given.items() if key != "cases" and value != defaults.get(key)}
    if "cases" in given and _cases(given) != _cases_left(shipped, own):
        own["cases"] = [case.canonical() for case in _cases(given)]
    return own


def _label(name: str, own: Mapping[str, Any], *, is_shipped: bool) -> str:
    """The name of a protocol as shipped, otherwise with a hash of what differs."""
    if is_shipped and not own:
        return name
    try:
        return f"{name}+{hashlib.sha256(canonical_json(own).encode()).hexdigest()[:6]}"
    except (TypeError, ValueError):  # no plain values: the fields' own checks say what is wrong
        return name


@dataclass(frozen=True)
class StepPlan:
    """The steps that a protocol takes on a set: how many, how many an epoch, how many images each."""

    num_images: int
    batch: int
    steps_per_epoch: int
    num_steps: int
    counts_steps: bool
    """The protocol gives steps, not epochs: the learning rate follows them."""

    @classmethod
    def of(cls, protocol: ProtocolSpec, num_images: int, num_classes: int) -> "StepPlan":
        ipc = -(-num_images // num_classes)
        batch = min(protocol.batch_of(ipc), num_images)
        per_epoch = num_images // batch if protocol.drop_last else -(-num_images // batch)
        fixed = protocol.steps_large if ipc > 100 and protocol.steps_large else protocol.steps
        return cls(num_images, batch, per_epoch, fixed or per_epoch * protocol.num_epochs(ipc), bool(fixed))

    @property
    def num_epochs(self) -> int:
        """The number of epochs, a started one counted."""
        return -(-self.num_steps // self.steps_per_epoch)

    def length(self, step: int) -> int:
        """The number of images of step 0, 1, ...: the last batch of an epoch may be smaller."""
        return min(self.batch, self.num_images - step % self.steps_per_epoch * self.batch)

    def tests(self, protocol: ProtocolSpec) -> set[int]:
        """The numbers of steps after which the protocol tests, the last step among them."""
        first = int(protocol.tests_from * self.num_steps)
        num = min(protocol.num_tests, self.num_steps - first)
        return {first + round((self.num_steps - first) * (index + 1) / num) for index in range(num)}
