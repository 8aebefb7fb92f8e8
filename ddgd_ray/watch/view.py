"""What a sweep looks like while it runs: a panel on a terminal, a line per event and a heartbeat elsewhere."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ddgd_ray.conduct.conductor import Conductor, Event
from ddgd_ray.run.folder import TrialProgress
from ddgd_ray.run.objective import highest_rung, measure, rank, value_of
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import in_order_of
from ddgd_ray.spec.search_spec import ACCURACIES
from ddgd_ray.spec.sweep_spec import SweepSpec
from ddgd_ray.stages.curves import read_newest_point
from ddgd_ray.watch.snapshot import STATES, Best, Running, Snapshot, best_of, seconds_left

HEARTBEAT_S = 60.0
MAX_RUNNING = 16


class Tally:
    """The numbers that events add up to: jobs by stage, seconds of each stage, the best arm. Both views share them."""

    def __init__(self) -> None:
        self.conductor: Conductor | None = None
        self.started = time.monotonic()
        self.since: dict[str, float] = {}
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = {}
        self._measured: dict[str, tuple[TrialRecord, tuple[float, ...]]] = {}
        """{name: a finished trial, what it measured}; reading that again for every picture would take too long."""
        self._best: Best | None = None
        self._is_best_known = False

    def start(self, conductor: Conductor) -> None:
        self.conductor = conductor
        for record in conductor.records:
            if record.state == "done":
                self._see_value(conductor, record)

    def see(self, event: Event) -> None:
        conductor, job = self.conductor, event.job
        if conductor is None:
            return  # found complete while planning
        if job is not None and event.kind == "start":
            self.since[job.id] = time.monotonic()
        elif job is not None:
            seconds = time.monotonic() - self.since.pop(job.id, time.monotonic())
            if event.kind == "done":
                self.done[job.stage] += 1
                self._seconds.setdefault(job.stage, []).append(seconds)
            elif event.kind == "failed":
                self.failed[job.stage] += 1
        elif event.record is not None and event.record.state == "done":
            self._see_value(conductor, event.record)

    def _see_value(self, conductor: Conductor, record: TrialProgress) -> None:
        if not record.trial.is_control:
            trial, spec = record.record, conductor.sweep.spec
            self._measured[trial.name] = trial, measure(trial, spec.objective, conductor.store, spec.resources)
            self._is_best_known = False

    @property
    def best(self) -> Best | None:
        """The best arm so far, of those that reached the highest rung: what a snapshot of the run folder says too."""
        assert self.conductor is not None
        if not self._is_best_known:  # asked twice a second
            self._best, self._is_best_known = self._find_best(self.conductor.sweep.spec), True
        return self._best

    def _find_best(self, spec: SweepSpec) -> Best | None:
        found = [self._measured[name][0] for name in sorted(self._measured)]  # as a run folder is read
        rung = highest_rung(found)
        measured: dict[str, dict[int, tuple[float, ...]]] = {}
        for trial in in_order_of(spec.vary, found):
            if trial.rung == rung:
                measured.setdefault(trial.arm, {})[trial.seed] = self._measured[trial.name][1]
        return best_of(rank(measured, spec.objective))

    def left_s(self) -> float | None:
        assert self.conductor is not None
        waiting = self.conductor.jobs.queue.count()
        waiting.update(job.stage for job in list(self.conductor.jobs.running.values()))
        means = {stage: sum(values) / len(values) for stage, values in self._seconds.items()}
        return seconds_left(waiting, means, max(1, len(self.conductor.jobs.running)))

    def line(self) -> str:
        """One line for the reader of a log."""
        conductor = self.conductor
        assert conductor is not None
        left = self.left_s()
        parts = [
            f"{sum(self.done.values())} jobs done, {len(conductor.jobs.running)} running, {len(conductor.jobs.queue)} waiting",
            f"{sum(self.failed.values())} failed" if self.failed else "",
            f"about {duration(left)} left" if left else "",
            best_text(self.best),
        ]
        return "; ".join(part for part in parts if part)


class PlainView:
    """One line an event, with the time since the start, and one a minute when nothing happens."""

    def __init__(self, echo: Callable[[str], None], heartbeat_s: float = HEARTBEAT_S) -> None:
        self._echo, self._heartbeat_s = echo, heartbeat_s
        self._tally = Tally()
        self._ended = threading.Event()
        self._last = time.monotonic()

    def start(self, conductor: Conductor) -> None:
        self._tally.start(conductor)
        self._line(f"{len(conductor.jobs.hits)} jobs are published already, {len(conductor.jobs.queue)} to run")
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def stop(self) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s / 4):
            if time.monotonic() - self._last >= self._heartbeat_s:
                self._line(self._tally.line())

    def event(self, event: Event) -> None:
        self._tally.see(event)
        conductor = self._tally.conductor
        if conductor is None:
            return
        if event.kind == "trial" and event.record is not None:
            self._line(_trial_line(event, conductor))
        elif event.kind != "start" and event.job is not None:
            first_line = event.text.splitlines()[0] if event.text else ""
            self._line(f"{event.kind:6} {event.job.label}  {first_line}")

    def _line(self, text: str) -> None:
        conductor = self._tally.conductor
        self._last = time.monotonic()
        left = f" [{len(conductor.jobs.queue) + len(conductor.jobs.running)} left]" if conductor else ""
        self._echo(f"{self._last - self._tally.started:7.1f} s{left} {text}")


class LiveView:
    """A panel that is drawn anew twice a second."""

    def __init__(self, console: Console) -> None:
        self._tally = Tally()
        self._messages: list[str] = []
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self.panel)  # draws once at once

    def start(self, conductor: Conductor) -> None:
        self._tally.start(conductor)
        self._live.start()

    def stop(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def event(self, event: Event) -> None:
        self._tally.see(event)
        conductor = self._tally.conductor
        if conductor is None:
            return
        if event.kind == "trial":
            self._messages.append(_trial_line(event, conductor))
        elif event.kind in ("failed", "retry", "lost") and event.job is not None:
            self._messages.append(f"{event.kind}: {event.job.label}: {event.text.splitlines()[0]}")

    def panel(self) -> RenderableType:
        tally, conductor = self._tally, self._tally.conductor
        if conductor is None:
            return Group(Text("planning ..."))
        stages: dict[str, dict[str, int]] = {}
        running = list(conductor.jobs.running.values())
        states = [("done", tally.done), ("failed", tally.failed)]
        states.append(("running", Counter(job.stage for job in running)))
        states.append(("waiting", conductor.jobs.queue.count()))
        for state, found in states:
            for stage, number in found.items():
                stages.setdefault(stage, dict.fromkeys(STATES, 0))[state] = number
        rows = []
        for job in running[:MAX_RUNNING]:
            points = (read_newest_point(conductor.store.root / "kept" / call.key) for call in job.calls)
            point = next((point for point in points if point), {})
            since = tally.since.get(job.id, time.monotonic())
            rows.append(Running(job.stage, job.label, point, time.monotonic() - since))
        trials = Counter(record.state for record in conductor.records)
        spent = conductor.accounts.spent if conductor.accounts else None
        head = [
            f"trials {trials['done']} done, {trials['failed']} failed, {trials['planned']} open",
            f"{len(conductor.jobs.hits)} jobs were there",
            f"{time.monotonic() - tally.started:.0f} s",
        ]
        left = tally.left_s()
        head += [f"about {duration(left)} left"] if left else []
        head += [f"{spent.core_s / 3600:.2f} core-hours, {spent.gpu_s / 3600:.2f} GPU-hours spent"] if spent else []
        head += [best_text(tally.best)] if tally.best else []
        if conductor.is_draining:
            head.append(f"stopping ({conductor.stop_reason}): {len(running)} running jobs end first")
        messages = [Text(message) for message in self._messages[-8:]]
        body = Group(Text("; ".join(head)), stage_table(stages), running_table(rows), *messages)
        return Panel(body, title=f"{conductor.sweep.spec.name} ({conductor.sweep.spec.preset})", title_align="left")


def status_panel(found: Snapshot) -> RenderableType:
    """The panel of a run that another process works on, or none does."""
    trials = found.trials
    lines = [
        f"worked on by {found.holder}" + (", stopping" if found.is_stopping else "") if found.holder else "not running",
        f"trials {trials['done']} done, {trials['failed']} failed, {trials['planned']} open",
        f"spent: {found.spent.num_jobs} jobs, {found.spent.core_s / 3600:.2f} core-hours, {found.spent.gpu_s / 3600:.2f} "
        f"GPU-hours, {duration(found.spent.wall_s)} on the clock",
    ]
    if found.left_s:
        lines.append(f"about {duration(found.left_s)} left" if found.holder else f"about {duration(found.left_s)} of work left")
    if found.best:
        lines.append(best_text(found.best))
    if found.waiting_for_tracker:
        lines.append(f"{found.waiting_for_tracker} trials wait for MLflow")
    body = Group(*map(Text, lines), stage_table(found.stages), running_table(found.running))
    return Panel(body, title=f"{found.name} ({found.preset})", title_align="left")


def stage_table(stages: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for state in STATES:
        table.add_column(state, justify="right")
    for stage, found in stages.items():
        table.add_row(stage, *(str(found[state] or "-") for state in STATES))
    return table


def running_table(rows: list[Running]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("running", "for", "progress"):
        table.add_column(title)
    for row in rows:
        table.add_row(row.label, f"{row.seconds:.0f} s", point_text(row.point))
    return table


def point_text(point: Mapping[str, float]) -> str:
    """`step 50 L_diffusion 0.06 ...`, "" of nothing."""
    if not point:
        return ""
    values = [f"{name} {value:.3g}" for name, value in point.items() if name not in ("step", "time") and "/" not in name]
    return f"step {point['step']} " + " ".join(values[:4])


def best_text(best: Best | None) -> str:
    """`best ARM, METRIC MEAN (n=N)`, of several objectives with the others of the front; "" while no arm has a worth."""
    if best is None:
        return ""
    others = [arm for arm in best.front if arm != best.arm]
    front = f", with {len(others)} more on the Pareto front" if others else ""
    mean = f"{best.mean:.3f}" if best.metric in ACCURACIES else f"{best.mean:.4g}"
    return f"best {best.arm}, {best.metric} {mean} (n={best.n}){front}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _trial_line(event: Event, conductor: Conductor) -> str:
    assert event.record is not None
    if event.record.state == "failed":
        return f"trial  {event.record.trial.name}  failed"
    for metric in (conductor.sweep.spec.objective.metric, "top1_last"):
        value = value_of(event.record.record, metric, conductor.store, conductor.sweep.spec.resources)
        if value is not None:
            return f"trial  {event.record.trial.name}  {metric} {value:.3f}"
    return f"trial  {event.record.trial.name}  done"


def machine_busy_s() -> float:
    """Core-seconds that this machine has worked since it started, all processes; 0 where /proc/stat does not tell."""
    try:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
