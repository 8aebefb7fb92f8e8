"""Search spaces: {dotted path of a preset: distribution}, read from search_spaces/*.yaml."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.base import Spec, Value
from ddgd_ray.spec.check import expected, problems, shown
from ddgd_ray.spec.load import Document, nearest, read

RELATIVE_SLACK = 1e-9  # steps of a float range are compared up to rounding


class _Distribution(Spec):
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """{choice of the same file: values}: the field is searched where each of these has one of its values, and otherwise keeps
    what the preset says."""

    def canonical(self) -> dict[str, Any]:
        """The fields that are given, so that a space reads the same whatever further fields there may be."""
        return {name: value for name, value in self.model_dump(mode="json").items() if not (name in _OPTIONAL and not value)}


_OPTIONAL = ("when", "step")


class Choice(_Distribution):
    type: Literal["choice"]
    values: tuple[Value, ...] = Field(min_length=2)

    @field_validator("values")
    @classmethod
    def _values_differ(cls, values: tuple[Value, ...]) -> tuple[Value, ...]:
        if len(set(map(repr, values))) != len(values):
            raise ValueError("a value is listed twice", "remove one of the two")
        return values

    @property
    def size(self) -> int:
        return len(self.values)

    def has(self, value: Any) -> bool:
        return repr(value) in map(repr, self.values)  # True is no 1 here


class _Range(_Distribution):
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high, step = getattr(self, "low"), getattr(self, "high"), getattr(self, "step")  # noqa: B009  of the subclasses
        if low >= high:
            raise ValueError(f"low {low} must be less than high {high}", "exchange them, or give the field a value")
        if self.log and low <= 0:
            raise ValueError(f"log needs low > 0, got {low}", "raise low, or leave out log")
        if self.log and step:
            raise ValueError(f"log and step exclude each other, got step {step}", "leave out one of the two")
        if step and not math.isfinite((high - low) / step):
            raise ValueError(f"step {step} is too small for the range from {low} to {high}", "leave out step")
        if step and not _is_whole((high - low) / step):
            below = low + int((high - low) / step) * step
            raise ValueError(
                f"step {step} does not lead from {low} to {high}: the last value is {below:g}", f"set high: {below:g}"
            )
        return self


class IntRange(_Range):
    type: Literal["int"]
    low: int
    high: int
    step: int = Field(0, ge=0)
    """Distance of neighbouring values from `low` on; 0: every whole number."""

    @property
    def size(self) -> int:
        return (self.high - self.low) // (self.step or 1) + 1

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(range(self.low, self.high + 1, self.step or 1))

    def has(self, value: Any) -> bool:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return is_int and self.low <= value <= self.high and (value - self.low) % (self.step or 1) == 0


class FloatRange(_Range):
    type: Literal["float"]
    low: float
    high: float
    step: float = Field(0, ge=0)
    """Distance of neighbouring values from `low` on; 0: continuous."""

    @property
    def size(self) -> int | None:
        """The number of values; None: infinitely many."""
        return round((self.high - self.low) / self.step) + 1 if self.step else None

    @property
    def values(self) -> tuple[Value, ...]:
        """The values of a range with a step; none of one without."""
        return tuple(_round(self.low + place * self.step) for place in range(self.size or 0))

    def has(self, value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:
            return False
        return not self.step or _is_whole((value - self.low) / self.step)


def _is_whole(ratio: float) -> bool:
    return math.isclose(ratio, round(ratio), rel_tol=RELATIVE_SLACK, abs_tol=RELATIVE_SLACK)


def _round(value: float) -> float:
    return float(f"{value:.12g}")  # 0.1 + 2 * 0.1 is written 0.3


AnyDistribution = Choice | IntRange | FloatRange
Distribution = Annotated[AnyDistribution, Field(discriminator="type")]
Space = Mapping[str, AnyDistribution]
_ADAPTER: TypeAdapter[AnyDistribution] = TypeAdapter(Distribution)


EXAMPLE = "e.g. {type: int, low: 8, high: 512, log: true} or {type: choice, values: [a, b]}"
_WHAT = {
    "missing": "this key is required",
    "extra_forbidden": "unknown key",
    "union_tag_not_found": "expected a type: choice, int or float",
    "union_tag_invalid": "expected type choice, int or float",
}


def read_space(path: Path) -> tuple[Space, Document]:
    """The distributions of a file, and the file. Raises SpecErrors with all that is wrong.

    Fields come in an order in which what a `when` asks for stands before it, otherwise as written.
    """
    document = read(path)
    errors: list[SpecError] = []
    space: dict[str, AnyDistribution] = {}
    data: Mapping[str, Any] = document.data
    if not data:
        errors.append(
            SpecError("nothing to search: the file names no field", code="search-space", where=str(path), fix=EXAMPLE)
        )
    for name, value in data.items():
        try:
            space[name] = _ADAPTER.validate_python(value)
        except ValidationError as err:
            for detail in problems(err):
                location = (name, *[part for part in detail["loc"] if part not in ("choice", "int", "float")])
                what = _WHAT.get(detail["type"], f"expected {expected(detail)}, got {shown(detail['input'])}")
                fix = EXAMPLE
                if detail["type"] == "value_error":
                    what, *fixes = detail["ctx"]["error"].args
                    fix = next(iter(fixes), EXAMPLE)
                errors.append(SpecError(what, code="search-space", where=document.where(location), fix=fix))
    errors.extend(_condition_errors(space, document))
    if errors:
        raise SpecErrors(errors)
    return _parents_first(space), document


def _condition_errors(space: Space, document: Document) -> list[SpecError]:
    """Errors of the `when`s of fields that are sound in themselves."""
    errors = []
    choices = sorted(name for name, value in document.data.items() if isinstance(value, Mapping) and "values" in value)
    for name, distribution in space.items():
        for parent, values in distribution.when.items():
            where = document.where((name, "when", parent))

            def tell(what: str, fix: str, where: str = where) -> None:
                errors.append(SpecError(what, code="search-space", where=where, fix=fix))

            if parent not in document.data:
                near = nearest(parent, choices) if choices else ""
                fix = f"did you mean {near}?" if near else "name a choice of this file"
                tell(f"{parent} is no field of this space", fix)
            elif parent not in space:
                continue  # told already
            elif not isinstance(chosen := space[parent], Choice):
                tell(
                    f"{parent} is a range; only a choice can decide what else is searched", "make it a choice, or leave it out"
                )
            elif not values:
                tell("expected at least one value", f"e.g. {parent}: [{chosen.values[0]}]")
            else:
                for value in values:
                    if not chosen.has(value):
                        fix = f"known: {', '.join(map(str, chosen.values))}"
                        tell(f"{value!r} is no value of {parent}", fix)
        if not errors and _depends_on(name, name, space, set()):
            fix = "leave out one of the conditions"
            where = document.where((name, "when"))
            errors.append(SpecError(f"{name} depends on itself", code="search-space", where=where, fix=fix))
    return errors


def _depends_on(name: str, wanted: str, space: Space, seen: set[str]) -> bool:
    parents = [parent for parent in space[name].when if parent in space] if name in space else []
    for parent in parents:
        if parent == wanted:
            return True
        if parent not in seen:
            seen.add(parent)
            if _depends_on(parent, wanted, space, seen):
                return True
    return False


def _parents_first(space: Space) -> Space:
    """The space in an order in which each field stands behind those that its `when` names. It has no cycles."""
    ordered: dict[str, AnyDistribution] = {}

    def put(name: str) -> None:
        for parent in space[name].when:
            put(parent)
        ordered.setdefault(name, space[name])

    for name in space:
        put(name)
    return ordered
