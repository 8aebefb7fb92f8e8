"""One spec per stage that makes a set; spec/evaluation.py has those that judge it. Each field changes the result; how to run
lives in `Resources`.

Changed what a stage computes? Bump its `version` in the same commit.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ddgd_ray.spec.base import Spec, refuse_twice
from ddgd_ray.spec.guide import GuideSpec, ModesChoiceSpec, StartSpec

# training images of the smallest class, where the data set is fixed
TRAIN_PER_CLASS = {"fashion": 1000, "fashion-full": 6000, "digits": 140}
# method/classifiers.py builds them; a typo would come to light after the first fine-tuning only
NETWORKS = (
    "convnet3_slim",
    "resnet_slim",
    "convnet",
    "convnet3",
    "convnet6",
    "resnet_ap10",
    "resnet_ap18",
    "resnet18",
    "resnet18_bn",
)

PopStrategy = Literal["max_similarity", "min_similarity", "fifo", "random", "reservoir", "kcenter"]


class ImagesSpec(Spec):
    """The real images, and how they are split. Their content enters keys as a fingerprint, `root` never does."""

    source: Literal["fashion", "fashion-full", "digits", "imagefolder"]
    classes: tuple[str, ...] = Field(min_length=2)
    """Class names in label order; WordNet ids when the folders are named so."""
    labels: Literal["position", "imagenet"] = "position"
    """Label given to the generative model: the place in `classes`, or the ImageNet-1k index of the WordNet id."""
    size: int = Field(ge=8, le=1024)
    """Pixels a side after padding or resizing."""
    channels: Literal[1, 3] = 3
    validation_per_class: int = Field(0, ge=0)
    """Training images a class held out from everything but the search metric."""
    root: str = Field("", exclude=True)
    """Folder of the images, for `imagefolder` and `fashion-full`; may start with `~` or hold $VARIABLES."""
    # the three below say which files of an image folder count: they enter its fingerprint, so no key of another source
    test_per_class: int = Field(0, ge=0, exclude=True)
    """Test images a class taken from an image folder that has no split of its own; ddgd_ray/imagefolder.py says which."""
    on_corrupt: Literal["fail", "skip"] = Field("fail", exclude=True)
    """What becomes of files that cannot be decoded: an error that lists them, or a list in the artifact."""
    max_corrupt: int = Field(20, ge=0, exclude=True)
    """Most files a stage may skip; more of them mean a damaged copy."""

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        refuse_twice(classes, "a class")
        return classes

    @field_validator("classes")
    @classmethod
    def _classes_name_folders(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        """A set's images lie in a folder a class: no name may lead out of the set's own."""
        bad = [name for name in classes if not name or name[0] == "." or "/" in name or not name.isprintable()]
        bad += [name for name in classes if len(name.encode()) > 200]
        if bad:
            raise ValueError(f"cannot name a folder: {', '.join(map(repr, bad[:10]))}", "use plain names, or WordNet ids")
        return classes

    @field_validator("validation_per_class")
    @classmethod
    def _some_are_left(cls, number: int, info: ValidationInfo) -> int:
        most = TRAIN_PER_CLASS.get(info.data.get("source", ""), number + 1)
        if number >= most:
            what = f"expected less than the {most} training images of a class, got {number}"
            raise ValueError(what, "leave some to distill")
        return number

    @field_validator("test_per_class", "on_corrupt")
    @classmethod
    def _only_folders_hold_files(cls, value: int | str, info: ValidationInfo) -> int | str:
        source = info.data.get("source", "imagefolder")
        if source != "imagefolder" and value not in (0, "fail"):
            raise ValueError(f"means something with source: imagefolder only, got source: {source}", "leave it out")
        return value


class StageSpec(Spec):
    stage: ClassVar[str]
    version: ClassVar[int]


class AutoencoderSpec(StageSpec):
    """Train the small image autoencoder of an embedded preset, or take pixels as latents (`identity`)."""

    stage: ClassVar[str] = "autoencoder"
    version: ClassVar[int] = 1

    kind: Literal["kl", "identity"] = "kl"
    images: ImagesSpec
    widths: tuple[int, ...] = (16, 32, 32)
    """Channels per resolution; each further entry halves the side."""
    latent_channels: int = Field(4, ge=1)
    steps: int = Field(600, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of a one-cycle schedule of AdamW."""
    l1_weight: float = Field(0.1, ge=0)
    kl_weight: float = Field(1e-4, ge=0)
    seed: int = Field(0, ge=0)


class AdoptSpec(StageSpec):
    """Take weights from outside into the store: checked, in diffusers' layout, with what their files do not say."""

    stage: ClassVar[str] = "adopt"
    version: ClassVar[int] = 1

    part: Literal["autoencoder", "backbone"]
    heads: int = Field(0, ge=0)
    """Attention heads of a checkpoint in DiT's own layout; 0: by its width, as published."""
    timestep_shift: Literal[0, 1] = 0
    """stages/parts/backbone.py, set_timestep_shift: 0 for weights trained with DiT's own code, 1 with diffusers' DiT."""


class EncodeSpec(StageSpec):
    """Latent cache: posterior mean and log-variance of every training image and of its mirror image."""

    stage: ClassVar[str] = "encode"
    version: ClassVar[int] = 1

    images: ImagesSpec


class PretrainSpec(StageSpec):
    """Train a small class-conditional DiT from scratch on the latent cache."""

    stage: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1

    layers: int = Field(4, ge=1)
    heads: int = Field(3, ge=1)
    head_dim: int = Field(32, ge=4)
    patch: int = Field(2, ge=1)
    steps: int = Field(1800, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of a cosine schedule of AdamW with betas (0.9, 0.99)."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0)


class MemorySpec(Spec):
    pop: PopStrategy = "max_similarity"
    """Which latent leaves a full memory; method/memory.py."""
    size: int = Field(64, ge=2, le=65536)
    """Latents kept per class: N_R or N_G in the paper."""
    max_age: int = Field(0, ge=0)
    """Rows older than this many insertions into their class leave first; 0: no limit."""


class FinetuneSpec(StageSpec):
    """Fine-tune the DiT with the two memory losses (paper Eq. 2-8)."""

    stage: ClassVar[str] = "finetune"
    version: ClassVar[int] = 3

    adapter: Literal["difffit", "bitfit", "lora", "full"] = "difffit"
    """What learns; method/difffit.py, stages/parts/adapters.py."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the updates with `adapter: lora`."""
    lora_alpha: int = Field(16, ge=1)
    """The updates are multiplied by lora_alpha / lora_rank."""
    steps: int = Field(1000, ge=0)
    """Optimizer steps; 0 leaves the model as it is (control)."""
    batch_size: int = Field(8, ge=1)
    """Images a step over all workers; losses and memories see the whole of it."""
    learning_rate: float = Field(1e-3, gt=0)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Of the average of the trainable weights, from the first step on."""
    ema_warmup: bool = False
    """Average with min(ema_decay, (1 + n) / (10 + n)) at step n, so that a short run forgets its start."""
    lambda_r: float = Field(0.002, ge=0)
    """Weight of L_real, Eq. 6."""
    lambda_g: float = Field(0.008, ge=0)
    """Weight of L_gen, Eq. 6."""
    memory_real: MemorySpec = MemorySpec()
    memory_gen: MemorySpec = MemorySpec()
    memory_scope: Literal["global", "local"] = "global"
    """global: any number of workers gives the result of one. local: one memory a rank, as the public codes do."""
    local_ranks: int = Field(1, ge=1)
    """Number of memories with `memory_scope: local`; must equal the number of workers."""
    reduction: Literal["joint", "per_sample"] = "joint"
    class_aggregation: Literal["mean", "cumulative"] = "mean"
    warmup: Literal["first_visit", "full"] = "first_visit"
    t_min: int = Field(0, ge=0, lt=1000)
    """Samples with t < t_min take no part in the memory losses and memories; 0: all take part."""
    t_max: int = Field(1000, ge=1, le=1000)
    """Samples with t >= t_max take no part either; 1000: all take part. At t = 999 an error of eps counts 157 times."""
    vb: bool = True
    """Add the variational term when the model predicts a variance."""
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the network's matrix products; weights that learn, losses and memories stay float32. tf32 is float32 on a CPU."""
    seed: int = Field(0, ge=0)

    @property
    def gates_t(self) -> bool:
        return self.t_min > 0 or self.t_max < 1000

    @field_validator("t_max")
    @classmethod
    def _range_is_not_empty(cls, t_max: int, info: ValidationInfo) -> int:
        if t_max <= info.data.get("t_min", 0):
            raise ValueError(f"expected more than t_min = {info.data['t_min']}, got {t_max}", "raise t_max or lower t_min")
        return t_max

    @field_validator("lora_rank", "lora_alpha")
    @classmethod
    def _lora_fields_need_lora(cls, number: int, info: ValidationInfo) -> int:
        name = info.field_name or ""
        adapter = info.data.get("adapter", "lora")
        if adapter != "lora" and number != cls.model_fields[name].default:
            raise ValueError(f"{name} means something with adapter: lora only, not {adapter}", "set finetune.adapter: lora")
        return number

    @field_validator("local_ranks")
    @classmethod
    def _local_ranks_need_local_scope(cls, number: int, info: ValidationInfo) -> int:
        if info.data.get("memory_scope") == "global" and number != 1:
            raise ValueError(
                "local_ranks means something with memory_scope: local only", "set finetune.memory_scope, or leave 1"
            )
        return number


class SampleSpec(StageSpec):
    """Draw the distilled set from the fine-tuned model."""

    stage: ClassVar[str] = "sample"
    version: ClassVar[int] = 3
    added: ClassVar[frozenset[str]] = frozenset({"guide", "start", "modes", "spectral_gain"})

    sampler: Literal["ddpm", "ddim", "dpmpp"] = "ddpm"
    """ddpm: ancestral. ddim: eta = 0. dpmpp: second-order DPM-Solver++."""
    steps: int = Field(50, ge=2, le=1000)
    guidance: float = Field(4.0, ge=0)
    """Classifier-free guidance scale; 1: none."""
    cfg_channels: int = Field(3, ge=1)
    """Leading latent channels that are guided; DiT guides 3 of 4."""
    weights: Literal["ema", "raw"] = "ema"
    ipc: int = Field(10, ge=1)
    """Images per class; a smaller set is a prefix of a larger one."""
    dtype: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the denoiser's matrix products; latents stay float32. The decoder computes in float32, by TF32 unless this is float32.
    tf32 is float32 on a CPU."""
    guide: GuideSpec = GuideSpec()
    """What pulls the samples toward the data on their way."""
    start: StartSpec = StartSpec()
    """What the samples begin from."""
    modes: ModesChoiceSpec = ModesChoiceSpec()
    """The k-means centres that `guide` and `start` use."""
    spectral_gain: float = Field(1.0, ge=1)
    """Most that the amplitude of a spatial frequency is multiplied by after decoding, to be that of real images; 1: not."""
    images: ImagesSpec
    seed: int = Field(0, ge=0)

    @property
    def needs_modes(self) -> bool:
        return self.guide.needs_modes or self.start.name == "prototype"

    @field_validator("steps")
    @classmethod
    def _each_timestep_once(cls, steps: int, info: ValidationInfo) -> int:
        if info.data.get("sampler") == "dpmpp" and steps > 999:
            raise ValueError("expected at most 999 steps with sampler dpmpp", "set sample.steps to 999 or less")
        return steps

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """Refuses what would do nothing, or something else than its name says."""
        if self.sampler == "dpmpp" and (self.guide.name != "none" or self.start.name != "noise"):
            what = "sampler dpmpp goes by its steps before, which a guide or a later start would contradict"
            raise ValueError(what, "set sample.sampler to ddim or ddpm")
        if self.start.name == "inversion" and self.sampler != "ddim":
            what = (
                f"start inversion needs sampler ddim: fresh noise, as of {self.sampler}, undoes what its groups are chosen for"
            )
            raise ValueError(what, "set sample.sampler: ddim")
        if self.modes != ModesChoiceSpec() and not self.needs_modes:
            raise ValueError("modes mean something with a guide or start: prototype only", "leave sample.modes out")
        return self
