"""What a run has spent: one line a job that ended, and one a start, in `RUN/spend.jsonl`. Failed jobs count too."""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.engine.jobs import Job, Outcome
from ddgd_ray.spec.budget_spec import BudgetSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec

FILE = "spend.jsonl"


@dataclass
class Spent:
    """Seconds, added up over all starts; wall clock up to the last line of each start."""

    core_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0
    num_jobs: int = 0


def read_spent(path: Path) -> Spent:
    """Of a run folder; zero where nothing ran."""
    spent, started, last = Spent(), 0.0, 0.0
    for line in _lines(path):
        if "start" in line:
            spent.wall_s += max(0.0, last - started)
            started = last = line["start"]
        elif "job" in line:
            spent.core_s += line["core_s"]
            spent.gpu_s += line["gpu_s"]
            spent.num_jobs += 1
            last = max(last, line["ended"])
    spent.wall_s += max(0.0, last - started)
    return spent


def mean_seconds(path: Path) -> dict[str, float]:
    """{stage: mean seconds of the jobs of a run folder that ended well}."""
    found: dict[str, list[float]] = {}
    for line in _lines(path):
        if line.get("state") == "done":
            found.setdefault(line["stage"], []).append(line["seconds"])
    return {stage: statistics.fmean(seconds) for stage, seconds in found.items()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Those that are whole; one that was cut by a crash is passed over."""
    try:
        texts = (path / FILE).read_text(errors="replace").splitlines()
    except OSError:
        return
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


class Accounts:
    """Writes the lines of one start, and knows whether the budget is spent."""

    def __init__(self, path: Path, budget: BudgetSpec, resources: ResourcesSpec) -> None:
        self._path, self._budget, self._resources = path / FILE, budget, resources
        self._before = read_spent(path)
        self._own = Spent()
        self._started = time.time()
        self._write({"start": self._started})

    def ended(self, job: Job, outcome: Outcome, state: str) -> None:
        """state: done, failed, retry or lost."""
        amounts = self._resources.of(job.stage)
        core_s, gpu_s = (outcome.seconds * amounts.workers * amount for amount in (amounts.cpus, amounts.gpus))
        self._own.core_s += core_s
        self._own.gpu_s += gpu_s
        self._own.num_jobs += 1
        line = {"job": job.id, "stage": job.stage, "kind": job.kind, "state": state, "seconds": outcome.seconds}
        self._write({**line, "core_s": core_s, "gpu_s": gpu_s, "ended": time.time()})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def spent(self) -> Spent:
        """Over all starts, this one up to now."""
        return Spent(
            self._before.core_s + self._own.core_s,
            self._before.gpu_s + self._own.gpu_s,
            self._before.wall_s + time.time() - self._started,
            self._before.num_jobs + self._own.num_jobs,
        )

    @property
    def is_spent(self) -> bool:
        spent, limits = self.spent, self._budget
        pairs = ((spent.gpu_s, limits.gpu_hours), (spent.core_s, limits.core_hours), (spent.wall_s, limits.hours))
        return any(limit and seconds >= 3600 * limit for seconds, limit in pairs)
