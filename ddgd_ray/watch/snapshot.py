"""Where a run stands: by stage, what runs now, the best so far, what is spent. Read from its folder and store at any time."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddgd_ray.run.accounts import Spent, mean_seconds, read_spent
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.objective import Ranking, highest_rung, ranking_of
from ddgd_ray.run.reading import Run, read_run, read_trial_records
from ddgd_ray.run.results import in_order_of
from ddgd_ray.stages.curves import read_newest_point
from ddgd_ray.storage.manifest import Ref
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
    """The arm that the objective prefers so far, controls aside, and its mean over n distillation seeds.

    front: the arms that no other beats, where there are several objectives.
    """

    arm: str
    metric: str
    mean: float
    n: int
    front: Sequence[str] = ()


@dataclass
class Snapshot:
    """A run as it stands. left_s: seconds until all that is known is done, None if unknown.

    stages: {stage: {state: number of calls}}, equal calls once.
    """

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
    """Where the run of a folder stands. Raises ArtifactError when the folder is none, or one of its records is damaged."""
    folder = RunFolder(path.parent, path.name)
    folder.remote_copy.pull()
    run = read_run(path, open_store(path.parent))
    counts, running = _stages(run)
    holder = folder.holder() or folder.remote_copy.holder()
    waiting = {stage: states["waiting"] + states["running"] for stage, states in counts.items()}
    states = Counter(trial.state for trial in run.trials)
    return Snapshot(
        name=run.spec.name,
        preset=run.spec.preset,
        holder=holder,
        is_stopping=bool(holder) and folder.is_told_to_stop,
        trials={state: states[state] for state in ("done", "failed", "planned")},
        stages=counts,
        running=running,
        best=best_of(_ranking_so_far(run)),
        spent=read_spent(path),
        left_s=seconds_left(waiting, mean_seconds(path), max(1, len(running))),
        waiting_for_tracker=len(list(folder.outbox.glob("*.json"))),
        finished=run.finished,
    )


def _ranking_so_far(run: Run) -> Ranking:
    """The run's ranking; of a run with rungs none of whose trials has reached the full setting, that of its highest rung."""
    if run.spec.rungs is None:
        return run.ranking
    trials = read_trial_records(run.path, with_lower_rungs=True)
    rung = highest_rung(trial for trial in trials if trial.state == "done" and not trial.is_control)
    in_order = in_order_of(run.spec.vary, trials)
    return ranking_of(in_order, run.spec.objective, run.store, run.spec.resources, rung=rung)


def best_of(ranking: Ranking) -> Best | None:
    """The best arm of a ranking, None while no arm has a worth."""
    stat = ranking.stat(ranking.best)
    if stat is None:
        return None
    front = tuple(ranking.front) if len(ranking.objective.metrics) > 1 else ()
    return Best(ranking.best, ranking.objective.metric, stat.mean, stat.n, front)


def _stages(run: Run) -> tuple[dict[str, dict[str, int]], list[Running]]:
    """{stage: {state: number of stage calls}}, and the calls that are being made; equal calls once."""
    store, in_progress = run.store, set(run.store.in_progress())
    counts: dict[str, Counter[str]] = {}
    running: dict[Ref, Running] = {}
    seen: set[Ref] = set()
    for trial in run.trials:
        for ref, label in trial.labelled_refs():
            if ref in seen:
                continue
            seen.add(ref)
            if store.has(*ref):
                state = "done"
            elif ref.key[:16] in in_progress:
                state = "running"
                point = read_newest_point(store.root / "kept" / ref.key)
                running[ref] = Running(ref.stage, label, point, max(0.0, time.time() - _started(store, ref.key)))
            else:
                state = "failed" if ref.key in trial.errors else "waiting"
            counts.setdefault(ref.stage, Counter())[state] += 1
    return {stage: {state: found[state] for state in STATES} for stage, found in counts.items()}, list(running.values())


def _started(store: Store, key: str) -> float:
    """Seconds since 1970 at which the newest attempt at this key began."""
    folders = (store.root / "scratch").glob(f"{key[:16]}.*")
    found = []
    for folder in folders:
        try:
            found.append(os.stat(folder).st_ctime)
        except OSError:
            continue  # published in the meantime
    return max(found, default=time.time())


def seconds_left(waiting: Mapping[str, int], means: Mapping[str, float], at_once: int) -> float | None:
    """Seconds of work that wait, by the mean of each stage so far; None when nothing that waits was ever measured."""
    known = {stage: number for stage, number in waiting.items() if stage in means}
    if not sum(waiting.values()):
        return 0.0
    if not sum(known.values()):
        return None
    work = sum(number * means[stage] for stage, number in known.items())
    return work * sum(waiting.values()) / sum(known.values()) / at_once
