"""Recipes: the choices of one published method, or of a control, as overrides of a preset, and combinations of several.

Settings that belong to the data set, such as steps and batch size, stay the preset's. `paper+mgd3` is the fine-tuning of one
and the guide of the other.
"""

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ddgd_ray.errors import SpecError
from ddgd_ray.spec.load import nearest, read

RECIPE = "recipe"
JOINT = "+"
STEPS = "finetune.steps"
_FOLDER = resources.files("ddgd_ray.spec") / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in _FOLDER.iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: object, where: str) -> dict[str, tuple[Any, str]]:
    """The {dotted path: (value, where it is written)} of a recipe, or of several joined by `+`.

    A method without training says `finetune.steps: 0`; joined with one that says how to fine-tune, it gives way in that. Raises
    SpecError with the nearest name, or where two parts contradict each other. where: who asks for it.
    """
    parts = {part: _read(part, where) for part in str(name).split(JOINT)}
    if len(parts) < len(str(name).split(JOINT)):
        raise _no_sense(f"{name} names a recipe twice", where, "name each once")
    tuners = [part for part, fields in parts.items() if _tunes(fields)]
    found: dict[str, tuple[Any, str]] = {}
    owner: dict[str, str] = {}
    for part, fields in parts.items():
        for path, (value, place) in fields.items():
            if path == STEPS and tuners and part not in tuners:
                if len(fields) == 1:
                    what = f"{part} fine-tunes nothing, {tuners[0]} says how to: nothing of {part} would be left"
                    raise _no_sense(what, where, f"take {tuners[0]} alone")
                continue
            if path in found and found[path][0] != value:
                what = f"{owner[path]} and {part} both set {path}, to {found[path][0]!r} and {value!r}"
                raise _no_sense(what, where, "choose one of the two")
            found[path], owner[path] = (value, place), part
    return found


def _tunes(fields: Mapping[str, Any]) -> bool:
    """Whether a recipe says how to fine-tune."""
    return any(path.startswith("finetune.") for path in fields.keys() - {STEPS})


def _no_sense(what: str, where: str, fix: str) -> SpecError:
    return SpecError(what, code="recipe-conflict", where=where, fix=fix)


def _read(name: str, where: str) -> dict[str, tuple[Any, str]]:
    if name not in recipe_names():
        raise SpecError(
            f"unknown recipe {name!r}; known: {', '.join(recipe_names())}",
            code="unknown-recipe",
            where=where,
            fix=f"did you mean {nearest(str(name), recipe_names())}?",
        )
    document = read(Path(str(_FOLDER / f"{name}.yaml")))
    return {path: (value, document.line((path,))) for path, value in document.data.items()}


def conflicts(names: Iterable[object], fields: Mapping[str, str]) -> list[SpecError]:
    """One error for each field that is set by a varied recipe and beside it.

    In every table a recipe's name stands for its values: an arm with another value would be another method.

    fields: {dotted path: where it is written} of what is set or varied beside the recipes.
    """
    known = [name for name in names if all(part in recipe_names() for part in str(name).split(JOINT))]
    return [
        SpecError(
            f"the varied recipe {name} sets {path} too: the arm {name} would be another method",
            code="recipe-conflict",
            where=f"{where} {path}",
            fix=f"leave {path} out, or do not vary {name}",
        )
        for name in known
        for path, where in fields.items()
        if path in read_recipe(name, where)
    ]
