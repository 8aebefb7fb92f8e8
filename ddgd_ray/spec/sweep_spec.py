"""The sections of a sweep file: what varies, over which seeds, judged by what, run how."""

import itertools
import re
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from ddgd_ray.spec.base import Spec, Value, Values, refuse_twice
from ddgd_ray.spec.budget_spec import BudgetSpec
from ddgd_ray.spec.claims_spec import ClaimsSpec
from ddgd_ray.spec.evaluation import FeatureSpace, refuse_unknown_network
from ddgd_ray.spec.fidelity_spec import RaceSpec, RungsSpec
from ddgd_ray.spec.load import nearest
from ddgd_ray.spec.protocol import NO_AUGMENTATION, protocol_names
from ddgd_ray.spec.recipe import JOINT
from ddgd_ray.spec.search_spec import TEST_METRICS, ObjectiveSpec, SearchSpec

ControlName = Literal[
    "random_real",
    "herding",
    "herding_idc",
    "herding_latents",
    "kcenter",
    "kcenter_latents",
    "full_data",
    "pretrained",
    "plain",
]
NO_AUGMENTATION_OF_MAIN = "noaug"
PARTS, FULL, WITHOUT = "parts", "full", "no-"
"""The field by which arms of a method's parts differ, its value for the whole method, and what precedes a part switched off."""
StageName = Literal[
    "adopt",
    "autoencoder",
    "encode",
    "pretrain",
    "finetune",
    "sample",
    "decode",
    "select",
    "features",
    "quality",
    "evaluate",
    "test",
    "portray",
    "modes",
    "invert",
    "spectrum",
    "pick",
    "scores",
    "relabel",
]
WIDE_STAGES = ("finetune", "sample")  # those that share their work among workers


class SeedsSpec(Spec):
    distill: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of fine-tuning and sampling together: n of the table."""
    evaluate: tuple[int, ...] = Field((0, 1), min_length=1)
    """Seeds of the classifiers; averaged inside a distillation seed."""

    @field_validator("distill", "evaluate")
    @classmethod
    def _seeds_are_sound(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        refuse_twice(seeds, "a seed")
        if any(not 0 <= seed < 2**31 for seed in seeds):
            raise ValueError("a seed must lie in 0 .. 2^31 - 1", "e.g. [0, 1, 2]")
        return seeds


class EvaluatorsSpec(Spec):
    networks: tuple[str, ...] = Field(("convnet3_slim", "resnet_slim"), min_length=1)
    ipc: tuple[int, ...] = Field((20,), min_length=1)
    """Images per class; the largest is sampled, smaller ones are its prefixes."""
    also: tuple[str, ...] = ()
    """Further protocols to judge every set by: names of spec/protocols, or noaug for the main one without augmentation."""

    @field_validator("also")
    @classmethod
    def _protocols_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            known = [*protocol_names(), NO_AUGMENTATION_OF_MAIN]
            if name.removesuffix(NO_AUGMENTATION) not in known:
                raise ValueError(
                    f"unknown protocol {name!r}; known: {', '.join(known)}", f"did you mean {nearest(name, known)}?"
                )
        refuse_twice(names, "a protocol")
        return names

    @field_validator("networks")
    @classmethod
    def _networks_are_known(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for name in networks:
            refuse_unknown_network(name)
        refuse_twice(networks, "a network")
        return networks

    @field_validator("ipc")
    @classmethod
    def _positive(cls, ipc: tuple[int, ...]) -> tuple[int, ...]:
        if min(ipc) < 1 or len(set(ipc)) != len(ipc):
            raise ValueError("each ipc must be 1 or more, and listed once", "e.g. [10, 50]")
        return ipc


class AmountsSpec(Spec):
    """What one worker of a job holds."""

    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    """A fraction packs several jobs on one GPU; above 1 only whole numbers."""
    memory_gb: float = Field(0, ge=0)
    """Main memory that is kept for it, GB; 0: not counted."""
    accelerator: str = ""
    """A GPU type as Ray names it, such as H100; "": any."""
    workers: int = Field(1, ge=1)
    """Ray Train workers of one fine-tuning or sampling; each holds the above."""

    @property
    def held(self) -> dict[str, float]:
        """CPUs and GPUs of a job over all its workers."""
        return {"cpus": self.cpus * self.workers, "gpus": self.gpus * self.workers}

    @field_validator("gpus")
    @classmethod
    def _whole_gpus_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"expected a whole number of GPUs or a fraction below 1, got {gpus:g}", f"try {int(gpus)}")
        return gpus


class ResourcesSpec(AmountsSpec):
    """How to run: nothing here changes a result or a key."""

    stages: dict[StageName, AmountsSpec] = Field(default_factory=dict)
    """Other amounts for a stage: {evaluate: {gpus: 0.25}}; what is left out there is as above."""
    placement: Literal["pack", "spread"] = "pack"
    """Workers of one fine-tuning or sampling: on as few nodes as can be, or on as many."""
    encode: Literal["local", "cluster"] = "local"
    """cluster: the shards of a latent cache are made by tasks all over the cluster, for millions of images; same bytes."""
    chunk: int = Field(256, ge=1)
    """Images a forward pass without gradient may hold."""
    checkpoint_steps: int = Field(500, ge=0)
    """Steps of a fine-tuning between checkpoints, from which it goes on after a crash; 0: none."""
    micro_batch: int = Field(0, ge=0)
    """Images that a pass with gradient may hold, 0 for a worker's whole share. Losses and memories see the whole batch in any
    case; the price is one more forward pass."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile the networks: a minute at the start, faster steps. auto: the DiT's blocks on a GPU, which otherwise
    waits for the host at small batches; not the classifiers."""
    pack: int = Field(0, ge=0)
    """Seeds of one classifier trained at once; 0: as many as fit on a GPU, one on a CPU, where a pack gains nothing."""
    recompute: bool = False
    """Gradient checkpointing: activations inside a block are computed again in the backward pass."""
    grace_s: float = Field(60, ge=0)
    """Seconds that jobs which cannot go on later, such as classifiers, have to end after an interruption."""
    max_failures: int = Field(2, ge=0)
    """How often a job whose worker died is repeated."""
    max_failed_share: float = Field(0.5, ge=0, le=1)
    """Stop when more than this share of the finished jobs failed (at least 4)."""

    def of(self, stage: str) -> AmountsSpec:
        """What a worker of this stage holds. Stages that share no work have one worker."""
        own = next((amounts for name, amounts in self.stages.items() if name == stage), None)
        given = {name: getattr(own, name) for name in own.model_fields_set} if own else {}
        amounts = {name: getattr(self, name) for name in AmountsSpec.model_fields} | given
        return AmountsSpec(**amounts if stage in WIDE_STAGES else amounts | {"workers": 1})


class SweepSpec(Spec):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    preset: str = "fashion"
    recipe: str = ""
    """A method of spec/recipes to start from; `set` and what varies override it. A list, or names joined by +, combines
    several. May itself be varied, as `recipe`."""
    set: dict[str, Values] = Field(default_factory=dict)
    """Overrides of the preset for every trial, by dotted path."""
    vary: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Grid: every combination of these values, by dotted path."""
    parts: dict[str, dict[str, Values]] = Field(default_factory=dict)
    """In place of `vary`: one arm with the whole method, and for each part one that lacks it: {part: what switches it off}."""
    search: SearchSpec | None = None
    race: RaceSpec | None = None
    """Drop configurations that are shown to be worse before they have had every seed."""
    rungs: RungsSpec | None = None
    """Try configurations at cheaper settings first, and the best at the full one."""
    seeds: SeedsSpec = SeedsSpec()
    evaluate: EvaluatorsSpec = EvaluatorsSpec()
    controls: tuple[ControlName, ...] = ()
    sets: dict[str, Values] = Field(default_factory=dict)
    """Ready-made sets, whoever made them, judged as arms beside the others: {name: folder}, or a list of folders, its seeds."""
    quality: tuple[FeatureSpace, ...] = ()
    """Feature spaces in which each set is compared with the real images: latents, or the reference network's features."""
    test: Literal["all", "finalists"] = "all"
    """Which arms' classifiers see the test images. finalists: the best by the objective and the controls, once, at the end."""
    objective: ObjectiveSpec = ObjectiveSpec()
    claims: ClaimsSpec | None = None
    """What the tables may conclude; without it they say what these seeds could have told."""
    resources: ResourcesSpec = ResourcesSpec()
    budget: BudgetSpec = BudgetSpec()

    @field_validator("recipe", mode="before")
    @classmethod
    def _one_or_several(cls, recipe: object) -> object:
        is_list = isinstance(recipe, tuple | list) and all(isinstance(name, str) for name in recipe)
        return JOINT.join(recipe) if is_list else recipe  # type: ignore[arg-type]

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the varied values, the last field fastest; none when nothing varies.

        With `parts`, the whole method and the method without each of them.
        """
        if self.parts:
            return [{PARTS: FULL}, *({PARTS: f"{WITHOUT}{part}"} for part in self.parts)]
        if not self.vary:
            return []
        return [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]

    @field_validator("vary")
    @classmethod
    def _values_differ(cls, vary: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        for path, values in vary.items():
            if not values:
                raise ValueError(f"{path} lists no value", "list the values to compare")
            if len({(isinstance(value, bool), value) for value in values}) != len(values):  # 0 and 0.0 are one value
                raise ValueError(f"{path} lists a value twice", "remove one of the two")
        return vary

    @model_validator(mode="after")
    def _one_way_to_vary(self) -> Self:
        given = bool(self.vary) + bool(self.parts) + (self.search is not None)
        if given > 1 or not (given or self.sets):
            what = "give one of `vary` (a grid), `parts` (of a method), `search` (a search space), or `sets` to judge alone"
            raise ValueError(what, "e.g. vary: {finetune.lambda_g: [0.0, 0.008]}")
        return self

    @field_validator("parts")
    @classmethod
    def _parts_are_named(cls, parts: dict[str, dict[str, Values]]) -> dict[str, dict[str, Values]]:
        for name, off in parts.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,40}", name):
                raise ValueError(f"{name!r} cannot name a part", "use letters, digits, . + -")
            if not off:
                raise ValueError(f"{name} says nothing", "say what switches it off, e.g. {finetune.lambda_g: 0.0}")
        return parts

    @field_validator("controls")
    @classmethod
    def _controls_differ(cls, controls: tuple[ControlName, ...]) -> tuple[ControlName, ...]:
        refuse_twice(controls, "a control")
        return controls

    @field_validator("sets")
    @classmethod
    def _sets_are_named(cls, sets: dict[str, Values]) -> dict[str, Values]:
        for name, folders in sets.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,59}", name) or name in get_args(ControlName):
                raise ValueError(f"{name!r} cannot name a set", "use letters, digits, . + -, and no name of a control")
            paths = folders if isinstance(folders, tuple) else (folders,)
            if not paths or not all(isinstance(path, str) and path for path in paths):
                raise ValueError(f"{name}: expected a folder, or a list of folders", "e.g. sets: {mine: /path/to/set}")
        return sets

    @model_validator(mode="after")
    def _finalists_are_chosen_without_the_test(self) -> Self:
        readers = [metric for metric in self.objective.all_metrics if metric in TEST_METRICS]
        if self.test == "finalists" and readers:
            what = f"test: finalists goes by the validation images, objective.metric is {readers[0]}"
            raise ValueError(what, "set objective.metric: val_top1")
        return self
