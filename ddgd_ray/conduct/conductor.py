"""Which job may start now, and what follows from one that ended. Pure bookkeeping: executors ask it, the store answers it.

A job may start when the inputs of its calls are published. JobBook keeps the jobs; here are the trials and the arms, each of
which comes to its end when all that it is made of is published or has failed.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ddgd_ray.conduct.job_book import JobBook
from ddgd_ray.conduct.waiting import Waiting
from ddgd_ray.errors import SpecErrors
from ddgd_ray.plan.jobs import Job, Outcome, finalist_jobs, jobs_of
from ddgd_ray.plan.plan import Trial, plan_controls
from ddgd_ray.run.accounts import Accounts
from ddgd_ray.run.folder import RunFolder, TrialProgress
from ddgd_ray.run.objective import ranking_of, worth_at_the_end
from ddgd_ray.search.ask_tell import Search
from ddgd_ray.search.seed_policy import AllSeeds, Arm, End, SeedPolicy
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)

StopReason = Literal["", "interrupted", "failures", "budget"]
"""Why a sweep ends before everything is done; "" when it does not."""


@dataclass
class Event:
    """Something to show: kind is `start`, `done`, `failed`, `retry`, `lost` or `trial`."""

    kind: str
    job: Job | None = None
    record: TrialProgress | None = None
    text: str = ""


@dataclass
class Conductor:
    """`next` hands out jobs, `ended` takes their outcomes; `is_finished` says when nothing is left."""

    sweep: Sweep
    store: Store
    search: Search
    folder: RunFolder
    emit: Callable[[Event], None] = lambda event: None
    seed_policy: SeedPolicy | None = None
    """Decides how many trials each arm gets; None: one for every distillation seed."""
    accounts: Accounts | None = None
    """The books of what the run spends; None: no budget is looked at."""
    stop_reason: StopReason = ""
    """Why no more jobs are handed out; "" while they are."""
    records: list[TrialProgress] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs = JobBook(self.store, self.sweep.spec.resources, self._settled)
        self._policy = self.seed_policy or AllSeeds(self.sweep)
        # trials go by their place in `records`
        self._open_trials = Waiting[int]()
        self._over: list[int] = []  # trials of which everything is published or has failed, but that are not closed yet
        self._arm_of: dict[int, Arm] = {}
        self._idle_arms: list[Arm] = []  # arms whose last open trial has closed since the policy was asked
        self._num_open_arms = 0
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
        return not self._open_trials and not self._num_open_arms and self.search.exhausted

    @property
    def is_finished(self) -> bool:
        if self.is_draining:
            return not self.jobs.running
        return self.jobs.is_idle and self.is_complete

    def stop(self, reason: StopReason) -> None:
        """Hand out no more jobs; the first reason stands.

        When interrupted, running jobs that can go on later keep what they have and end; otherwise they run to their end.
        """
        self.stop_reason = self.stop_reason or reason
        if reason == "interrupted":
            self.folder.order_stop()

    def look_for_orders(self) -> None:
        """Stop when `ddgd-ray stop` has asked for it, or when the budget is spent."""
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
            job = self.jobs.queue.take(fits)
            if job is None:
                return None
            if self.jobs.is_published(job):  # by another driver, in the meantime
                self.jobs.hits.add(job.id)
                self.jobs.conclude(job)
                self._settle()
                continue
            self.jobs.running[job.id] = job
            if self.accounts is not None:
                self.accounts.began(job)
            self.emit(Event("start", job))
            return job
        return None

    def ended(self, job_id: str, outcome: Outcome) -> None:
        """Take note of an outcome; a job that was lost, or has an attempt left, is handed out again."""
        job = self.jobs.running[job_id]
        # the worker may have died after publishing. The store is asked first: while it does not answer, the job still runs
        is_done = not outcome.error or self.jobs.is_published(job)
        del self.jobs.running[job_id]
        if is_done:
            self.jobs.num_done += 1
            self._account(job, outcome, "done")
            self.jobs.conclude(job)
            self.emit(Event("done", job, text=f"{outcome.seconds:.1f} s"))
        elif outcome.is_lost:
            log.warning("%s was lost: %s", job.label, outcome.error)
            self._account(job, outcome, "lost")
            self.emit(Event("lost", job, text=outcome.error))
            self.jobs.put(job)
        elif self.jobs.may_try_again(job, outcome):
            message = outcome.message(self.folder.path)
            log.warning("%s failed, attempt %d: %s", job.label, self.jobs.failures[job_id], message)
            self.emit(Event("retry", job, text=message))
            self._account(job, outcome, "retry")
            self.jobs.remake_inputs(job, self._all_jobs)  # before `put`, which asks which inputs are missing
            self.jobs.put(job)
        else:
            self._fail(job, outcome)
        self._settle()

    def _all_jobs(self) -> Iterator[Job]:
        for record in self.records:
            yield from jobs_of(record.trial, self.sweep.spec.resources)

    def _account(self, job: Job, outcome: Outcome, state: str) -> None:
        if self.accounts is not None:
            self.accounts.ended(job, outcome, state)

    def _fail(self, job: Job, outcome: Outcome) -> None:
        self._account(job, outcome, "failed")
        message = outcome.message(self.folder.path)
        log.error("%s failed: %s", job.label, message)
        self.emit(Event("failed", job, text=message))
        self.jobs.fail(job, outcome, self.folder.path)
        if self.jobs.has_failed_too_often:
            self.stop("failures")
            log.error("%s: stopping", self.jobs.tally)

    def _settled(self, ref: Ref) -> None:
        """Take note that an artifact is published, or never will be."""
        self._over += self._open_trials.resolve(ref)

    def _ask(self) -> bool:
        """Open an arm for each configuration that the search proposes now; True when there was one."""
        asked = False
        while (proposal := self.search.ask()) is not None:
            asked = True
            arm = Arm(proposal)
            self.arms.append(arm)
            try:
                trials = self._policy.first(proposal)
            except SpecErrors as err:  # each of its values alone is fine
                log.warning("%s cannot run and counts as failed: %s", proposal.arm, err)
                arm.end = "invalid"
                self.search.tell(proposal, None)
                continue
            self._num_open_arms += 1
            self._extend(arm, trials)
        return asked

    def _extend(self, arm: Arm, trials: Iterable[Trial]) -> None:
        """Add trials to an arm, as far as `budget.trials` allows."""
        trials = list(trials)
        most = self.sweep.spec.budget.trials
        if most:
            left = max(0, most - len(self._arm_of))
            if len(trials) > left:
                self._num_cut += len(trials) - left
                # trials that were cut stay open: the policy must not judge the arm by those that are left
                arm.num_open += len(trials) - left
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
            # the trial waits before its jobs are entered: a job whose input has failed is given up at once, and the trial
            # must hear of it
            self._await(place)
            for job in jobs_of(trial, self.sweep.spec.resources):
                self.jobs.enter(job)
            self.folder.write(record)
        return added

    def _await(self, place: int) -> None:
        """Let a trial wait until each of its artifacts is published or has failed."""
        refs = {call.ref for call in self.records[place].calls()}
        if not self._open_trials.add(place, (ref for ref in refs if not self.jobs.is_settled(ref))):
            self._over.append(place)

    def _settle(self) -> None:
        """Close trials that are over, let the policy and the search decide on the arms that are idle, until nothing moves."""
        while True:
            # trials are closed first: only then is an arm idle, and its records say what the policy and the search go by
            over, self._over = self._over, []
            for place in over:
                self._close(place)
            if self.is_draining:
                return  # no new trials; closing the old ones keeps the records true
            has_moved = self._decide()
            if has_moved or self._over:  # new trials may be over at once: all their artifacts are published
                continue
            if not self.jobs.is_idle or self._is_final:
                return
            if self._num_cut:
                self.stop("budget")
            if not self.is_complete:
                return
            self._is_final = True  # set before: testing the finalists comes back here
            self._test_finalists()

    def _decide(self) -> bool:
        """Ask the policy about the arms that have become idle; True when an arm got more trials, ended, or was proposed."""
        if not self._idle_arms:
            return False
        idle, self._idle_arms = self._idle_arms, []
        has_moved = False
        for arm, verdict in self._policy.step(idle, self.arms):
            has_moved = True
            if isinstance(verdict, End):
                arm.end = verdict.reason
                self._num_open_arms -= 1
                spec = self.sweep.spec
                self.search.tell(arm.proposal, worth_at_the_end(arm.trials, spec.objective, self.store, spec.resources))
            else:
                self._extend(arm, verdict)
        # the search is asked last: its next proposals may depend on all results that it has just been told
        return self._ask() or has_moved

    def _test_finalists(self) -> None:
        """Show the test images to the best arms and the controls, once nothing is left that could change the choice."""
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
                    if not self.jobs.is_published(job):
                        self.jobs.put(job)
        self._settle()

    def _close(self, place: int) -> None:
        """Write down the end of a trial of which everything is published or has failed."""
        record = self.records[place]
        refs = [call.ref for call in record.calls()]
        record.errors = {ref[1]: self.jobs.failed[ref] for ref in refs if ref in self.jobs.failed}
        record.attempts = {ref[1]: 1 + self.jobs.failures[ref[1]] for ref in refs if self.jobs.failures[ref[1]]}
        was_open = record.state == "planned"
        record.state = "failed" if record.errors else "done"
        made = [self.store.get(*ref) for ref in refs if self.jobs.has(ref)]
        record.finished = max((artifact.manifest["created"] for artifact in made if artifact), default=time.time())
        self.folder.write(record)
        self.emit(Event("trial", record=record))
        arm = self._arm_of.get(place)
        if arm is not None and was_open and not record.is_finalist:
            arm.num_open -= 1
            if arm.is_idle:
                self._idle_arms.append(arm)
