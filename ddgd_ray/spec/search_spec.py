"""What is searched for, and how: the sections `search` and `objective` of a sweep file, and whether they fit the space."""

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from ddgd_ray.errors import SpecError
from ddgd_ray.spec.base import Spec, Value
from ddgd_ray.spec.evaluation import FeatureSpace
from ddgd_ray.spec.load import Document, nearest
from ddgd_ray.spec.points import size, why_not
from ddgd_ray.spec.space import Choice, Space

Direction = Literal["maximize", "minimize"]
Algorithm = Literal["tpe", "random", "grid", "qmc", "cmaes", "gp", "nsga2", "nsga3"]
TEST_METRICS = ("top1_last", "top1_best", "top1_selected")
ACCURACIES = ("val_top1", *TEST_METRICS)
COSTS = ("seconds", "core_hours", "gpu_hours")
QUALITIES = ("precision", "recall", "density", "coverage", "frechet", "vendi", "similarity", "similarity_within", "copies")
FEATURE_SPACES: tuple[str, ...] = get_args(FeatureSpace)
LEARNS_FROM_ALL = ("tpe", "gp")  # the others take note only of what they proposed themselves


def _known_metric(name: str) -> str:
    space, _, quality = name.partition("/")
    if name in (*ACCURACIES, *COSTS) or (space in FEATURE_SPACES and quality in QUALITIES):
        return name
    if name == "ipc":
        raise ValueError(
            "ipc is no property of a configuration: each set is sampled once, the largest of evaluate.ipc, and judged at all",
            "compare sizes by evaluate.ipc, and objectives at one size",
        )
    known = [*ACCURACIES, *COSTS, *(f"{one}/{other}" for one in FEATURE_SPACES for other in QUALITIES)]
    listed = f"{', '.join((*ACCURACIES, *COSTS))}, and {'|'.join(FEATURE_SPACES)}/{'|'.join(QUALITIES)}"
    raise ValueError(f"unknown metric {name!r}; known: {listed}", f"did you mean {nearest(name, known)}?")


class FurtherObjectiveSpec(Spec):
    metric: str
    direction: Direction

    _metric_is_known = field_validator("metric")(_known_metric)


class ConstraintSpec(Spec):
    """A bound that a configuration should keep; exactly one of max and min."""

    metric: str
    max: float | None = None
    min: float | None = None

    _metric_is_known = field_validator("metric")(_known_metric)

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.max is None) == (self.min is None):
            raise ValueError("give either max or min", "e.g. {metric: seconds, max: 600}")
        return self

    def excess(self, value: float) -> float:
        """By how much it is broken: 0 or less where it holds."""
        return value - self.max if self.max is not None else (self.min or 0.0) - value


class ObjectiveSpec(Spec):
    """What makes a configuration good.

    val_top1, top1_*: mean over networks, images per class and seeds; val_top1 is measured on held-out training images, the
    others look at the test images. latents/coverage and the like: what `quality: [latents]` measures. seconds, core_hours,
    gpu_hours: what fine-tuning, sampling and judging of one distillation seed took when they were made, whoever made them;
    what all configurations share does not count. Costs are measured, so two runs without a common store differ in them.
    """

    metric: str = "val_top1"
    direction: Direction = "maximize"
    also: tuple[FurtherObjectiveSpec, ...] = ()
    """Further objectives; the result is the Pareto front."""
    constraints: tuple[ConstraintSpec, ...] = ()
    """Bounds that the samplers are told of and that the finalists must keep."""
    finalists: int = Field(1, ge=1)
    """Arms that see the test images with `test: finalists`: of those that keep the constraints and that none beats in all
    objectives, the best by `metric`."""

    _metric_is_known = field_validator("metric")(_known_metric)

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [self.metric, *(other.metric for other in self.also)]
        if len(set(names)) != len(names):
            raise ValueError("a metric is named twice", "remove one of the two")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric, *(other.metric for other in self.also))

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Of objectives and constraints."""
        return (*self.metrics, *(bound.metric for bound in self.constraints))

    @property
    def needs_validation(self) -> bool:
        """Whether it goes by held-out training images."""
        return bool({"val_top1", "top1_selected"} & set(self.all_metrics))

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (self.direction, *(other.direction for other in self.also))

    def identity(self) -> dict[str, Any]:
        """What must stay when a sweep is continued: more finalists continue it, and what was never given does not appear."""
        given = self.canonical() | {"finalists": None}
        return {name: value for name, value in given.items() if name not in ("also", "constraints") or value}


class SearchSpec(Spec):
    space: str
    """A file of search_spaces/, relative to the sweep file or to the working directory."""
    algorithm: Algorithm = "tpe"
    """tpe: multivariate, conditional fields in groups. grid: every point of a finite space. qmc: a Sobol sequence. gp: Gaussian
    process, slow from some hundred configurations on. nsga2, nsga3: for several objectives."""
    trials: int = Field(20, ge=1, le=100_000)
    """Configurations, the first points included; fewer where the space holds fewer."""
    parallel: int = Field(2, ge=1)
    """Configurations under way at once."""
    mode: Literal["deterministic", "asynchronous"] = "deterministic"
    """deterministic: proposals come in batches of `parallel`, and the next batch waits for the one before, so that they depend
    on results and not on timing. asynchronous: one ends, one begins; which, timing decides: not reproducible."""
    seed: int = Field(0, ge=0)
    startup: int = Field(8, ge=1)
    """Random configurations before tpe and gp trust their models."""
    population: int = Field(20, ge=2)
    """Configurations in a generation of nsga2 and nsga3."""
    first: tuple[dict[str, Value], ...] = ()
    """Points to begin with."""
    warm_start: tuple[str, ...] = ()
    """Folders of finished runs, beside this one, whose configurations the search learns from."""

    @model_validator(mode="after")
    def _first_points_fit(self) -> Self:
        if len(self.first) > self.trials:
            raise ValueError(f"first lists {len(self.first)} points, trials is {self.trials}", "raise search.trials")
        return self

    @model_validator(mode="after")
    def _warm_start_is_of_use(self) -> Self:
        if self.warm_start and self.algorithm not in LEARNS_FROM_ALL:
            raise ValueError(
                f"{self.algorithm} learns nothing from trials that it did not propose",
                f"use algorithm {' or '.join(LEARNS_FROM_ALL)}, or remove warm_start",
            )
        return self


def search_errors(
    search: SearchSpec, objective: ObjectiveSpec, quality: Sequence[str], space: Space, document: Document
) -> list[SpecError]:
    """What does not fit together: the algorithm, the objectives, the first points and the space."""
    errors = objective_errors(objective, quality, document)
    what, fix = _misfit(search, objective, space)
    if what:
        where = document.where(("search", "algorithm"))
        errors.append(SpecError(what, code="search-algorithm", where=where, fix=fix))
    for place, point in enumerate(search.first):
        reason = why_not(point, space)
        if reason:
            where = document.where(("search", "first", place))
            errors.append(SpecError(reason, code="search-point", where=where, fix="give every field that is searched there"))
    return errors


def objective_errors(objective: ObjectiveSpec, quality: Sequence[str], document: Document) -> list[SpecError]:
    """Metrics of feature spaces that the sweep does not measure."""
    errors = []
    places: list[tuple[str, tuple[str | int, ...]]] = [(objective.metric, ("objective", "metric"))]
    places += [(other.metric, ("objective", "also", place)) for place, other in enumerate(objective.also)]
    places += [(other.metric, ("objective", "constraints", place)) for place, other in enumerate(objective.constraints)]
    for metric, place in places:
        feature_space, slash, _ = metric.partition("/")
        if slash and feature_space not in quality:
            what = f"{metric} is measured with quality: [{feature_space}] only"
            errors.append(SpecError(what, where=document.where(place), fix=f"add quality: [{feature_space}]"))
    return errors


def _misfit(search: SearchSpec, objective: ObjectiveSpec, space: Space) -> tuple[str, str]:
    """What keeps the algorithm from searching this space, and what to do; ("", "") when nothing does."""
    if search.algorithm == "grid":
        endless = [name for name, distribution in space.items() if distribution.size is None]
        if endless:
            return (
                f"a grid needs a step on every float range, and {endless[0]} has none",
                "give it a step, or use tpe or random",
            )
        number = size(space) or 0
        if number > search.trials:
            return (
                f"the grid has {number} points, search.trials is {search.trials}",
                f"set search.trials: {number}, or use random",
            )
    if search.algorithm == "cmaes":
        if objective.also:
            return "cmaes knows a single objective", "use nsga2, tpe or gp, or leave out objective.also"
        ranges = [name for name, value in space.items() if not isinstance(value, Choice) and not value.when]
        if len(ranges) < 2:
            what = f"cmaes needs at least two ranges that are always searched, and the space has {len(ranges)}"
            return what, "use tpe or random"
    if search.algorithm == "qmc" and any(value.when for value in space.values()):
        return "qmc knows no conditional fields", "use tpe or random, or leave out `when`"
    if search.algorithm == "qmc" and all(isinstance(value, Choice) for value in space.values()):
        return "qmc is for ranges, and the space has choices only", "use grid or random"
    return "", ""


def is_reproducible(objective: ObjectiveSpec) -> bool:
    """Whether every metric follows from the configuration; costs are measured."""
    return not any(metric in COSTS for metric in objective.all_metrics)
