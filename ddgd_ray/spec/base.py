"""The root of all specs."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


def _one_value(value: object) -> object:
    """Says in one message what pydantic's unions say in one per member."""
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("plain_type", "text, a finite number, true or false")
    return value


def _one_or_more(value: object) -> object:
    for item in value if isinstance(value, tuple | list) else (value,):  # JSON has lists where YAML is read as tuples
        _one_value(item)
    return value


Value = Annotated[str | int | float | bool, BeforeValidator(_one_value)]
Values = Annotated[str | int | float | bool | tuple[str | int | float | bool, ...], BeforeValidator(_one_or_more)]


class Spec(BaseModel):
    """Frozen and strict: unknown keys, NaN, and `yes` or "64" for a number are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    def canonical(self) -> dict[str, Any]:
        """Everything that determines the result, defaults resolved. Fields with `exclude=True` say where, not what."""
        return self.model_dump(mode="json")


def refuse_twice(values: Sequence[object], one: str) -> None:
    """Raises ValueError when a value is listed twice. one: what a value is, `a seed`."""
    if len(set(values)) != len(values):
        raise ValueError(f"{one} is listed twice", "remove one of the two")


def canonical_json(value: object) -> str:
    """One text for one value: keys sorted, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
