"""Specs of plain data: what pydantic finds wrong is said with the line, what was expected and the nearest valid name."""

import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ddgd_ray.errors import SpecError
from ddgd_ray.spec.load import Document, Path_, nearest
from ddgd_ray.spec.stages import ImagesSpec

Model = TypeVar("Model", bound=BaseModel)
MOST = 10**12
"""The largest whole number of any field; seeds go to 2**32."""


def check(
    cls: type[Model], document: Document, path: Path_, errors: list[SpecError], images: ImagesSpec | None = None
) -> Model | None:
    """The section at `path` as a spec; what is wrong with it goes to `errors`. `images` fills the field of that name."""
    section: Any = document.data
    for name in path:
        section = section.get(name, {}) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        errors.append(
            SpecError(
                f"expected a mapping, got {shown(section)}",
                code="wrong-type",
                where=document.where(path),
                fix="write its fields below it, indented",
            )
        )
        return None
    values = dict(section)
    if "images" in cls.model_fields and images is not None:
        if "images" in values:
            errors.append(document.unknown_key((*path, "images"), set(cls.model_fields) - {"images"}))
        values["images"] = images
    before = len(errors)
    errors.extend(_too_large(values, path, document))
    if len(errors) > before:
        return None
    try:
        return cls.model_validate(values)
    except ValidationError as err:
        errors.extend(_as_spec_error(cls, document, path, detail) for detail in problems(err))
        return None


def _too_large(value: Any, path: Path_, document: Document) -> list[SpecError]:
    """Errors of whole numbers that no field means: a count of 20 digits is a slip, and arithmetic on it overflows."""
    if isinstance(value, Mapping):
        return [error for name, inner in value.items() for error in _too_large(inner, (*path, name), document)]
    if isinstance(value, tuple):
        return [error for place, inner in enumerate(value) for error in _too_large(inner, (*path, place), document)]
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) <= MOST:
        return []
    what = f"expected at most {MOST}, got a number of {len(str(abs(value)))} digits"
    return [SpecError(what, code="out-of-range", where=document.where(path), fix="remove some digits")]


def _as_spec_error(cls: type[BaseModel], document: Document, path: Path_, detail: Any) -> SpecError:
    location = (*path, *detail["loc"])
    if detail["type"] == "extra_forbidden":
        model = _model_at(cls, detail["loc"][:-1])
        return document.unknown_key(location, set(model.model_fields) - {"images"})
    if detail["type"] == "missing":
        fix = f"add a line `{location[-1]}: VALUE`"
        return SpecError("this key is required", code="missing-key", where=document.where(location), fix=fix)
    if detail["type"] == "value_error":
        what, *fix = detail["ctx"]["error"].args  # our validators raise ValueError(what) or ValueError(what, fix)
        return SpecError(what, code="spec", where=document.where(location), fix=next(iter(fix), ""))
    fix = ""
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        choices = re.findall(r"'([^']+)'", str(detail["ctx"]["expected"]))
        fix = f"did you mean {nearest(detail['input'], choices)}?"
    if isinstance(detail["input"], str) and re.fullmatch(r"[-+]?[\d_.]+", detail["input"]):
        fix = "remove the quotes or underscores: a plain number is due here"
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        fix = 'put it in quotes, as "00000": without them YAML reads a number, or true and false'
    if detail["type"] == "tuple_type" and not isinstance(detail["input"], Mapping):
        fix = "put the value in brackets: [value]"
    if detail["type"] == "plain_type" and isinstance(detail["input"], Mapping):
        fix = f"write one dotted path a field, e.g. {location[-1]}.{next(iter(detail['input']), 'field')}: VALUE"
    fix = fix or _example(cls, detail["loc"]) or "correct the value, or leave it out"
    code = "wrong-type" if detail["type"].endswith(("_type", "int_from_float")) else "out-of-range"
    what = f"expected {expected(detail)}, got {shown(detail['input'])}"
    return SpecError(what, code=code, where=document.where(location), fix=fix)


def problems(error: ValidationError) -> list[Any]:
    """The errors of pydantic, less those that follow from another: a list is not too short when its items are wrong."""
    return [
        detail
        for detail in error.errors()
        if detail["type"] != "too_short" or len(detail["input"]) < detail["ctx"]["min_length"]
    ]


_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "a list of at least {min_length}",
    "string_pattern_mismatch": "text of the form {pattern}",
}


def expected(detail: Any) -> str:
    """The words for what a field wants: ours, where those of pydantic would not be understood."""
    if detail["type"] in _EXPECTED:
        return _EXPECTED[detail["type"]].format(**detail.get("ctx", {}))
    return str(detail["msg"]).removeprefix("Input should be ")


def _example(cls: type[BaseModel], location: tuple[str | int, ...]) -> str:
    """The words `try DEFAULT` for a field whose default is a number, or ""."""
    field_ = _model_at(cls, location[:-1]).model_fields.get(str(location[-1]))
    return f"try {field_.default}" if field_ and isinstance(field_.default, int | float) else ""


def _model_at(cls: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel]:
    for name in location:
        inner = cls.model_fields[str(name)].annotation if str(name) in cls.model_fields else None
        options = typing.get_args(inner) if isinstance(inner, types.UnionType) else (inner,)
        models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not models:
            break
        cls = models[0]
    return cls


def shown(value: object) -> str:
    """The words for a value in a message: its type, and its text cut at 60 characters."""
    kinds = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "text",
        tuple: "list",
        dict: "mapping",
        type(None): "nothing",
    }
    text = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} {text if len(text) <= 60 else text[:57] + '...'}"
