"""A sweep: what varies, over which seeds, judged by what. One file, one table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.load import Document, check, read
from ddgd_ray.spec.preset import Preset, build_preset, read_preset, with_overrides
from ddgd_ray.spec.space import Space, read_space

METRICS = ("val_top1", "top1_last", "top1_best", "top1_selected")
ControlName = Literal["random_real", "full_data", "pretrained", "plain"]
Value = str | int | float | bool


class SeedsSpec(Spec):
    distill: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of fine-tuning and sampling together: n of the table."""
    evaluate: tuple[int, ...] = Field((0, 1), min_length=1)
    """Seeds of the classifiers; averaged inside a distillation seed."""

    @field_validator("distill", "evaluate")
    @classmethod
    def _seeds_are_sound(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice")
        if any(not 0 <= seed < 2**31 for seed in seeds):
            raise ValueError("a seed must lie in 0 .. 2^31 - 1")
        return seeds


class EvaluatorsSpec(Spec):
    networks: tuple[str, ...] = Field(("convnet3_slim", "resnet_slim"), min_length=1)
    ipc: tuple[int, ...] = Field((20,), min_length=1)
    """Images per class; the largest is sampled, smaller ones are its prefixes."""

    @field_validator("ipc")
    @classmethod
    def _positive(cls, ipc: tuple[int, ...]) -> tuple[int, ...]:
        if min(ipc) < 1 or len(set(ipc)) != len(ipc):
            raise ValueError("each ipc must be 1 or more, and listed once")
        return ipc


class ObjectiveSpec(Spec):
    metric: Literal["val_top1", "top1_last", "top1_best", "top1_selected"] = "val_top1"
    """Mean over networks and seeds. val_top1 is measured on held-out training images; the others look at the test images."""
    direction: Literal["maximize", "minimize"] = "maximize"


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
    """Ray Train workers of one fine-tuning."""
    chunk: int = Field(256, ge=1)
    """Images a forward pass without gradient may hold."""
    max_failures: int = Field(2, ge=0)
    """How often a job whose worker died is repeated."""
    max_failed_share: float = Field(0.5, ge=0, le=1)
    """Stop when more than this share of the finished jobs failed (at least 4)."""


class SweepSpec(Spec):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    preset: str = "fashion"
    set: dict[str, Value | tuple[Value, ...]] = Field(default_factory=dict)
    """Overrides of the preset for every trial, by dotted path."""
    vary: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Grid: every combination of these values, by dotted path."""
    search: SearchSpec | None = None
    seeds: SeedsSpec = SeedsSpec()
    evaluate: EvaluatorsSpec = EvaluatorsSpec()
    controls: tuple[ControlName, ...] = ()
    objective: ObjectiveSpec = ObjectiveSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @model_validator(mode="after")
    def _one_way_to_vary(self) -> Self:
        if bool(self.vary) == (self.search is not None):
            raise ValueError("give either `vary` (a grid) or `search` (a search space), one of the two")
        for path, values in self.vary.items():
            if not values:
                raise ValueError(f"vary.{path} lists no value")
            if len(set(map(repr, values))) != len(values):
                raise ValueError(f"vary.{path} lists a value twice")
        return self


MAX_GRID = 10_000


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its spec, the preset's document with all overrides but the varied ones, the space if it searches."""

    spec: SweepSpec
    preset: Document
    space: Space
    source: Document

    def preset_with(self, values: Mapping[str, Any], errors: list[SpecError] | None = None) -> Preset:
        """The preset of one configuration. Raises SpecErrors, or adds to `errors` when that list is given."""
        found: list[SpecError] = []
        document = with_overrides(self.preset, self._placed(values), found)
        preset = build_preset(document, found) if not found else None
        if errors is not None:
            errors.extend(found)
        if preset is None:
            raise SpecErrors(found)
        return preset

    def _placed(self, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        return {path: (value, self.source.line(("vary", path))) for path, value in values.items()}


def read_sweep(path: Path, overrides: Mapping[str, Any], preset_name: str | None = None) -> Sweep:
    """The sweep of a file. overrides: {dotted path: value}, of the sweep or of its preset. Raises SpecErrors with all errors."""
    document = read(path)
    errors: list[SpecError] = []
    own, of_preset = _split_overrides(overrides)
    document = document.replaced(own, {name: "--set" for name in own})
    if preset_name is not None:
        document = document.replaced({("preset",): preset_name}, {("preset",): "--preset"})
    spec = check(SweepSpec, document, (), errors)
    if spec is None:
        raise SpecErrors(errors)
    placed = {name: (value, document.line(("set", name))) for name, value in spec.set.items()}
    placed |= {name: (value, "--set") for name, value in of_preset.items()}
    preset = with_overrides(read_preset(spec.preset), placed, errors)
    space = read_space(_space_path(spec.search.space, path)) if spec.search else {}
    if errors:
        raise SpecErrors(errors)
    sweep = Sweep(spec, preset, space, document)
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
        in_sweep = parts[0] in SweepSpec.model_fields and not (parts[0] == "evaluate" and parts[1:2] == ("protocol",))
        if in_sweep:
            own[parts] = value
        else:
            of_preset[name] = value
    return own, of_preset


def _space_path(written: str, sweep_file: Path) -> Path:
    beside = sweep_file.parent / written
    return beside if beside.is_file() else Path(written)


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
    if errors:
        return
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
