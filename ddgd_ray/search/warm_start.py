"""Finished configurations of other runs, for a search to learn from. They are kept, so that a resume reads the same."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, SpecError, SpecErrors
from ddgd_ray.plan.plan import plan_arm
from ddgd_ray.run.folder import RunFolder, TrialProgress
from ddgd_ray.run.objective import Worth, worth_at_the_end
from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.search.ask_tell import Known
from ddgd_ray.spec.base import as_tuples
from ddgd_ray.spec.load import Document
from ddgd_ray.spec.points import compose, why_not
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import SeedsSpec
from ddgd_ray.storage.store import Store, write_atomically

log = logging.getLogger(__name__)

SCHEMA = 1
FILE = "warm_start.json"
OTHER_SETTINGS = "made under other settings, or not in this store"


def known_trials(sweep: Sweep, folder: RunFolder, store: Store) -> list[Known]:
    """The finished configurations of the runs that `search.warm_start` names.

    Raises SpecError when one of them is no run, or none of them has a configuration that fits.

    A configuration fits when it lies in the space and this sweep, at that run's seeds, would make the very artifacts that the
    store holds: same images, settings, protocol, networks and code.
    """
    names = sweep.spec.search.warm_start if sweep.spec.search else ()
    if not names:
        return []
    path = folder.path / FILE
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["schema"] == SCHEMA and kept["runs"] == list(names):
            return [Known(**one | {"score": _worth_of(one["score"])}) for one in kept["trials"]]
    known: list[Known] = []
    skipped: dict[str, Counter[str]] = {}
    for place, name in enumerate(names):
        skipped[name] = Counter()
        found = list(_known(sweep, name, _read(sweep, folder, name, place, store), store, skipped[name]))
        known += found
        why = ", ".join(f"{number} {reason}" for reason, number in skipped[name].items())
        log.info("warm start: %d configurations of %s%s", len(found), name, f"; skipped: {why}" if why else "")
    if not known:
        reasons = sum(skipped.values(), Counter())
        what = f"nothing fits: {', '.join(f'{number} {reason}' for reason, number in reasons.items()) or 'no configurations'}"
        where = sweep.source.where(("search", "warm_start"))
        fix = "name runs of the same preset, networks and ipc, or remove warm_start"
        raise SpecError(what, code="warm-start", where=where, fix=fix)
    content = {"schema": SCHEMA, "runs": list(names), "trials": [dataclasses.asdict(one) for one in known], "skipped": skipped}
    write_atomically(path, json.dumps(content, indent=1))
    return known


def _worth_of(kept: Mapping[str, Any]) -> Worth:
    return Worth(tuple(kept["values"]), tuple(kept["excess"]))


def _read(sweep: Sweep, folder: RunFolder, name: str, place: int, store: Store) -> Run:
    path = next((path for path in (folder.run_dir / name, Path(name)) if path.is_dir()), folder.run_dir / name)
    where = sweep.source.where(("search", "warm_start", place))
    if path.absolute() == folder.path:
        raise SpecError("a run cannot start from itself", code="warm-start", where=where, fix="it goes on by itself: remove it")
    try:
        return read_run(path, store)
    except ArtifactError as err:
        raise SpecError(
            f"{path}: {err.what}", code="warm-start", where=where, fix="give NAME of a run beside this one"
        ) from err


def _known(sweep: Sweep, name: str, run: Run, store: Store, skipped: Counter[str]) -> Iterator[Known]:
    theirs = dataclasses.replace(sweep, preset=Document(as_tuples(run.sweep.settings), name), places={})
    of_arm: dict[str, list[TrialRecord]] = {}
    for trial in run.trials:
        if not trial.is_control and not trial.folder:
            of_arm.setdefault(trial.arm, []).append(trial)
    for arm, found in of_arm.items():
        if any(trial.state != "done" for trial in found):
            skipped["failed or unfinished"] += 1
            continue
        try:
            params = _in_space(sweep, theirs, found[0].params)
            reason = why_not(params, sweep.space)
            worth = None if reason else _worth(sweep, run, params, found, store)
        except SpecErrors:
            reason, worth = "", None
        if worth is None:
            skipped["outside the space" if reason else OTHER_SETTINGS] += 1
        else:
            yield Known(name, arm, params, worth)


def _in_space(sweep: Sweep, theirs: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a configuration of theirs gives the fields of our space, set or not. Raises SpecErrors."""
    preset = theirs.preset_with(params)

    def value_of(path: str) -> Any:
        value: Any = preset
        for part in path.split("."):
            value = getattr(value, part, None)
        return value

    return compose(sweep.space, lambda path, distribution: params[path] if path in params else value_of(path))


def _worth(sweep: Sweep, run: Run, params: Mapping[str, Any], trials: Sequence[TrialRecord], store: Store) -> Worth | None:
    """The worth that this sweep would find at their seeds; None unless all that this takes is published."""
    seeds = SeedsSpec(distill=tuple(trial.seed for trial in trials), evaluate=run.spec.seeds.evaluate)
    spec = sweep.spec.model_copy(update={"seeds": seeds, "test": run.spec.test})
    planned = plan_arm(dataclasses.replace(sweep, spec=spec), "known", params)
    if not all(store.has(*call.ref) for trial in planned for call in trial.calls()):
        return None
    done = [TrialProgress(trial, state="done").record for trial in planned]
    return worth_at_the_end(done, sweep.spec.objective, store, sweep.spec.resources)
