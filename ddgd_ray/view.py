"""What a sweep looks like while it runs: a panel on a terminal, a line per event elsewhere."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddgd_ray.engine.conductor import Conductor, Event
from ddgd_ray.engine.objective import trial_value
from ddgd_ray.stages.base import CURVES


class PlainView:
    """One line an event, with the time since the start."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._started = time.monotonic()
        self._conductor: Conductor | None = None

    def start(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._line(f"{conductor.num_hits} jobs are published already, {len(conductor.queue)} to run")

    def stop(self) -> None:
        pass

    def event(self, event: Event) -> None:
        if self._conductor is None:
            return  # found complete while planning
        if event.kind == "trial" and event.record is not None:
            self._line(_trial_line(event, self._conductor))
        elif event.kind != "start" and event.job is not None:
            first_line = event.text.splitlines()[0] if event.text else ""
            self._line(f"{event.kind:6} {event.job.label}  {first_line}")

    def _line(self, text: str) -> None:
        left = f" [{len(self._conductor.queue) + len(self._conductor.running)} left]" if self._conductor else ""
        self._echo(f"{time.monotonic() - self._started:7.1f} s{left} {text}")


class LiveView:
    """A panel that is drawn anew twice a second: what runs, what is done, the best so far, the time left."""

    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._conductor: Conductor | None = None
        self._since: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = {}
        self._messages: list[str] = []
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self.panel)  # draws once at once

    def start(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._live.start()

    def stop(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def event(self, event: Event) -> None:
        if self._conductor is None:
            return
        now = time.monotonic()
        if event.job is not None and event.kind == "start":
            self._since[event.job.id] = now
        elif event.job is not None:
            started = self._since.pop(event.job.id, now)
            self._seconds.setdefault(event.job.kind, []).append(now - started)
        if event.kind == "trial":
            self._messages.append(_trial_line(event, self._conductor))
        elif event.kind in ("failed", "retry") and event.job is not None:
            self._messages.append(f"{event.kind}: {event.job.label}: {event.text.splitlines()[0]}")

    def panel(self) -> Group:
        conductor = self._conductor
        if conductor is None:
            return Group(Text("planning ..."))
        elapsed = time.monotonic() - self._started
        jobs = Table(box=None, pad_edge=False)
        for title in ("running", "for", "progress"):
            jobs.add_column(title)
        for job in list(conductor.running.values()):
            since = time.monotonic() - self._since.get(job.id, time.monotonic())
            jobs.add_row(job.label, f"{since:.0f} s", progress_of(conductor.store.root, [call.key for call in job.calls]))
        states = Counter(record.state for record in conductor.records)
        head = (
            f"{conductor.sweep.spec.name}: {conductor.num_done} jobs done, {conductor.num_hits} were there, "
            f"{len(conductor.running)} running, {len(conductor.queue)} waiting; trials {states['done']} done, "
            f"{states['failed']} failed, {states['planned']} open; {elapsed:.0f} s, about {self._time_left():.0f} s left"
        )
        if conductor.is_draining:
            head += "; stopping: running jobs end first"
        return Group(Text(head, style="bold"), jobs, *(Text(message) for message in self._messages[-8:]))

    def _time_left(self) -> float:
        """Mean seconds of each kind of job, times how many are left, over how many run at once."""
        assert self._conductor is not None
        left = self._conductor.queue.count()
        work = sum(count * _mean(self._seconds.get(kind, [])) for kind, count in left.items())
        return work / max(1, len(self._conductor.running))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 10.0


def _trial_line(event: Event, conductor: Conductor | None) -> str:
    assert event.record is not None
    if event.record.state == "failed" or conductor is None:
        return f"trial  {event.record.trial.name}  {event.record.state}"
    for metric in (conductor.sweep.spec.objective.metric, "top1_last"):
        value = trial_value(event.record, metric, conductor.store, conductor.sweep.spec.resources)
        if value is not None:
            return f"trial  {event.record.trial.name}  {metric} {value:.3f}"
    return f"trial  {event.record.trial.name}  done"


def progress_of(store: Path, keys: list[str]) -> str:
    """The newest point of the stage that is being made for one of these keys: `step 50 L_diffusion 0.06 ...`."""
    for key in keys:
        try:
            lines = (store / "kept" / key / CURVES).read_bytes()[-4000:].splitlines()
            point = json.loads(lines[-1])
        except (OSError, IndexError, ValueError):
            continue
        values = [f"{name} {value:.3g}" for name, value in point.items() if name not in ("step", "time") and "/" not in name]
        return f"step {point['step']} " + " ".join(values[:4])
    return ""


def machine_busy_s() -> float:
    """Core-seconds that this machine has worked since it started, all processes; 0 where /proc/stat does not tell."""
    try:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
