"""Which job may start now, and what follows from one that ended. Pure bookkeeping: executors ask it, the store answers it.

Equal calls of different trials are one job. A job may start when the inputs of its calls are published.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ddgd_ray.conduct.events import Event, StopReason
from ddgd_ray.conduct.job_queue import JobQueue
from ddgd_ray.conduct.openings import Openings
from ddgd_ray.errors import SpecErrors
from ddgd_ray.plan.jobs import Job, Outcome, finalist_jobs, jobs_of
from ddgd_ray.plan.plan import Trial, plan_controls
from ddgd_ray.run.accounts import Accounts
from ddgd_ray.run.folder import RunFolder, TrialProgress
from ddgd_ray.run.objective import ranking_of, worth_at_the_end
from ddgd_ray.search.ask_tell import Search
from ddgd_ray.search.seed_policy import Allotment, AllSeeds, Arm, End
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)

MIN_FINISHED_TO_GIVE_UP = 4


@dataclass
class Conductor:
    """`next` hands out jobs, `ended` takes their outcomes; `is_finished` says when nothing is left."""

    sweep: Sweep
    store: Store
    search: Search
    folder: RunFolder
    emit: Callable[[Event], None] = lambda event: None
    allotment: Allotment | None = None
    """How much each configuration gets; without one, every distillation seed."""
    accounts: Accounts | None = None
    """What the run spends; without them, no budget is looked at."""
    stop_reason: StopReason = ""
    """Why no more jobs are handed out, "" while they are."""
    num_done: int = 0
    records: list[TrialProgress] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    running: dict[str, Job] = field(default_factory=dict)
    failed: dict[Ref, str] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    """{message: exit code} of the jobs that failed themselves, not for want of an input."""

    def __post_init__(self) -> None:
        self.queue = JobQueue()
        self._allotment = self.allotment or AllSeeds(self.sweep)
        self._published: set[Ref] = set()
        self._hits: set[str] = set()
        self._openings = Openings()
        self._arm_of: dict[int, Arm] = {}
        self._rested: list[Arm] = []
        self._num_open_arms = 0
        self._failures: Counter[str] = Counter()
        self._num_failed = 0
        self._is_final = False
        self._num_cut = 0
        self._add_trials(plan_controls(self.sweep))
        self._ask()
        self._settle()

    @property
    def is_draining(self) -> bool:
        return bool(self.stop_reason)

    @property
    def is_complete(self) -> bool:
        """Every configuration there will be has come to its end."""
        return not self._openings and not self._num_open_arms and self.search.exhausted

    @property
    def is_finished(self) -> bool:
        if self.is_draining:
            return not self.running
        return not self.queue and not self.running and self.is_complete

    @property
    def num_hits(self) -> int:
        """Jobs that were published before this start."""
        return len(self._hits)

    def stop(self, reason: StopReason) -> None:
        """Hand out nothing more; the first reason stands. Interrupted jobs keep what they have, others run to their end."""
        self.stop_reason = self.stop_reason or reason
        if reason == "interrupted":
            self.folder.order_stop()

    def look_for_orders(self) -> None:
        """By `ddgd-ray stop`, or of the budget."""
        if not self.is_draining and self.folder.is_told_to_stop:
            self.stop("interrupted")
        if self.accounts is not None and self.accounts.is_spent:
            self.stop("budget")

    def next(self, fits: Callable[[Job], bool] = lambda job: True) -> Job | None:
        """A job that may start now, or None: nothing is ready, nothing that is ready fits, or the sweep is being stopped.

        fits is asked for the oldest job of each kind, the most urgent kind first.
        """
        self.look_for_orders()
        while not self.is_draining:
            job = self.queue.take(fits)
            if job is None:
                return None
            if self._is_published(job):  # by another driver, in the meantime
                self._hits.add(job.id)
                self._conclude(job)
                self._settle()
                continue
            self.running[job.id] = job
            if self.accounts is not None:
                self.accounts.began(job)
            self.emit(Event("start", job))
            return job
        return None

    def ended(self, job_id: str, outcome: Outcome) -> None:
        """Take note of an outcome; a job whose worker died is handed out again, alone."""
        job = self.running[job_id]
        is_done = not outcome.error or self._is_published(job)  # it may have died after publishing
        del self.running[job_id]
        if is_done:
            self.num_done += 1
            self._account(job, outcome, "done")
            self._conclude(job)
            self.emit(Event("done", job, text=f"{outcome.seconds:.1f} s"))
        elif outcome.is_lost:
            log.warning("%s was lost: %s", job.label, outcome.error)
            self._account(job, outcome, "lost")
            self.emit(Event("lost", job, text=outcome.error))
            self._put(job)
        else:
            self._failures[job_id] += 1
            if not outcome.is_final and self._failures[job_id] <= self.sweep.spec.resources.max_failures:
                log.warning("%s failed, attempt %d: %s", job.label, self._failures[job_id], outcome.error)
                self.emit(Event("retry", job, text=outcome.error))
                self._account(job, outcome, "retry")
                self._remake_inputs(job)
                self._put(job)
                return
            self._fail(job, outcome)
        self._settle()

    def _has(self, ref: Ref) -> bool:
        if ref not in self._published and self.store.has(*ref) and self.store.sound(*ref) is not None:
            self._published.add(ref)
        return ref in self._published

    def _is_published(self, job: Job) -> bool:
        return all(self._has(call.ref) for call in job.calls)

    def _put(self, job: Job) -> None:
        """Let it wait for its turn, or fail where something it needs has failed already."""
        broken = next((ref for ref in job.needs if ref in self.failed), None)
        if broken is not None:
            self._break(job, f"not run: {self.failed[broken]}")
        else:
            self.queue.add(job, [ref for ref in job.needs if not self._has(ref)])

    def _remake_inputs(self, job: Job) -> None:
        """What the job needs may have been damaged and set aside since it was published: it is made again first."""
        for ref in job.needs & self._published:
            if self.store.still_has(*ref):
                continue
            self._published.discard(ref)
            jobs = (other for record in self.records for other in jobs_of(record.trial, self.sweep.spec.resources))
            maker = next((other for other in jobs if any(call.ref == ref for call in other.calls)), None)
            if maker is not None and maker.id not in self.queue and maker.id not in self.running:
                log.warning("%s is made again", maker.label)
                self._remake_inputs(maker)
                self._put(maker)

    def _conclude(self, job: Job) -> None:
        """Its calls are published."""
        for call in job.calls:
            self._published.add(call.ref)
            self.queue.published(call.ref)
            self._openings.decided(call.ref)

    def _account(self, job: Job, outcome: Outcome, state: str) -> None:
        if self.accounts is not None:
            self.accounts.ended(job, outcome, state)

    def _fail(self, job: Job, outcome: Outcome) -> None:
        self._num_failed += 1
        self._account(job, outcome, "failed")
        self.causes[outcome.error] = outcome.exit_code
        self.emit(Event("failed", job, text=outcome.error))
        self._break(job, outcome.error, f"not run: {job.label} failed")
        finished = self.num_done + self._num_failed
        if finished >= MIN_FINISHED_TO_GIVE_UP and self._num_failed / finished > self.sweep.spec.resources.max_failed_share:
            self.stop("failures")
            log.error("%d of %d jobs failed: stopping", self._num_failed, finished)

    def _break(self, job: Job, message: str, for_others: str = "") -> None:
        """The job's calls failed, and with them all that needs them."""
        for call in job.calls:
            if self._has(call.ref):
                continue
            self.failed[call.ref] = message
            self._openings.decided(call.ref)
            for dependant in self.queue.drop_dependants(call.ref):
                self._break(dependant, for_others or message)

    def _ask(self) -> bool:
        """Whether the search proposed anything."""
        asked = False
        while (proposal := self.search.ask()) is not None:
            asked = True
            arm = Arm(proposal)
            self.arms.append(arm)
            try:
                trials = self._allotment.first(proposal)
            except SpecErrors as err:  # each of its values alone is fine
                log.warning("%s cannot run and counts as failed: %s", proposal.arm, err)
                arm.end = "invalid"
                self.search.tell(proposal, None)
                continue
            self._num_open_arms += 1
            self._extend(arm, trials)
        return asked

    def _extend(self, arm: Arm, trials: Iterable[Trial]) -> None:
        trials = list(trials)
        most = self.sweep.spec.budget.trials
        if most:
            left = max(0, most - len(self._arm_of))
            if len(trials) > left:
                self._num_cut += len(trials) - left
                arm.num_open += len(trials) - left  # it never comes to rest
                trials = trials[:left]
        arm.records.extend(self._add_trials(trials, arm))

    def _add_trials(self, trials: Iterable[Trial], arm: Arm | None = None) -> list[TrialProgress]:
        added = []
        for trial in trials:
            record = TrialProgress(trial)
            place = len(self.records)
            self.records.append(record)
            added.append(record)
            if arm is not None:
                self._arm_of[place] = arm
                arm.num_open += 1
            self._await(place)
            for job in jobs_of(trial, self.sweep.spec.resources):
                if self._is_published(job):
                    self._hits.add(job.id)
                elif job.id not in self.running and job.id not in self.queue and job.calls[-1].ref not in self.failed:
                    self._put(job)
            self.folder.write(record)
        return added

    def _await(self, place: int) -> None:
        refs = {call.ref for call in self.records[place].calls()}
        self._openings.open(place, (ref for ref in refs if not self._has(ref) and ref not in self.failed))

    def _settle(self) -> None:
        """Write down trials that came to an end, give configurations more of them or tell the search, ask for more."""
        while True:
            for place in self._openings.take_over():
                self._close(place)
            if self.is_draining:
                return
            moved = self._step()
            if moved or self._openings.over:
                continue
            if self.queue or self.running or self._is_final:
                return
            if self._num_cut:
                self.stop("budget")
            if not self.is_complete:
                return
            self._is_final = True
            self._test_finalists()

    def _step(self) -> bool:
        """Whether the allotment or the search had something to say to the arms that came to rest."""
        if not self._rested:
            return False
        rested, self._rested = self._rested, []
        moved = False
        for arm, verdict in self._allotment.step(rested, self.arms):
            moved = True
            if isinstance(verdict, End):
                arm.end = verdict.reason
                self._num_open_arms -= 1
                spec = self.sweep.spec
                self.search.tell(arm.proposal, worth_at_the_end(arm.trials, spec.objective, self.store, spec.resources))
            else:
                self._extend(arm, verdict)
        return self._ask() or moved

    def _test_finalists(self) -> None:
        """Nothing is left that could change the choice: the chosen arms and the controls see the test images."""
        if self.sweep.spec.test != "finalists":
            return
        spec = self.sweep.spec
        trials = (record.record for record in self.records)
        chosen = ranking_of(trials, spec.objective, self.store, spec.resources).order[: spec.objective.finalists]
        for place, record in enumerate(self.records):
            is_chosen = record.trial.is_control or (record.trial.arm in chosen and record.trial.rung is None)
            if record.state == "done" and is_chosen:
                record.is_finalist, record.state = True, "planned"
                self.folder.write(record)
                self._await(place)
                for job in finalist_jobs(record.trial):
                    if not self._is_published(job):
                        self._put(job)
        self._settle()

    def _close(self, place: int) -> None:
        record = self.records[place]
        refs = [call.ref for call in record.calls()]
        record.errors = {ref[1]: self.failed[ref] for ref in refs if ref in self.failed}
        record.attempts = {ref[1]: 1 + self._failures[ref[1]] for ref in refs if self._failures[ref[1]]}
        was_open = record.state == "planned"
        record.state = "failed" if record.errors else "done"
        made = [self.store.get(*ref) for ref in refs if self._has(ref)]
        record.finished = max((artifact.manifest["created"] for artifact in made if artifact), default=time.time())
        self.folder.write(record)
        self.emit(Event("trial", record=record))
        arm = self._arm_of.get(place)
        if arm is not None and was_open and not record.is_finalist:
            arm.num_open -= 1
            if arm.is_at_rest:
                self._rested.append(arm)
