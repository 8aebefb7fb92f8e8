"""Search spaces: {dotted path of a preset: distribution}, read from search_spaces/*.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.load import read, shown


class Choice(Spec):
    type: Literal["choice"]
    values: tuple[str | int | float | bool, ...] = Field(min_length=2)


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


def read_space(path: Path) -> Space:
    """Every distribution of the file. Raises SpecErrors with all that is wrong."""
    document = read(path)
    errors: list[SpecError] = []
    space: dict[str, Choice | IntRange | FloatRange] = {}
    data: Mapping[str, Any] = document.data
    if not data:
        errors.append(SpecError("nothing to search: the file is empty", where=str(path)))
    for name, value in data.items():
        try:
            space[name] = _ADAPTER.validate_python(value)
        except ValidationError as err:
            for detail in err.errors():
                location = (name, *[part for part in detail["loc"] if part not in ("choice", "int", "float")])
                message = str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
                errors.append(
                    SpecError(
                        f"{message}; got {shown(detail['input'])}",
                        code="search-space",
                        where=document.where(location),
                        fix="e.g. {type: int, low: 8, high: 512, log: true} or {type: choice, values: [a, b]}",
                    )
                )
    if errors:
        raise SpecErrors(errors)
    return space
