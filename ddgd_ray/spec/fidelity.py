"""What `race` and `rungs` ask of the rest of a sweep, and a sweep at the cheaper setting of a rung."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.check import check
from ddgd_ray.spec.load import Document
from ddgd_ray.spec.preset import with_overrides
from ddgd_ray.spec.sweep_spec import EvaluatorsSpec, SeedsSpec, SweepSpec

if TYPE_CHECKING:
    from ddgd_ray.spec.sweep import Sweep

OF_SWEEP = {f"seeds.{name}" for name in SeedsSpec.model_fields} | {f"evaluate.{name}" for name in EvaluatorsSpec.model_fields}


def at_rung(sweep: "Sweep", rung: int) -> "Sweep":
    """The sweep at the setting of a rung. Raises SpecErrors with all that is wrong with it.

    A rung before the last leaves out what decides nothing: further protocols, and the quality of sets unless the objective
    goes by it.
    """
    assert sweep.spec.rungs is not None
    setting = sweep.spec.rungs.settings[rung]
    if not setting:
        return sweep
    errors: list[SpecError] = []
    places = {name: sweep.source.line(("rungs", "settings", rung, name)) for name in setting}
    measured = {metric.partition("/")[0] for metric in sweep.spec.objective.all_metrics}
    quality = tuple(space for space in sweep.spec.quality if space in measured)
    own: dict[tuple[str | int, ...], Any] = {("evaluate", "also"): (), ("quality",): quality}
    own |= {tuple(name.split(".")): value for name, value in setting.items() if name in OF_SWEEP}
    lines: dict[tuple[str | int, ...], str] = {tuple(name.split(".")): places[name] for name in places if name in OF_SWEEP}
    document = sweep.source.replaced(own, lines)
    spec = check(SweepSpec, document, (), errors)
    of_preset = {name: (value, places[name]) for name, value in setting.items() if name not in OF_SWEEP}
    preset = with_overrides(sweep.preset, of_preset, errors)
    if spec is None or errors:
        raise SpecErrors(errors)
    return replace(sweep, spec=spec, preset=preset)


def check_fidelity(sweep: "Sweep", set_by_sweep: dict[str, str]) -> list[SpecError]:
    """What stands against `race` and `rungs`. set_by_sweep: fields of stages that a sweep sets, and what sets them."""
    spec, source = sweep.spec, sweep.source
    section = "race" if spec.race else "rungs"
    if spec.race is None and spec.rungs is None:
        return []
    errors = []
    if spec.race and spec.rungs:
        errors.append(_error(source, ("rungs",), "race and rungs are both given", "remove one of the two"))
    if spec.objective.needs_validation and not sweep.preset.data["images"].get("validation_per_class"):
        what = f"{section} goes by validation images, and there are none"
        errors.append(_error(source, ("objective", "metric"), what, "hold some out: --set images.validation_per_class=50"))
    if spec.race:
        errors += _check_race(sweep)
    if spec.rungs:
        errors += _check_rungs(sweep, set_by_sweep)
    return errors


def _check_race(sweep: "Sweep") -> Iterator[SpecError]:
    spec, source = sweep.spec, sweep.source
    assert spec.race is not None
    num_seeds, num_arms = len(spec.seeds.distill), len(spec.grid())
    if spec.search:
        what = "a race compares configurations that are all known at its start; a search proposes them by results"
        yield _error(source, ("race",), what, "use `vary` with a race, or `rungs` with a search")
    elif num_arms <= spec.race.keep:
        what = f"{num_arms} configurations run and {spec.race.keep} are kept: there is nothing to drop"
        yield _error(source, ("race",), what, "vary more values, or remove `race`")
    if spec.race.goal == "verdicts":
        yield from _check_verdicts(sweep)
    for name in ("also", "constraints"):
        if getattr(spec.objective, name):
            what = f"a race goes by one number, objective.{name} would be ignored"
            yield _error(source, ("objective", name), what, f"remove objective.{name}, or use `rungs`, which go by all of them")
    if spec.race.first_seeds >= num_seeds:
        what = f"the first {spec.race.first_seeds} seeds are all of the {num_seeds} in seeds.distill: none is left to save"
        fix = "list more distillation seeds, e.g. [0, 1, 2, 3, 4, 5, 6, 7], or remove `race`"
        yield _error(source, ("race", "first_seeds"), what, fix)


def _check_verdicts(sweep: "Sweep") -> Iterator[SpecError]:
    race, source = sweep.spec.race, sweep.source
    assert race is not None
    if sweep.spec.claims is None:
        what = "a race for verdicts needs to know which differences matter, and `claims` is missing"
        yield _error(source, ("race", "goal"), what, "add claims: {smallest_effect: 0.01}")
    for name in sorted(race.model_fields_set - {"goal", "first_seeds"}):
        what = f"race.{name} is for the goal `best`, and would be ignored"
        yield _error(source, ("race", name), what, f"remove race.{name}: `claims` says how sure and how large")


def _check_rungs(sweep: "Sweep", set_by_sweep: dict[str, str]) -> Iterator[SpecError]:
    spec, source = sweep.spec, sweep.source
    assert spec.rungs is not None
    settings = spec.rungs.settings
    if spec.search and spec.search.parallel < 2:
        what = "rungs halve the configurations that a search proposes at once, and search.parallel is 1"
        yield _error(source, ("search", "parallel"), what, f"raise it to {spec.rungs.eta} or more")
    elif not spec.search and len(spec.grid()) < 2:
        yield _error(source, ("rungs",), "one configuration runs: there is nothing to halve", "vary more values")
    if settings[-1]:
        what = "the last rung must be the full setting, {}"
        yield _error(source, ("rungs", "settings", len(settings) - 1), what, "add a line `- {}`")
    varied = {*spec.vary, *sweep.space, *(field for off in spec.parts.values() for field in off)}
    for rung, setting in enumerate(settings[:-1]):
        path = ("rungs", "settings", rung)
        if not setting:
            yield _error(source, path, "this rung is the full setting, which is the last one's", "say what is cheaper in it")
            continue
        of_others = {name: f"use {field} in its place" for name, field in set_by_sweep.items() if name not in OF_SWEEP}
        refused = [name for name in setting if name in varied or name in of_others]
        for name in refused:
            is_varied = name in varied
            what = f"{name} varies: a rung cannot set it" if is_varied else f"the sweep itself sets {name} for each of its jobs"
            yield _error(source, (*path, name), what, "remove it here" if is_varied else of_others[name])
        if refused:
            continue
        try:
            preset = at_rung(sweep, rung).preset_with({})
        except SpecErrors as err:
            yield from err.errors
            continue
        if spec.objective.needs_validation and not preset.images.validation_per_class:
            what = f"the objective goes by validation images, and rung {rung} has none"
            yield _error(source, path, what, "leave images.validation_per_class as it is")


def _error(source: Document, path: tuple[str | int, ...], what: str, fix: str) -> SpecError:
    return SpecError(what, code="spec", where=source.where(path), fix=fix)
