"""A checked sweep: one file, one table. What is wrong with a file is said all at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.check import check
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.fidelity import check_fidelity
from ddgd_ray.spec.load import Document, Path_, read
from ddgd_ray.spec.preset import Preset, build_preset, read_preset, with_overrides
from ddgd_ray.spec.recipe import RECIPE, STEPS, conflicts, read_recipe
from ddgd_ray.spec.search_spec import objective_errors, search_errors
from ddgd_ray.spec.shipped import find_file
from ddgd_ray.spec.space import Choice, Space, read_space
from ddgd_ray.spec.sweep_spec import FULL, PARTS, WITHOUT, EvaluatorsSpec, SweepSpec

# fields of a stage that a sweep sets for each of its jobs: given anywhere else they would do nothing
SET_BY_SWEEP = {
    "finetune.seed": "seeds.distill",
    "sample.seed": "seeds.distill",
    "sample.ipc": "evaluate.ipc",
    "select.seed": "seeds.distill",
    "select.ipc": "evaluate.ipc",
    "evaluate.network": "evaluate.networks",
    "evaluate.ipc": "evaluate.ipc",
    "evaluate.seed": "seeds.evaluate",
}
MAX_GRID = 10_000
RESERVED = ("store", "mlartifacts", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", "url", "ui.log")
"""Names in a run directory that are not those of runs, in lower case: some file systems know no other."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its spec, the preset's document with all overrides but the varied ones, the space if it searches."""

    spec: SweepSpec
    preset: Document
    space: Space
    source: Document
    places: Mapping[str, str]
    """Where each varied or searched field is written, `file:line`."""

    def preset_with(self, values: Mapping[str, Any], errors: list[SpecError] | None = None) -> Preset:
        """The preset of one configuration. Raises SpecErrors, or adds to `errors` when that list is given."""
        found: list[SpecError] = []
        placed = {path: (value, self.places.get(path, self.source.source)) for path, value in values.items()}
        placed |= self._switched_off(placed.pop(PARTS, (FULL, ""))[0])
        try:
            document = with_overrides(self.preset, _with_recipe(placed), found)
        except SpecError as err:
            document, found = self.preset, [err]
        preset = build_preset(document, found) if not found else None
        if errors is not None:
            errors.extend(found)
        if preset is None:
            raise SpecErrors(found)
        return preset

    def _switched_off(self, arm: Any) -> dict[str, tuple[Any, str]]:
        """The fields that switch off the part which this arm lacks; none for the whole method."""
        part = str(arm).removeprefix(WITHOUT) if arm != FULL else ""
        off = self.spec.parts[part] if part else {}
        return {path: (value, self.source.line((PARTS, part, path))) for path, value in off.items()}


def read_sweep(path: Path, overrides: Mapping[str, Any], preset_name: str | None = None) -> Sweep:
    """The sweep of a file. overrides: {dotted path: value}, the sweep's or its preset's. Raises SpecErrors: all at once."""
    path = find_file(path)
    return check_sweep(read(path), path.parent, overrides, preset_name)


def check_sweep(document: Document, folder: Path, overrides: Mapping[str, Any], preset_name: str | None = None) -> Sweep:
    """The sweep of a document that is read already. folder: where its search space may lie. Raises SpecErrors."""
    errors: list[SpecError] = []
    document = _classifiers_own(document, errors)
    own, of_preset = _split_overrides(overrides)
    document = document.replaced(own, dict.fromkeys(own, "--set"))
    if preset_name is not None:
        document = document.replaced({("preset",): preset_name}, {("preset",): "--preset"})
    spec = check(SweepSpec, document, (), errors)
    if spec is None:  # what the preset says to `set` and `vary` is told in the same go, if they are sound in themselves
        parts = {name: document.data[name] for name in ("preset", "set", "vary") if name in document.data}
        spec = check(SweepSpec, Document({"name": "unnamed", **parts}, document.source), (), [])
    if spec is None:
        raise SpecErrors(errors)
    placed = {name: (value, document.line(("set", name))) for name, value in spec.set.items()}
    placed |= {name: (value, "--set") for name, value in of_preset.items()}
    errors.extend(_set_by_sweep(name, where) for name, (_, where) in placed.items() if name in SET_BY_SWEEP)
    if spec.name.lower() in RESERVED:
        what = f"{spec.name!r} cannot name a run: the run directory has a file or folder of that name for all runs"
        errors.append(SpecError(what, code="reserved-name", where=document.where(("name",)), fix=f"e.g. name: {spec.name}-1"))
    try:
        chosen = read_recipe(spec.recipe, document.where((RECIPE,))) if spec.recipe else {}
        preset = with_overrides(read_preset(spec.preset, document.where(("preset",))), chosen | placed, errors)
        space, places = _read_space(spec, folder, document)
    except SpecErrors as err:
        raise SpecErrors([*errors, *err.errors]) from err
    except SpecError as err:
        raise SpecErrors([*errors, err]) from err
    errors.extend(_set_by_sweep(name, where) for name, where in places.items() if name in SET_BY_SWEEP)
    of_parts = [(name, document.line((PARTS, part, name))) for part, off in spec.parts.items() for name in off]
    errors.extend(_set_by_sweep(name, where) for name, where in of_parts if name in SET_BY_SWEEP)
    errors.extend(_idle_constants(preset, placed, places))
    errors.extend(_recipe_conflicts(spec, space, document, {name: where for name, (_, where) in placed.items()} | places))
    if spec.search is not None:
        errors.extend(search_errors(spec.search, spec.objective, spec.quality, space, document))
    else:
        errors.extend(objective_errors(spec.objective, spec.quality, document))
    sweep = Sweep(spec, preset, space, document, places)
    _check_values(sweep, errors)
    errors.extend(check_fidelity(sweep, SET_BY_SWEEP))
    if errors:
        raise SpecErrors(errors)
    return sweep


def _classifiers_own(document: Document, errors: list[SpecError]) -> Document:
    """The document with `evaluate: {protocol: ...}`, and what else is a classifier's own, moved to `set`: the same meaning."""
    section, given = document.data.get("evaluate"), document.data.get("set", {})
    if not isinstance(section, Mapping) or not isinstance(given, Mapping):
        return document  # the spec says what is wrong
    moved = set(section) & (
        EvaluateSpec.model_fields.keys() - EvaluatorsSpec.model_fields.keys() - {"network", "seed", "images"}
    )
    values: dict[Path_, Any] = {}
    for name in sorted(moved):
        fields = dotted({f"evaluate.{name}": section[name]})
        twice = [path for path in fields if path in given]
        if twice:
            what, where = f"{twice[0]} is given here and in set", document.where(("evaluate", name))
            errors.append(SpecError(what, code="key-twice", where=where, fix="remove one of the two"))
        values |= {("set", path): value for path, value in fields.items()}
    if not values:
        return document
    places = {path: document.line(("evaluate", *str(path[1]).split(".")[1:])) for path in values}
    kept = {name: value for name, value in section.items() if name not in moved}
    return document.replaced({("evaluate",): kept} | values, places | {("evaluate",): document.line(("evaluate",))})


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted path: value} with mappings spelled out."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        if isinstance(value, Mapping):
            found |= dotted({f"{path}.{name}": inner for name, inner in value.items()})
        else:
            found[path] = value
    return found


def _split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[tuple[str | int, ...], Any], dict[str, Any]]:
    """The fields of the sweep itself, such as `evaluate.networks`, and those of its preset, such as `finetune.steps`."""
    own: dict[tuple[str | int, ...], Any] = {}
    of_preset = {}
    for name, value in overrides.items():
        parts = tuple(name.split("."))
        if parts[0] in ("set", "vary"):  # below these a key is itself a dotted path
            parts = tuple(name.split(".", 1))
        elif parts[0] == PARTS:  # parts.NAME.dotted.path; a part's name may hold a point, then the file has to give it
            parts = tuple(name.split(".", 2))
        of_stage = name in SET_BY_SWEEP and name != SET_BY_SWEEP[name]
        of_classifiers = parts[0] == "evaluate" and parts[1:2] and parts[1] in EvaluateSpec.model_fields.keys() - {"ipc"}
        in_sweep = parts[0] in SweepSpec.model_fields and not (of_classifiers or of_stage)
        if in_sweep:
            own[parts] = value
        else:
            of_preset[name] = value
    return own, of_preset


def _with_recipe(placed: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """The fields with a varied recipe spelled out. Raises SpecError for a name that is no recipe's."""
    if RECIPE not in placed:
        return dict(placed)
    name, where = placed[RECIPE]
    return read_recipe(name, f"{where} {RECIPE}") | {path: value for path, value in placed.items() if path != RECIPE}


def _recipe_conflicts(spec: SweepSpec, space: Space, document: Document, fields: Mapping[str, str]) -> list[SpecError]:
    """Errors of what contradicts a varied recipe: fields set beside it, a fixed recipe, a control of the same name."""
    if RECIPE not in fields:
        return []
    searched = space.get(RECIPE)
    names = spec.vary.get(RECIPE, searched.values if isinstance(searched, Choice) else ())
    # steps that are set, not varied, are those of the recipes that fine-tune; others keep their 0
    is_of_others = {RECIPE} | ({STEPS} if STEPS not in spec.vary and STEPS not in space else set())
    errors = conflicts(names, {path: where for path, where in fields.items() if path not in is_of_others})
    if spec.recipe:
        where = document.where((RECIPE,))
        errors.append(SpecError("recipe is given and varied", code="recipe-conflict", where=where, fix="remove one of the two"))
    twice = [control for control in spec.controls if control in names]
    return errors + [
        SpecError(
            f"{control} is a control and a varied recipe: the same trials under one name",
            code="recipe-conflict",
            where=document.where(("controls",)),
            fix="remove one of the two",
        )
        for control in twice
    ]


def _idle_constants(preset: Document, placed: Mapping[str, tuple[Any, str]], varied: Mapping[str, str]) -> list[SpecError]:
    """Constants of a guide or a start that nobody chose."""
    errors = []
    for path in ("sample.guide", "sample.start"):
        section, field = path.split(".")
        chosen = preset.data.get(section, {}).get(field, {})
        is_chosen = isinstance(chosen, str) or "name" in chosen or not varied.keys().isdisjoint((path, f"{path}.name", RECIPE))
        for given, where in {name: line for name, (_, line) in placed.items()}.items() | dict(varied).items():
            if given.startswith(f"{path}.") and not is_chosen:
                what = f"{given} means nothing without {path}"
                errors.append(SpecError(what, code="spec", where=f"{where} {given}", fix=f"choose one: {path}: NAME"))
    return errors


def _set_by_sweep(name: str, where: str) -> SpecError:
    fix = f"use {SET_BY_SWEEP[name]} in its place"
    return SpecError(f"the sweep itself sets {name} for each of its jobs", code="unknown-key", where=f"{where} {name}", fix=fix)


def _read_space(spec: SweepSpec, folder: Path, document: Document) -> tuple[Space, dict[str, str]]:
    """The space, empty for a grid, and where each field that varies is written. Raises SpecError."""
    if spec.search is None:
        return {}, {name: document.line(("vary", name)) for name in spec.vary}
    beside = folder / spec.search.space
    try:
        space, written = read_space(beside if beside.is_file() else find_file(Path(spec.search.space)))
    except SpecError as err:
        if err.code != "missing-file":
            raise
        where = document.where(("search", "space"))
        raise SpecError(f"{err.where}: {err.what}", code=err.code, where=where, fix="give a file of search_spaces/") from err
    return space, {name: written.line((name,)) for name in space}


def _check_values(sweep: Sweep, errors: list[SpecError]) -> None:
    """Find the errors of the preset and of each value that varies. All combinations are tried where they are not too many."""
    seen: set[str] = set()

    def collect(values: Mapping[str, Any]) -> None:
        found: list[SpecError] = []
        try:
            sweep.preset_with(values, found)
        except SpecErrors:
            errors.extend(error for error in found if str(error) not in seen)
            seen.update(map(str, found))

    collect({})
    selects = sweep.spec.objective.needs_validation and (sweep.spec.test == "finalists" or sweep.spec.search)
    if not errors and selects and not sweep.preset_with({}).images.validation_per_class:
        who = "test: finalists" if sweep.spec.test == "finalists" else "search"
        what = f"{who} goes by validation images, and there are none"
        where = sweep.source.where(("objective", "metric"))
        errors.append(SpecError(what, where=where, fix="hold some out: --set images.validation_per_class=50"))
    for part in sweep.spec.parts:
        collect({PARTS: f"{WITHOUT}{part}"})
        if not errors and sweep.preset_with({PARTS: f"{WITHOUT}{part}"}) == sweep.preset_with({}):
            what, fix = (
                f"{part} switches nothing off: the method has these values already",
                "remove it, or start from another recipe",
            )
            errors.append(SpecError(what, code="spec", where=sweep.source.where((PARTS, part)), fix=fix))
    size = 1
    for path, values in sweep.spec.vary.items():
        size *= len(values)
        for value in values:
            collect({path: value})
    if not errors and len(sweep.spec.vary) > 1 and size <= MAX_GRID:
        for cell in sweep.spec.grid():  # each value alone is fine
            collect(cell)
    if size > MAX_GRID:
        errors.append(
            SpecError(
                f"the grid has {size} cells, the limit is {MAX_GRID}",
                where=sweep.source.where(("vary",)),
                fix="vary fewer fields, or use `search`",
            )
        )
    for path, distribution in sweep.space.items():
        parents = {parent: allowed[0] for parent, allowed in distribution.when.items()}
        ends = distribution.values if isinstance(distribution, Choice) else (distribution.low, distribution.high)
        for value in ends:
            collect(parents | {path: value})
