"""Which job may start now, and what follows from one that ended. Pure bookkeeping: executors ask it, the store answers it.

A job is one or more stage calls that run in one process: preparing (one call), building a set (fine-tune then sample), one
evaluator. Equal calls of different trials are one job. A job may start when the inputs of its calls are published.
"""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ddgd_ray.engine.plan import Evaluator, Trial, plan_arm, plan_controls
from ddgd_ray.engine.run_folder import RunFolder, TrialRecord
from ddgd_ray.engine.search import Proposal, Search
from ddgd_ray.engine.shared import Ref
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.store import Store

log = logging.getLogger(__name__)

# earlier kinds start first among the ready: evaluators before new sets, so that results come in as the sweep goes
KINDS = ("prepare", "test", "evaluate", "measure", "build")
MIN_FINISHED_TO_GIVE_UP = 4


@dataclass(frozen=True)
class Job:
    kind: str
    label: str
    calls: tuple[StageCall, ...]

    @property
    def id(self) -> str:
        return self.calls[-1].key

    @property
    def needs(self) -> frozenset[Ref]:
        """What must be published before: inputs of the calls that no call of the job makes itself."""
        own = {call.ref for call in self.calls}
        inputs = (value for call in self.calls for value in call.inputs.values() if not isinstance(value, Outside))
        return frozenset(ref for ref in inputs if ref not in own)


@dataclass(frozen=True)
class Outcome:
    """How a job ended. is_final: running it again would fail again. exit_code: of the error's class."""

    error: str = ""
    is_final: bool = False
    seconds: float = 0.0
    exit_code: int = 1


@dataclass
class Event:
    """Something to show: kind is `start`, `done`, `failed`, `retry` or `trial`."""

    kind: str
    job: Job | None = None
    record: TrialRecord | None = None
    text: str = ""


@dataclass
class _Arm:
    proposal: Proposal
    trials: list[TrialRecord]


@dataclass
class Conductor:
    """`next` hands out jobs, `ended` takes their outcomes; `is_finished` says when nothing is left."""

    sweep: Sweep
    store: Store
    search: Search
    folder: RunFolder
    emit: Callable[[Event], None] = lambda event: None
    is_draining: bool = False
    is_given_up: bool = False
    num_done: int = 0
    records: list[TrialRecord] = field(default_factory=list)
    running: dict[str, Job] = field(default_factory=dict)
    failed: dict[Ref, str] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    """{message: exit code} of the jobs that failed themselves, not for want of an input."""

    def __post_init__(self) -> None:
        self._published: set[Ref] = set()
        self._hits: set[str] = set()
        self._waiting: dict[str, Job] = {}
        self._arms: list[_Arm] = []
        self._failures: Counter[str] = Counter()
        self._num_failed = 0
        self._is_final = False
        self._add_trials(plan_controls(self.sweep))
        self._ask()

    @property
    def is_finished(self) -> bool:
        if self.is_draining:
            return not self.running
        return not self._waiting and not self.running and self.search.exhausted

    @property
    def num_hits(self) -> int:
        """Jobs that were published before this start."""
        return len(self._hits)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_jobs(self) -> list[Job]:
        return list(self._waiting.values())

    def next(self, fits: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """A job that may start now, or None: nothing is ready, the first of the ready does not fit, or the sweep is being
        stopped. That a smaller job behind it would fit does not count: narrow jobs would starve wide ones.
        """
        if self.is_draining:
            return None
        ready = [job for job in self._waiting.values() if all(self._has(ref) for ref in job.needs)]
        if not ready:
            return None
        job = min(ready, key=lambda job: KINDS.index(job.kind))  # min keeps the order of planning among equals
        if not fits(job):
            return None
        del self._waiting[job.id]
        self.running[job.id] = job
        self.emit(Event("start", job))
        return job

    def ended(self, job_id: str, outcome: Outcome) -> None:
        """Take note of an outcome; a job whose worker died is handed out again, alone."""
        job = self.running.pop(job_id)
        if not outcome.error or all(self._has(call.ref) for call in job.calls):  # it may have died after publishing
            self.num_done += 1
            self._published.update(call.ref for call in job.calls)
            self.emit(Event("done", job, text=f"{outcome.seconds:.1f} s"))
        else:
            self._failures[job_id] += 1
            if not outcome.is_final and self._failures[job_id] <= self.sweep.spec.resources.max_failures:
                log.warning("%s failed, attempt %d: %s", job.label, self._failures[job_id], outcome.error)
                self.emit(Event("retry", job, text=outcome.error))
                self._waiting[job_id] = job
                return
            self._fail(job, outcome)
        self._settle()

    def _has(self, ref: Ref) -> bool:
        if ref not in self._published and self.store.has(*ref):
            self._published.add(ref)
        return ref in self._published

    def _fail(self, job: Job, outcome: Outcome) -> None:
        """The job's calls failed, and with them all that needs them."""
        self._num_failed += 1
        self.causes[outcome.error] = outcome.exit_code
        self.emit(Event("failed", job, text=outcome.error))
        broken = {call.ref: outcome.error for call in job.calls if not self._has(call.ref)}
        while broken:
            self.failed |= broken
            dependants = [waiting for waiting in self._waiting.values() if waiting.needs & broken.keys()]
            broken = {}
            for dependant in dependants:
                del self._waiting[dependant.id]
                broken |= {call.ref: f"not run: {job.label} failed" for call in dependant.calls}
        finished = self.num_done + self._num_failed
        if finished >= MIN_FINISHED_TO_GIVE_UP and self._num_failed / finished > self.sweep.spec.resources.max_failed_share:
            self.is_draining = self.is_given_up = True
            log.error("%d of %d jobs failed: stopping", self._num_failed, finished)

    def _ask(self) -> None:
        while (proposal := self.search.ask()) is not None:
            trials = plan_arm(self.sweep, proposal.arm, proposal.params)
            self._arms.append(_Arm(proposal, self._add_trials(trials)))
        self._settle()

    def _add_trials(self, trials: Iterable[Trial]) -> list[TrialRecord]:
        records = [TrialRecord(trial) for trial in trials]
        for record in records:
            for job in jobs_of(record.trial, self.sweep.spec.resources):
                if all(self._has(call.ref) for call in job.calls):
                    self._hits.add(job.id)
                elif job.id not in self.running:
                    self._waiting.setdefault(job.id, job)
            self.folder.write(record)
        self.records.extend(records)
        return records

    def _settle(self) -> None:
        """Write down trials that came to an end, tell the search about configurations that did, ask for more."""
        told = False
        for record in self.records:
            if record.state == "planned" and self._is_over(record):
                self._close(record)
        for arm in list(self._arms):
            if all(record.state != "planned" for record in arm.trials):
                self._arms.remove(arm)
                self.search.tell(arm.proposal, self._objective(arm.trials))
                told = True
        if told and not self.is_draining:
            self._ask()
        if not (self._is_final or self._waiting or self.running or self.is_draining) and self.search.exhausted:
            self._is_final = True
            self._test_finalists()

    def _test_finalists(self) -> None:
        """Nothing is left that could change the choice: the chosen arms and the controls see the test images."""
        if self.sweep.spec.test != "finalists":
            return
        values: dict[str, list[float]] = {}
        for record in self.records:
            value = self.trial_value(record) if record.state == "done" and not record.trial.is_control else None
            if value is not None:
                values.setdefault(record.trial.arm, []).append(value)
        means = {arm: statistics.fmean(found) for arm, found in values.items()}
        ranked = sorted(means, key=lambda arm: means[arm], reverse=self.sweep.spec.objective.direction == "maximize")
        chosen = set(ranked[: self.sweep.spec.objective.finalists])
        for record in self.records:
            if record.state == "done" and (record.trial.is_control or record.trial.arm in chosen):
                record.is_finalist, record.state = True, "planned"
                self.folder.write(record)
                for job in finalist_jobs(record.trial):
                    if not self._has(job.calls[0].ref):
                        self._waiting.setdefault(job.id, job)
        self._settle()

    def _is_over(self, record: TrialRecord) -> bool:
        return all(self._has(call.ref) or call.ref in self.failed for call in record.calls())

    def _close(self, record: TrialRecord) -> None:
        refs = [call.ref for call in record.calls()]
        record.errors = {ref[1]: self.failed[ref] for ref in refs if ref in self.failed}
        record.attempts = {ref[1]: 1 + self._failures[ref[1]] for ref in refs if self._failures[ref[1]]}
        record.state = "failed" if record.errors else "done"
        made = [self.store.get(*ref) for ref in refs if self._has(ref)]
        record.finished = max((artifact.manifest["created"] for artifact in made if artifact), default=time.time())
        self.folder.write(record)
        self.emit(Event("trial", record=record))

    def _objective(self, records: list[TrialRecord]) -> float | None:
        """Mean over distillation seeds of the mean over evaluators; None when anything failed, or nothing measured it."""
        if any(record.state == "failed" for record in records):
            return None
        values = [self.trial_value(record) for record in records]
        return None if None in values else statistics.fmean(value for value in values if value is not None)

    def trial_value(self, record: TrialRecord, metric: str = "") -> float | None:
        """The objective's metric, or another, of one finished trial: mean over its evaluators of the main protocol.

        None where none of them has it: validation accuracy needs a validation slice.
        """
        metric = metric or self.sweep.spec.objective.metric
        made = [self.store.get(*evaluator.call.ref) for evaluator in record.trial.evaluators if evaluator.is_main]
        values = [artifact.metrics[metric] for artifact in made if artifact is not None and metric in artifact.metrics]
        return statistics.fmean(values) if values else None


def jobs_of(trial: Trial, resources: ResourcesSpec) -> list[Job]:
    """The trial as jobs, in an order in which they could run one after another; none for what is there without a job.

    Evaluators that differ in their seeds alone are one job where a worker may train them at once.
    """
    jobs = [Job("prepare", call.stage, (call,)) for call in trial.prepare]
    if trial.build:
        jobs.append(Job("build", trial.name, trial.build))
    alike: dict[tuple[str, int, str], list[Evaluator]] = {}
    for item in trial.evaluators:
        alike.setdefault((item.network, item.ipc, item.protocol), []).append(item)
    most = resources.pack or (len(trial.evaluators) if resources.gpus else 1)
    for (network, ipc, protocol), items in alike.items():
        for start in range(0, len(items), most):
            some = items[start : start + most]
            seeds = ",".join(str(item.seed) for item in some)
            of_protocol = "" if some[0].is_main else f" {protocol}"
            label = f"{trial.name} {network} ipc{ipc or 'all'} seed{seeds}{of_protocol}"
            jobs.append(Job("evaluate", label, tuple(item.call for item in some)))
    jobs += [Job("measure", f"{trial.name} {measure.label}", measure.calls) for measure in trial.measures]
    return jobs


def finalist_jobs(trial: Trial) -> list[Job]:
    return [
        Job("test", f"{trial.name} {item.network} ipc{item.ipc or 'all'} seed{item.seed} test", (item.test,))
        for item in trial.evaluators
        if item.test is not None
    ]
