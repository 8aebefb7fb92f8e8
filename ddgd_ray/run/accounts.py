"""The spending of a run, in `RUN/spend.jsonl`: a line a start, two a job, as it begins and ends. Failed jobs count too."""

import json
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgd_ray.plain_files import read_bytes, read_text
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.budget_spec import BudgetSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.curves import whole_lines

FILE = "spend.jsonl"
ALIVE = "alive"
"""The file with the time of the driver's last sign of life, seconds since 1970."""
BEAT_S = 10.0
MAX_SPEND_BYTES = 1 << 30


@dataclass
class Spent:
    """Seconds added up over all starts; the wall clock counts up to the last sign of life of each start."""

    core_s: float = 0.0
    gpu_s: float = 0.0
    wall_s: float = 0.0
    num_jobs: int = 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Add what a job held."""
        self.core_s += line["core_s"]
        self.gpu_s += line["gpu_s"]


def _ended_line(what: Mapping[str, Any], state: str, seconds: float, held: Mapping[str, float], ended: float) -> dict[str, Any]:
    """The line of a job that held `held` for `seconds`. what: job, stage and kind."""
    spent = {"core_s": seconds * held["cpus"], "gpu_s": seconds * held["gpus"]}
    named = {name: what[name] for name in ("job", "stage", "kind")}
    return {**named, "state": state, "seconds": seconds, **spent, "ended": ended}


def _named(job: Job) -> dict[str, str]:
    return {"job": job.id, "stage": job.stage, "kind": job.kind}


@dataclass
class _ReadBack:
    """What the lines of the file say. seen: last sign of life of the newest start. open: its jobs that have not ended."""

    spent: Spent = field(default_factory=Spent)
    started: float = 0.0
    seen: float = 0.0
    open: dict[str, dict[str, Any]] = field(default_factory=dict)

    def close(self) -> list[dict[str, Any]]:
        """Lines for the jobs whose end nobody saw; what they held up to the last sign of life is spent."""
        lines = [
            _ended_line(began, "lost", max(0.0, self.seen - began["time"]), began, self.seen) for began in self.open.values()
        ]
        for line in lines:
            self.spent.add(line)
        return lines


def _read(path: Path) -> _ReadBack:
    known = _ReadBack()
    for line in _lines(path):
        if "start" in line:
            known.spent.wall_s += max(0.0, known.seen - known.started)
            known.started = known.seen = line["start"]
            known.open.clear()
        elif "began" in line:
            began = line["began"]
            known.open[began["job"]] = began
            known.seen = max(known.seen, began["time"])
        elif "job" in line:
            known.open.pop(line["job"], None)
            known.spent.add(line)
            known.spent.num_jobs += 1
            known.seen = max(known.seen, line["ended"])
        elif "alive" in line:
            known.seen = max(known.seen, line["alive"])
    if known.started:
        known.seen = max(known.seen, _beat(path))
    known.spent.wall_s += max(0.0, known.seen - known.started)
    return known


def _beat(path: Path) -> float:
    try:
        return float(read_text(path / ALIVE))
    except (OSError, ValueError):
        return 0.0


def read_spent(path: Path) -> Spent:
    """The spending of a run folder, zero where nothing ran. Jobs under way count up to the driver's last sign of life."""
    known = _read(path)
    known.close()
    return known.spent


def mean_seconds(path: Path) -> dict[str, float]:
    """{stage: mean seconds of the jobs of a run folder that ended well}."""
    found: dict[str, list[float]] = {}
    for line in _lines(path):
        if line.get("state") == "done":
            found.setdefault(line["stage"], []).append(line["seconds"])
    return {stage: statistics.fmean(seconds) for stage, seconds in found.items()}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return whole_lines(read_bytes(path / FILE, MAX_SPEND_BYTES))
    except OSError:
        return []


class Accounts:
    """The spending of one start, written line by line, and whether the budget is spent.

    Jobs that a killed driver left open are closed: they held what they hold until the last sign of life of that driver.
    """

    def __init__(self, path: Path, budget: BudgetSpec, resources: ResourcesSpec) -> None:
        self._path, self._budget, self._resources = path / FILE, budget, resources
        known = _read(path)
        self._mend()
        for line in known.close():
            self._write(line)
            known.spent.num_jobs += 1
        if known.started:
            self._write({"alive": known.seen})  # the next sign of life will be ours
        self._before = known.spent
        self._own = Spent()
        self._began: dict[str, float] = {}
        self._started = time.time()
        self._write({"start": self._started})

    @contextmanager
    def alive(self, every_s: float = BEAT_S) -> Iterator[None]:
        """A block during which a thread leaves signs of life: all that is known of the end of a driver that is killed."""
        over = threading.Event()
        sign, unfinished = self._path.with_name(ALIVE), self._path.with_name(f".{ALIVE}")

        def beat() -> None:
            while not over.wait(every_s):
                with suppress(OSError):
                    unfinished.write_text(f"{time.time()}\n")
                    os.replace(unfinished, sign)  # a driver that is killed in between leaves the sign before this one

        thread = threading.Thread(target=beat, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def began(self, job: Job) -> None:
        """Write that a job was handed out."""
        now = self._began[job.id] = time.time()
        line = {**_named(job), **self._resources.of(job.stage).held, "time": now}
        self._write({"began": line})  # whoever looks for lines of a stage, or with a state, finds jobs that ended

    def ended(self, job: Job, outcome: Outcome, state: str) -> None:
        """Write how a job ended. state: done, failed, retry or lost. A job that died without its seconds held until now."""
        now = time.time()
        began = self._began.pop(job.id, now)
        seconds = outcome.seconds or (max(0.0, now - began) if outcome.error else 0.0)
        line = _ended_line(_named(job), state, seconds if outcome.has_held else 0.0, self._resources.of(job.stage).held, now)
        self._own.add(line)
        self._own.num_jobs += 1
        self._write(line)

    def _mend(self) -> None:
        """End a line that was cut, so that the next one is not glued to it."""
        with self._path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def spent(self) -> Spent:
        """The spending of all starts, of this one up to now."""
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
