"""One spec per stage that judges a set, or picks one of real images to compare with.

Changed what a stage computes? Bump its `version` in the same commit.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.load import nearest
from ddgd_ray.spec.networks import timm_networks
from ddgd_ray.spec.pick import PickSpec, ScoresSpec
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import (
    NETWORKS,
    AdoptSpec,
    AutoencoderSpec,
    EncodeSpec,
    FinetuneSpec,
    ImagesSpec,
    PretrainSpec,
    SampleSpec,
    StageSpec,
)
from ddgd_ray.spec.ways import InvertSpec, ModesSpec, RelabelSpec, SpectrumSpec

FeatureSpace = Literal["latents", "network", "inception"]


class DecodeSpec(StageSpec):
    """Test and validation images as the networks see them, decoded once for all evaluators."""

    stage: ClassVar[str] = "decode"
    version: ClassVar[int] = 1

    images: ImagesSpec
    size: int = Field(ge=8, le=1024)
    """Pixels a side after the central crop."""
    resize: int = Field(ge=8, le=2048)
    """Shorter side before it."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize < self.size:
            raise ValueError(f"test_resize = {self.resize} is less than size = {self.size}", "raise protocol.test_resize")
        return self


class SelectSpec(StageSpec):
    """A control set made of real training images."""

    stage: ClassVar[str] = "select"
    version: ClassVar[int] = 2

    method: Literal["random", "herding", "herding_idc", "kcenter", "all"] = "random"
    """herding and kcenter go by the features of the input of that name; herding of unit length, as iCaRL, herding_idc of their
    own length, as the code of IDC."""
    ipc: int = Field(10, ge=0)
    """Images per class; a smaller set is a prefix of a larger one. 0 with `all`."""
    images: ImagesSpec
    seed: int = Field(0, ge=0)


class FeaturesSpec(StageSpec):
    """Every image of a set, or every training image, as a vector: its latent, a network's last features, Inception's."""

    stage: ClassVar[str] = "features"
    version: ClassVar[int] = 1

    space: FeatureSpace
    images: ImagesSpec
    size: int = Field(ge=8, le=1024)
    """Pixels a side that the model sees."""
    ipc: int = Field(0, ge=0)
    """Images per class used, the first ones of the set; 0: all."""


class QualitySpec(StageSpec):
    """The quality of a set: how near its features are to those of the real images, and how far apart; method/metrics.py."""

    stage: ClassVar[str] = "quality"
    version: ClassVar[int] = 2

    neighbours: int = Field(5, ge=1, le=10)
    """k of precision, recall, density and coverage."""
    copy_quantile: float = Field(0.01, gt=0, lt=1)
    """An image nearer to a training image than this quantile of the training images' own nearest distances is a copy."""


class PortraySpec(StageSpec):
    """Pictures of what the memories of a fine-tuning held, for a report that asks for them."""

    stage: ClassVar[str] = "portray"
    version: ClassVar[int] = 1

    images: ImagesSpec


class EvaluateSpec(StageSpec):
    """Train one classifier from scratch on a set, test it on real images."""

    stage: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 3

    network: str = "convnet3_slim"
    """A name of method/classifiers.py, or `timm/NAME`."""
    ipc: int = Field(10, ge=0)
    """Images per class used, the first ones of the set; 0: all."""
    protocol: ProtocolSpec = Field(default_factory=ProtocolSpec)
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the network's matrix products; weights and losses stay float32. tf32 is float32 on a CPU."""
    tests: Literal["all", "last", "none"] = "all"
    """When the test images are looked at: at each of the protocol's tests, after the last step, never."""
    keep_weights: bool = False
    """Write the classifier's weights: after the last step, and where the validation accuracy was best."""
    images: ImagesSpec
    seed: int = Field(0, ge=0)

    @property
    def own_protocol(self) -> ProtocolSpec:
        """The protocol as it is for these classes and this network."""
        return self.protocol.of(len(self.images.classes), self.network)


class TestSpec(StageSpec):
    """The test images, looked at by a classifier that was trained without them."""

    __test__ = False  # no case of pytest's

    stage: ClassVar[str] = "test"
    version: ClassVar[int] = 1


def refuse_unknown_network(name: str) -> str:
    """The name. Raises ValueError for a network that is neither ours nor timm's."""
    of_timm = name.removeprefix("timm/").partition(".")[0] if name.startswith("timm/") else ""  # NAME.TAG: a set of weights
    if name in NETWORKS or of_timm in timm_networks():
        return name
    known = timm_networks() if name.startswith("timm/") else NETWORKS
    near = nearest(of_timm or name, known)
    ours = f"known: {', '.join(NETWORKS)}, and timm/NAME"
    raise ValueError(f"unknown network {name!r}; {ours}", f"did you mean {'timm/' if known is not NETWORKS else ''}{near}?")


class ReferenceSpec(Spec):
    """The network trained on all real training images: feature space of herding, k-center and quality, RDED's teacher."""

    inception: str = Field("", exclude=True)
    """TorchScript file of a network for `quality: [inception]`, such as inception-2015-12-05.pt: takes (B, 3, S, S) uint8. Its
    content enters the keys. May start with `~` or hold $VARIABLES."""

    network: Annotated[str, AfterValidator(refuse_unknown_network)] = "resnet_slim"
    protocol: ProtocolSpec = Field(default_factory=ProtocolSpec)

    @model_validator(mode="after")
    def _has_no_teacher(self) -> Self:
        if self.protocol.labels != "hard":
            raise ValueError("the reference network is the teacher: its own protocol needs hard labels", "e.g. teacher")
        return self


_SPECS = (
    AdoptSpec,
    AutoencoderSpec,
    EncodeSpec,
    PretrainSpec,
    FinetuneSpec,
    SampleSpec,
    DecodeSpec,
    SelectSpec,
    FeaturesSpec,
    QualitySpec,
    EvaluateSpec,
    TestSpec,
    PortraySpec,
    ModesSpec,
    InvertSpec,
    SpectrumSpec,
    PickSpec,
    ScoresSpec,
    RelabelSpec,
)
STAGE_SPECS: dict[str, type[StageSpec]] = {cls.stage: cls for cls in _SPECS}
