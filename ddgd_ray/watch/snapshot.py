"""Where a run stands: by stage, what runs now, the best so far, what is spent. Read from its folder and store at any time."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgd_ray.report.build import read_run
from ddgd_ray.report.compare import chosen_arm
from ddgd_ray.run.accounts import Spent, mean_seconds, read_spent
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.results import rows_of
from ddgd_ray.stages.curves import read_newest_point
from ddgd_ray.storage.store import Store

STATES = ("done", "running", "waiting", "failed")


@dataclass
class Running:
    """A stage that is being made: for whom, and the newest point of its curves, {} before the first."""

    stage: str
    label: str
    point: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Best:
    """The arm of the best mean so far, controls aside."""

    arm: str
    metric: str
    mean: float
    n: int


@dataclass
class Snapshot:
    """stages: {stage: {state: number of calls}}, equal calls once. left_s: until all that is known is done, None if unknown."""

    name: str
    preset: str
    holder: str
    """The driver that works on it, "" when none does."""
    is_stopping: bool
    trials: Mapping[str, int]
    stages: Mapping[str, Mapping[str, int]]
    running: list[Running]
    best: Best | None
    spent: Spent
    left_s: float | None
    waiting_for_tracker: int
    finished: float
    """Seconds since 1970 at which the last trial ended, 0 before."""


def snapshot(path: Path) -> Snapshot:
    """Of a run folder. Raises ArtifactError when it is none."""
    folder = RunFolder(path.parent, path.name)
    folder.remote_copy.pull()
    sweep, records = read_run(path)
    store = open_store(path.parent)
    in_progress = set(store.in_progress())
    counts, running = _stages(records, store, in_progress)
    spent = read_spent(path)
    holder = folder.holder() or folder.remote_copy.holder()
    waiting = {stage: states["waiting"] + states["running"] for stage, states in counts.items()}
    return Snapshot(
        name=sweep["name"],
        preset=sweep["spec"]["preset"],
        holder=holder,
        is_stopping=bool(holder) and folder.is_told_to_stop,
        trials={state: sum(record["state"] == state for record in records) for state in ("done", "failed", "planned")},
        stages=counts,
        running=running,
        best=_best(sweep["spec"], records, store),
        spent=spent,
        left_s=seconds_left(waiting, mean_seconds(path), max(1, len(running))),
        waiting_for_tracker=len(list(folder.outbox.glob("*.json"))),
        finished=max((record["finished"] for record in records), default=0.0),
    )


def _stages(
    records: Iterable[Mapping[str, Any]], store: Store, in_progress: set[str]
) -> tuple[dict[str, dict[str, int]], list[Running]]:
    counts: dict[str, Counter[str]] = {}
    running: dict[str, Running] = {}
    seen: set[tuple[str, str]] = set()
    for record in records:
        for stage, key, label in _calls(record):
            if (stage, key) in seen:
                continue
            seen.add((stage, key))
            if store.has(stage, key):
                state = "done"
            elif key[:16] in in_progress:
                state = "running"
                point = read_newest_point(store.root / "kept" / key)
                running[key] = Running(stage, label, point, max(0.0, time.time() - _started(store, key)))
            else:
                state = "failed" if key in record["errors"] else "waiting"
            counts.setdefault(stage, Counter())[state] += 1
    return {stage: {state: found[state] for state in STATES} for stage, found in counts.items()}, list(running.values())


def _calls(record: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Stage, key and what it is for, of everything a trial needs."""
    name = record["name"]
    for stage, key in record["prepare"]:
        yield stage, key, "all trials"
    for stage, key in record["build"]:
        yield stage, key, name
    for item in record["evaluators"]:
        label = f"{name} {item['network']} ipc{item['ipc'] or 'all'} seed{item['seed']}"
        yield item["stage"], item["key"], label
        if item.get("test"):
            yield item["test"][0], item["test"][1], f"{label} test"
    for stage, key, label in record.get("quality", ()):
        yield stage, key, f"{name} {label}"


def _started(store: Store, key: str) -> float:
    """When the newest attempt at this key began, seconds since 1970."""
    folders = (store.root / "scratch").glob(f"{key[:16]}.*")
    found = []
    for folder in folders:
        try:
            found.append(os.stat(folder).st_ctime)
        except OSError:
            continue  # published in the meantime
    return max(found, default=time.time())


def _best(spec: Mapping[str, Any], records: Iterable[Mapping[str, Any]], store: Store) -> Best | None:
    chosen = chosen_arm(spec, rows_of((record for record in records if record["state"] == "done"), store))
    if chosen is None:
        return None
    arm, stat = chosen
    return Best(arm, spec["objective"]["metric"], stat.mean, stat.n)


def seconds_left(waiting: Mapping[str, int], means: Mapping[str, float], at_once: int) -> float | None:
    """By the mean seconds of each stage so far; None when nothing that waits was ever measured."""
    known = {stage: number for stage, number in waiting.items() if stage in means}
    if not sum(waiting.values()):
        return 0.0
    if not sum(known.values()):
        return None
    work = sum(number * means[stage] for stage, number in known.items())
    return work * sum(waiting.values()) / sum(known.values()) / at_once
