"""The root of all specs, and what data looks like before it is one."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import PydanticCustomError


def _one_value(value: object) -> object:
    """The value itself. One message says what the unions of pydantic would say in one a member."""
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("plain_type", "text, a finite number, true or false")
    return value


def _one_or_more(value: object) -> object:
    many = tuple(value) if isinstance(value, tuple | list) else None  # JSON has lists where YAML is read as tuples
    for item in (value,) if many is None else many:
        _one_value(item)
    return value if many is None else many


Value = Annotated[str | int | float | bool, BeforeValidator(_one_value)]
Values = Annotated[str | int | float | bool | tuple[str | int | float | bool, ...], BeforeValidator(_one_or_more)]


class Spec(BaseModel):
    """A frozen and strict model: it refuses unknown keys, NaN, and `yes` or "64" for a number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after artifacts had been published. Their default means what was done before there was the field, for
    ever: at that value they are left out of the canonical form, so that the older artifacts keep their keys."""

    @model_serializer(mode="wrap")
    def _without_what_was_added(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                found.pop(name, None)
        return found

    def canonical(self) -> dict[str, Any]:
        """The fields that determine the result, defaults resolved. Those with `exclude=True` say where, not what."""
        return self.model_dump(mode="json")


def as_tuples(data: Any) -> Any:
    """Data with a tuple for each list, as a document holds it and specs want it: JSON gives lists."""
    if isinstance(data, Mapping):
        return {name: as_tuples(value) for name, value in data.items()}
    return tuple(map(as_tuples, data)) if isinstance(data, list | tuple) else data


def refuse_twice(values: Sequence[object], one: str) -> None:
    """Raises ValueError when a value is listed twice. one: what a value is called, such as `a seed`."""
    if len(set(values)) != len(values):
        raise ValueError(f"{one} is listed twice", "remove one of the two")


def canonical_json(value: object) -> str:
    """The one text for a value: keys sorted, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
