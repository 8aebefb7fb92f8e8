"""A sweep: what varies, over which seeds, judged by what. One file, one table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.base import Spec, Value, Values
from ddgd_ray.spec.check import check
from ddgd_ray.spec.evaluation import FeatureSpace
from ddgd_ray.spec.load import Document, nearest, read
from ddgd_ray.spec.preset import Preset, build_preset, read_preset, with_overrides
from ddgd_ray.spec.protocol import NO_AUGMENTATION, protocol_names
from ddgd_ray.spec.recipe import RECIPE, conflicts, read_recipe
from ddgd_ray.spec.space import Choice, Space, read_space
from ddgd_ray.spec.stages import NETWORKS

ControlName = Literal[
    "random_real", "herding", "herding_latents", "kcenter", "kcenter_latents", "full_data", "pretrained", "plain"
]
NO_AUGMENTATION_OF_MAIN = "noaug"
# fields of a stage that a sweep sets for each of its jobs: given anywhere else they would do nothing
SET_BY_SWEEP = {
    "finetune.seed": "seeds.distill",
    "sample.seed": "seeds.distill",
    "sample.ipc": "evaluate.ipc",
    "evaluate.network": "evaluate.networks",
    "evaluate.ipc": "evaluate.ipc",
    "evaluate.seed": "seeds.evaluate",
}


class SeedsSpec(Spec):
    distill: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of fine-tuning and sampling together: n of the table."""
    evaluate: tuple[int, ...] = Field((0, 1), min_length=1)
    """Seeds of the classifiers; averaged inside a distillation seed."""

    @field_validator("distill", "evaluate")
    @classmethod
    def _seeds_are_sound(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice", "remove one of the two")
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
        if len(set(names)) != len(names):
            raise ValueError("a protocol is listed twice", "remove one of the two")
        return names

    @field_validator("networks")
    @classmethod
    def _networks_are_known(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for name in networks:
            if name not in NETWORKS and not name.startswith("timm/"):
                known = f"known: {', '.join(NETWORKS)}, and timm/NAME"
                raise ValueError(f"unknown network {name!r}; {known}", f"did you mean {nearest(name, NETWORKS)}?")
        if len(set(networks)) != len(networks):
            raise ValueError("a network is listed twice", "remove one of the two")
        return networks

    @field_validator("ipc")
    @classmethod
    def _positive(cls, ipc: tuple[int, ...]) -> tuple[int, ...]:
        if min(ipc) < 1 or len(set(ipc)) != len(ipc):
            raise ValueError("each ipc must be 1 or more, and listed once", "e.g. [10, 50]")
        return ipc


class ObjectiveSpec(Spec):
    metric: Literal["val_top1", "top1_last", "top1_best", "top1_selected"] = "val_top1"
    """Mean over networks and seeds. val_top1 is measured on held-out training images; the others look at the test images."""
    direction: Literal["maximize", "minimize"] = "maximize"
    finalists: int = Field(1, ge=1)
    """Arms that see the test images with `test: finalists`."""


class SearchSpec(Spec):
    space: str
    """A file of search_spaces/, relative to the sweep file or to the working directory."""
    algorithm: Literal["tpe", "random"] = "tpe"
    trials: int = Field(20, ge=1, le=100_000)
    parallel: int = Field(2, ge=1)
    """Configurations proposed at once; the next batch waits for them, so that proposals do not depend on timing."""
    seed: int = Field(0, ge=0)


class ResourcesSpec(Spec):
    """How to run: nothing here changes a result or a key."""

    cpus: float = Field(1, gt=0)
    """Of one job."""
    gpus: float = Field(0, ge=0)
    workers: int = Field(1, ge=1)
    """Ray Train workers of one fine-tuning or sampling."""
    chunk: int = Field(256, ge=1)
    """Images a forward pass without gradient may hold."""
    checkpoint_steps: int = Field(500, ge=0)
    """Steps of a fine-tuning between checkpoints, from which it goes on after a crash; 0: none."""
    micro_batch: int = Field(0, ge=0)
    """Images that a pass with gradient may hold, 0 for a worker's whole share. Losses and memories see the whole batch in any
    case; the price is one more forward pass."""
    compile: bool = False
    """torch.compile the network's blocks: a minute at the start, faster steps."""
    pack: int = Field(0, ge=0)
    """Seeds of one classifier trained at once; 0: as many as fit on a GPU, one on a CPU, where a pack gains nothing."""
    recompute: bool = False
    """Gradient checkpointing: activations inside a block are computed again in the backward pass."""
    max_failures: int = Field(2, ge=0)
    """How often a job whose worker died is repeated."""
    max_failed_share: float = Field(0.5, ge=0, le=1)
    """Stop when more than this share of the finished jobs failed (at least 4)."""


class SweepSpec(Spec):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    preset: str = "fashion"
    recipe: str = ""
    """A method of spec/recipes to start from; `set` and what varies override it. May itself be varied, as `recipe`."""
    set: dict[str, Values] = Field(default_factory=dict)
    """Overrides of the preset for every trial, by dotted path."""
    vary: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Grid: every combination of these values, by dotted path."""
    search: SearchSpec | None = None
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
    resources: ResourcesSpec = ResourcesSpec()

    @field_validator("vary")
    @classmethod
    def _values_differ(cls, vary: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        for path, values in vary.items():
            if not values:
                raise ValueError(f"{path} lists no value", "list the values to compare")
            if len(set(map(repr, values))) != len(values):
                raise ValueError(f"{path} lists a value twice", "remove one of the two")
        return vary

    @model_validator(mode="after")
    def _one_way_to_vary(self) -> Self:
        given = bool(self.vary) + (self.search is not None)
        if given == 2 or not (given or self.sets):
            what = "give either `vary` (a grid) or `search` (a search space), one of the two, or `sets` to judge alone"
            raise ValueError(what, "e.g. vary: {finetune.lambda_g: [0.0, 0.008]}")
        return self

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
        if self.test == "finalists" and self.objective.metric != "val_top1":
            what = f"test: finalists goes by the validation images, objective.metric is {self.objective.metric}"
            raise ValueError(what, "set objective.metric: val_top1")
        return self


MAX_GRID = 10_000


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its spec, the preset's document with all overrides but the varied ones, the space if it searches."""

    spec: SweepSpec
    preset: Document
    space: Space
    source: Document
    places: Mapping[str, str]
    """Where each varied or searched field is written, `file:line`."""

    def preset_with(self, values: Mapping[str, Any], errors: list[SpecError] | None = None) -> Preset:
        """The preset of one configuration. Raises SpecErrors, or adds to `errors` when that list is given."""
        found: list[SpecError] = []
        placed = {path: (value, self.places.get(path, self.source.source)) for path, value in values.items()}
        try:
            document = with_overrides(self.preset, _with_recipe(placed), found)
        except SpecError as err:
            document, found = self.preset, [err]
        preset = build_preset(document, found) if not found else None
        if errors is not None:
            errors.extend(found)
        if preset is None:
            raise SpecErrors(found)
        return preset


def read_sweep(path: Path, overrides: Mapping[str, Any], preset_name: str | None = None) -> Sweep:
    """The sweep of a file. overrides: {dotted path: value}, the sweep's or its preset's. Raises SpecErrors: all at once."""
    return check_sweep(read(path), path.parent, overrides, preset_name)


def check_sweep(document: Document, folder: Path, overrides: Mapping[str, Any], preset_name: str | None = None) -> Sweep:
    """The same of a document that is read already. folder: where its search space may lie."""
    errors: list[SpecError] = []
    own, of_preset = _split_overrides(overrides)
    document = document.replaced(own, dict.fromkeys(own, "--set"))
    if preset_name is not None:
        document = document.replaced({("preset",): preset_name}, {("preset",): "--preset"})
    spec = check(SweepSpec, document, (), errors)
    if spec is None:  # what the preset says to `set` and `vary` is told in the same go, if they are sound in themselves
        parts = {name: document.data[name] for name in ("preset", "set", "vary") if name in document.data}
        spec = check(SweepSpec, Document({"name": "unnamed", **parts}, document.source), (), [])
    if spec is None:
        raise SpecErrors(errors)
    placed = {name: (value, document.line(("set", name))) for name, value in spec.set.items()}
    placed |= {name: (value, "--set") for name, value in of_preset.items()}
    errors.extend(_set_by_sweep(name, where) for name, (_, where) in placed.items() if name in SET_BY_SWEEP)
    try:
        chosen = read_recipe(spec.recipe, document.where((RECIPE,))) if spec.recipe else {}
        preset = with_overrides(read_preset(spec.preset, document.where(("preset",))), chosen | placed, errors)
        space, places = _read_space(spec, folder, document)
    except SpecErrors as err:
        raise SpecErrors([*errors, *err.errors]) from err
    except SpecError as err:
        raise SpecErrors([*errors, err]) from err
    errors.extend(_set_by_sweep(name, where) for name, where in places.items() if name in SET_BY_SWEEP)
    errors.extend(_recipe_conflicts(spec, space, document, {name: where for name, (_, where) in placed.items()} | places))
    sweep = Sweep(spec, preset, space, document, places)
    _check_values(sweep, errors)
    if errors:
        raise SpecErrors(errors)
    return sweep


def _split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[tuple[str | int, ...], Any], dict[str, Any]]:
    """`evaluate.networks` and the like are the sweep's own; `finetune.steps` is the preset's."""
    own: dict[tuple[str | int, ...], Any] = {}
    of_preset = {}
    for name, value in overrides.items():
        parts = tuple(name.split("."))
        if parts[0] in ("set", "vary"):  # below these a key is itself a dotted path
            parts = tuple(name.split(".", 1))
        of_stage = name in SET_BY_SWEEP and name != SET_BY_SWEEP[name]
        in_sweep = parts[0] in SweepSpec.model_fields and not (name.startswith("evaluate.protocol") or of_stage)
        if in_sweep:
            own[parts] = value
        else:
            of_preset[name] = value
    return own, of_preset


def _with_recipe(placed: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """The same with a varied recipe spelled out. Raises SpecError for a name that is none."""
    if RECIPE not in placed:
        return dict(placed)
    name, where = placed[RECIPE]
    return read_recipe(name, f"{where} {RECIPE}") | {path: value for path, value in placed.items() if path != RECIPE}


def _recipe_conflicts(spec: SweepSpec, space: Space, document: Document, fields: Mapping[str, str]) -> list[SpecError]:
    """What contradicts a varied recipe: fields set beside it, a fixed recipe, a control of the same name."""
    if RECIPE not in fields:
        return []
    searched = space.get(RECIPE)
    names = spec.vary.get(RECIPE, searched.values if isinstance(searched, Choice) else ())
    errors = conflicts(names, {path: where for path, where in fields.items() if path != RECIPE})
    if spec.recipe:
        where = document.where((RECIPE,))
        errors.append(SpecError("recipe is given and varied", code="recipe-conflict", where=where, fix="remove one of the two"))
    twice = [control for control in spec.controls if control in names]
    return errors + [
        SpecError(
            f"{control} is a control and a varied recipe: the same trials under one name",
            code="recipe-conflict",
            where=document.where(("controls",)),
            fix="remove one of the two",
        )
        for control in twice
    ]


def _set_by_sweep(name: str, where: str) -> SpecError:
    fix = f"use {SET_BY_SWEEP[name]} in its place"
    return SpecError(f"the sweep itself sets {name} for each of its jobs", code="unknown-key", where=f"{where} {name}", fix=fix)


def _read_space(spec: SweepSpec, folder: Path, document: Document) -> tuple[Space, dict[str, str]]:
    """The space, empty for a grid, and where each field that varies is written. Raises SpecError."""
    if spec.search is None:
        return {}, {name: document.line(("vary", name)) for name in spec.vary}
    beside = folder / spec.search.space
    try:
        space, written = read_space(beside if beside.is_file() else Path(spec.search.space))
    except SpecError as err:
        if err.code != "missing-file":
            raise
        where = document.where(("search", "space"))
        raise SpecError(f"{err.where}: {err.what}", code=err.code, where=where, fix="give a file of search_spaces/") from err
    return space, {name: written.line((name,)) for name in space}


def _check_values(sweep: Sweep, errors: list[SpecError]) -> None:
    """Every varied value alone must make a valid preset; so must the preset itself."""
    seen: set[str] = set()

    def collect(values: Mapping[str, Any]) -> None:
        found: list[SpecError] = []
        try:
            sweep.preset_with(values, found)
        except SpecErrors:
            errors.extend(error for error in found if str(error) not in seen)
            seen.update(map(str, found))

    collect({})
    if sweep.spec.test == "finalists" and not errors and not sweep.preset_with({}).images.validation_per_class:
        where = sweep.source.where(("test",))
        fix = "hold out a validation slice: images.validation_per_class"
        errors.append(SpecError("test: finalists needs validation images to choose by", where=where, fix=fix))
    size = 1
    for path, values in sweep.spec.vary.items():
        size *= len(values)
        for value in values:
            collect({path: value})
    if size > MAX_GRID:
        errors.append(
            SpecError(
                f"the grid has {size} cells, the limit is {MAX_GRID}",
                where=sweep.source.where(("vary",)),
                fix="vary fewer fields, or use `search`",
            )
        )
    for path, distribution in sweep.space.items():
        ends = getattr(distribution, "values", None) or (getattr(distribution, "low"), getattr(distribution, "high"))  # noqa: B009
        for value in ends:
            collect({path: value})
