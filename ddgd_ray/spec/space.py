"""Search spaces: {dotted path of a preset: distribution}, read from search_spaces/*.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.base import Spec, Value
from ddgd_ray.spec.check import expected, problems, shown
from ddgd_ray.spec.load import Document, read


class Choice(Spec):
    type: Literal["choice"]
    values: tuple[Value, ...] = Field(min_length=2)

    @field_validator("values")
    @classmethod
    def _values_differ(cls, values: tuple[Value, ...]) -> tuple[Value, ...]:
        if len(set(map(repr, values))) != len(values):
            raise ValueError("a value is listed twice")
        return values


class _Range(Spec):
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = getattr(self, "low"), getattr(self, "high")  # noqa: B009  declared by the subclasses
        if low >= high:
            raise ValueError(f"low {low} must be less than high {high}")
        if self.log and low <= 0:
            raise ValueError(f"log needs low > 0, got {low}")
        return self


class IntRange(_Range):
    type: Literal["int"]
    low: int
    high: int


class FloatRange(_Range):
    type: Literal["float"]
    low: float
    high: float


Distribution = Annotated[Choice | IntRange | FloatRange, Field(discriminator="type")]
Space = Mapping[str, Choice | IntRange | FloatRange]
_ADAPTER: TypeAdapter[Choice | IntRange | FloatRange] = TypeAdapter(Distribution)


EXAMPLE = "e.g. {type: int, low: 8, high: 512, log: true} or {type: choice, values: [a, b]}"
_WHAT = {
    "missing": "this key is required",
    "extra_forbidden": "unknown key",
    "union_tag_not_found": "expected a type: choice, int or float",
    "union_tag_invalid": "expected type choice, int or float",
}


def read_space(path: Path) -> tuple[Space, Document]:
    """Every distribution of the file, and the file. Raises SpecErrors with all that is wrong."""
    document = read(path)
    errors: list[SpecError] = []
    space: dict[str, Choice | IntRange | FloatRange] = {}
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
                if detail["type"] == "value_error":
                    what = str(detail["ctx"]["error"])
                errors.append(SpecError(what, code="search-space", where=document.where(location), fix=EXAMPLE))
    if errors:
        raise SpecErrors(errors)
    return space, document
