"""Run one sweep: lock, plan, execute what is missing, close the books."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.conduct.conductor import Conductor, Event, StopReason
from ddgd_ray.errors import SpecError
from ddgd_ray.plan.plan import Trial, arm_name, plan_arm, plan_controls
from ddgd_ray.run.accounts import Accounts
from ddgd_ray.run.folder import RunFolder, TrialProgress, open_store
from ddgd_ray.search.ask_tell import GridSearch, Proposal, Proposals, Search
from ddgd_ray.search.race import Race
from ddgd_ray.search.rungs import Rungs, rung_trials
from ddgd_ray.search.seed_policy import AllSeeds, SeedPolicy, forget_decisions
from ddgd_ray.search.until_decided import UntilDecided
from ddgd_ray.spec.search_spec import is_reproducible
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)

PROPOSALS = "proposals.jsonl"

Execute = Callable[[Conductor, Store, ResourcesSpec], None]


@dataclass
class Result:
    """The end of a sweep. causes: {message: exit code} of the jobs that failed themselves."""

    folder: RunFolder
    records: list[TrialProgress]
    causes: dict[str, int]
    stop_reason: StopReason
    """Why the sweep ended before everything was done; "" when it was not stopped."""
    num_ran: int
    note: str = ""
    """Why the search ended before it had tried all that was asked for; "" when it did not."""

    @property
    def failed(self) -> list[TrialProgress]:
        return [record for record in self.records if record.state == "failed"]

    @property
    def exit_code(self) -> int:
        is_nothing_left = bool(self.records) and len(self.failed) == len(self.records)
        if is_nothing_left and set(self.causes.values()) == {5}:
            return 5  # data, weights or storage stand in the way of every trial
        if self.stop_reason == "failures" or is_nothing_left:
            return 4
        if self.stop_reason == "budget":
            return 7
        if self.stop_reason == "interrupted":
            return 75
        return 3 if self.failed else 0


def new_search(sweep: Sweep, folder: RunFolder, store: Store) -> Search:
    """The search of a sweep: its grid, or Optuna with what this run proposed before.

    Raises SpecError when a warm start finds nothing.
    """
    if sweep.spec.search is None:
        return GridSearch(sweep)
    from ddgd_ray.search.optuna import OptunaSearch
    from ddgd_ray.search.warm_start import known_trials

    if not is_reproducible(sweep.spec.objective):
        log.warning("the objective holds measured costs: a run without this store will propose other configurations")
    search = OptunaSearch(sweep, Proposals(folder.path / PROPOSALS), known_trials(sweep, folder, store))
    if search.note:
        log.warning("%s", search.note)
    return search


def new_seed_policy(sweep: Sweep, store: Store, folder: RunFolder) -> SeedPolicy:
    """The policy that the sweep names: a race, rungs, or every seed for everybody."""
    if sweep.spec.race is not None:
        return (UntilDecided if sweep.spec.race.goal == "verdicts" else Race)(sweep, store, folder)
    if sweep.spec.rungs is not None:
        return Rungs(sweep, store, folder)
    forget_decisions(folder)
    return AllSeeds(sweep)


def planned_trials(sweep: Sweep) -> list[Trial]:
    """The trials that are known without a result: of a grid all, though a race may not need them; of rungs the first rung.

    Of a search, which proposes by results, there are the controls and ready-made sets alone.
    """

    def trials(proposal: Proposal) -> list[Trial]:
        if sweep.spec.rungs is not None:
            return rung_trials(sweep, 0, proposal)
        return plan_arm(sweep, proposal.arm, proposal.params)

    proposals = [Proposal(number, arm_name(params), params) for number, params in enumerate(sweep.spec.grid())]
    return plan_controls(sweep) + [trial for proposal in proposals for trial in trials(proposal)]


def run_sweep(
    sweep: Sweep,
    run_dir: Path | str,
    execute: Execute,
    *,
    amend: bool = False,
    force_unlock: bool = False,
    emit: Callable[[Event], None] = lambda event: None,
    on_start: Callable[[Conductor], None] = lambda conductor: None,
) -> Result:
    """The result of executing what the store says is missing.

    The same call continues an interrupted sweep, and with `amend` a larger one.

    on_start gets the conductor before work begins; its `stop` ends the sweep once running jobs have ended.
    """
    store, folder = open_store(run_dir), RunFolder(run_dir, sweep.spec.name)
    store.prepare()
    folder.prepare()
    with folder.lock(force=force_unlock), folder.remote_copy.held():
        folder.withdraw_stop()
        is_new = not folder.is_remembered
        folder.remember(sweep, amend=amend)
        removed = store.clean_scratch()
        if removed:
            log.info("removed %d unfinished folders of processes that are gone", removed)
        try:
            search = new_search(sweep, folder, store)
        except SpecError:
            if is_new:
                folder.forget()  # nothing began: a corrected file may have this name
            raise
        accounts = Accounts(folder.path, sweep.spec.budget, sweep.spec.resources)
        policy = new_seed_policy(sweep, store, folder)
        conductor = Conductor(sweep, store, search, folder, emit, policy, accounts)
        on_start(conductor)
        if not conductor.is_finished:
            with accounts.alive():
                execute(conductor, store, sweep.spec.resources)
        return Result(
            folder,
            conductor.records,
            conductor.jobs.causes,
            stop_reason=conductor.stop_reason or ("" if conductor.is_complete else "interrupted"),
            num_ran=conductor.jobs.num_done,
            note=search.note if conductor.is_complete else "",
        )


def default_run_dir() -> str:
    """The folder or URL for runs: DDGD_RUN_DIR, or `runs`."""
    return os.environ.get("DDGD_RUN_DIR", "runs")
