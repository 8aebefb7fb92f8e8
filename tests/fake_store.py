"""A fake store that publishes by word of mouth, and a conductor over it: no stage runs."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import new_seed_policy
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.search.ask_tell import GridSearch
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Artifact


@dataclass
class FakeStore:
    """Remembers keys; every artifact has the same metrics but for `value`, its val_top1, and what `more` says."""

    published: set[tuple[str, str]] = field(default_factory=set)
    value: Callable[[str], float] = lambda key: 0.5
    more: Callable[[str], dict[str, float]] = lambda key: {}
    remote = None
    root = Path("/nowhere/store")

    def has(self, stage: str, key: str) -> bool:
        return (stage, key) in self.published

    still_has = has

    def get(self, stage: str, key: str) -> Artifact | None:
        if not self.has(stage, key):
            return None
        metrics = {"val_top1": self.value(key), "top1_last": 0.4} | self.more(key)
        return Artifact(Path("/nowhere"), {"key": key, "metrics": metrics, "seconds": 1.0, "created": 1.0})

    sound = get


def conduct(sweep: Sweep, folder: Path, store: FakeStore, search: Any = None, events: list[Any] | None = None) -> Conductor:
    run = RunFolder(folder, sweep.spec.name)
    run.prepare()
    emit = events.append if events is not None else lambda event: None
    policy = new_seed_policy(sweep, store, run)  # type: ignore[arg-type]
    return Conductor(sweep, store, search or GridSearch(sweep), run, emit, policy)  # type: ignore[arg-type]


def finish(conductor: Conductor, store: FakeStore, job: Job) -> None:
    store.published.update(call.ref for call in job.calls)
    conductor.ended(job.id, Outcome(seconds=1.0))


def drain(conductor: Conductor, store: FakeStore, seed: int = 0, width: int = 3) -> list[Job]:
    """Run everything, up to `width` at once, ending in random order."""
    order, done, running = random.Random(seed), [], []
    while not conductor.is_finished:
        while len(running) < width and (job := conductor.next()) is not None:
            running.append(job)
        assert running, "nothing runs and nothing may start"
        job = running.pop(order.randrange(len(running)))
        finish(conductor, store, job)
        done.append(job)
    return done
