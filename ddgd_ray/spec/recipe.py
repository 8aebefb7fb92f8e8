"""Recipes: the choices of one published method, or of a control, as overrides of a preset.

Settings that belong to the data set, such as steps and batch size, stay the preset's.
"""

from collections.abc import Container, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ddgd_ray.errors import SpecError
from ddgd_ray.spec.load import nearest, read

RECIPE = "recipe"
_FOLDER = resources.files("ddgd_ray.spec") / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in _FOLDER.iterdir() if path.name.endswith(".yaml"))


def read_recipe(name: object, where: str) -> dict[str, tuple[Any, str]]:
    """The recipe's {dotted path: (value, where it is written)}.

    Raises SpecError with the nearest name. where: who asks for it.
    """
    if name not in recipe_names():
        raise SpecError(
            f"unknown recipe {name!r}; known: {', '.join(recipe_names())}",
            code="unknown-recipe",
            where=where,
            fix=f"did you mean {nearest(str(name), recipe_names())}?",
        )
    document = read(Path(str(_FOLDER / f"{name}.yaml")))
    return {path: (value, document.line((path,))) for path, value in document.data.items()}


def conflicts(names: Container[object], fields: Mapping[str, str]) -> list[SpecError]:
    """One error for each field that is set by a varied recipe and beside it.

    In every table a recipe's name stands for its values: an arm with another value would be another method.

    fields: {dotted path: where it is written} of what is set or varied beside the recipes.
    """
    known = [name for name in recipe_names() if name in names]
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
