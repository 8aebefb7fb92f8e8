"""The book of jobs: which are published, wait, run or have failed, and what a failure means for the jobs behind it."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ddgd_ray.conduct.job_queue import JobQueue
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)

MIN_FINISHED_TO_GIVE_UP = 4


class JobBook:
    """Jobs and the artifacts that they make. Equal calls of different trials are one job."""

    def __init__(self, store: Store, resources: ResourcesSpec, settled: Callable[[Ref], None]) -> None:
        """settled: called with each artifact that is published from now on, or that never will be."""
        self._store, self._resources, self._settled = store, resources, settled
        self.queue = JobQueue()
        self.running: dict[str, Job] = {}
        """{id: job}."""
        self.failed: dict[Ref, str] = {}
        """{artifact: message} of the artifacts that will not be made."""
        self.causes: dict[str, int] = {}
        """{message: exit code} of the jobs that failed themselves, not for want of an input."""
        self.failures: Counter[str] = Counter()
        """{id of a job: number of its failed attempts}."""
        self.hits: set[str] = set()
        """The ids of jobs whose artifacts were there before, or were made by another driver."""
        self.num_done = 0
        self._num_failed = 0
        self._errors: set[str] = set()
        self._published: set[Ref] = set()

    @property
    def is_idle(self) -> bool:
        return not self.queue and not self.running

    @property
    def has_failed_too_often(self) -> bool:
        """More than the allowed share of the finished jobs have failed."""
        num = self.num_done + self._num_failed
        return num >= MIN_FINISHED_TO_GIVE_UP and self._num_failed / num > self._resources.max_failed_share

    @property
    def tally(self) -> str:
        return f"{self._num_failed} of {self.num_done + self._num_failed} jobs failed"

    def has(self, ref: Ref) -> bool:
        """True when the artifact is published and sound; the store is asked until it is."""
        if ref not in self._published and self._store.has(*ref) and self._store.sound(*ref) is not None:
            self._published.add(ref)
        return ref in self._published

    def is_settled(self, ref: Ref) -> bool:
        """The artifact is published, or never will be."""
        return self.has(ref) or ref in self.failed

    def is_published(self, job: Job) -> bool:
        return all(self.has(call.ref) for call in job.calls)

    def enter(self, job: Job) -> None:
        """Take note of a job of a new trial: it is a hit, is known already, or waits from now on."""
        if self.is_published(job):
            self.hits.add(job.id)
        elif job.id not in self.running and job.id not in self.queue and job.calls[-1].ref not in self.failed:
            self.put(job)

    def put(self, job: Job) -> None:
        """Let a job wait for its inputs and its turn; it fails at once when one of its inputs has failed."""
        broken = next((ref for ref in job.needs if ref in self.failed), None)
        if broken is not None:
            self.give_up(job, f"not run: {self.failed[broken]}")
        else:
            self.queue.add(job, [ref for ref in job.needs if not self.has(ref)])

    def conclude(self, job: Job) -> None:
        """Take note that all calls of the job are published."""
        for call in job.calls:
            self._published.add(call.ref)
            self.queue.published(call.ref)
            self._settled(call.ref)

    def attempt(self, job: Job) -> int:
        """The number of the attempt that is under way or comes next, 1 for the first."""
        return self.failures[job.id] + 1

    def may_try_again(self, job: Job, outcome: Outcome) -> bool:
        """Count a failed attempt; True when the job has another one left."""
        self.failures[job.id] += 1
        return not outcome.is_final and self.failures[job.id] <= self._resources.max_failures

    def fail(self, job: Job, outcome: Outcome, run: Path) -> None:
        """Take note that a job of the run in this folder failed for good."""
        self._num_failed += 1
        if outcome.error not in self._errors:  # of many jobs that fail alike, the first one's log tells it
            self._errors.add(outcome.error)
            self.causes[outcome.message(run)] = outcome.exit_code
        self.give_up(job, outcome.message(), f"not run: {job.label} failed")

    def give_up(self, job: Job, message: str, for_others: str = "") -> None:
        """Mark the calls of a job as failed with `message`, and with `for_others` the jobs that need them."""
        for call in job.calls:
            if self.has(call.ref):
                continue
            self.failed[call.ref] = message
            self._settled(call.ref)
            for dependant in self.queue.drop_dependants(call.ref):
                self.give_up(dependant, for_others or message)

    def remake_inputs(self, job: Job, all_jobs: Callable[[], Iterable[Job]]) -> None:
        """Let inputs of a job be made again that were damaged and set aside since they were published."""
        for ref in job.needs & self._published:
            if self._store.still_has(*ref):
                continue
            self._published.discard(ref)
            maker = next((other for other in all_jobs() if any(call.ref == ref for call in other.calls)), None)
            if maker is not None and maker.id not in self.queue and maker.id not in self.running:
                log.warning("%s is made again", maker.label)
                self.remake_inputs(maker, all_jobs)  # before `put`, which asks which inputs are missing
                self.put(maker)
