"""Seed policies: which trials a configuration runs at first, and, once these are over, whether it runs more of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ddgd_ray.plan.plan import Trial, plan_arm
from ddgd_ray.run.decisions import PlannedRecord, RaceRecord, RungsRecord, VerdictsRecord
from ddgd_ray.run.folder import RunFolder, TrialProgress
from ddgd_ray.run.reading import SEED_POLICY
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.search.ask_tell import Proposal
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import write_atomically


@dataclass(eq=False)
class Arm:
    """A configuration under way. records: its trials so far. end: why it gets no more of them, "" while it may."""

    proposal: Proposal
    records: list[TrialProgress] = field(default_factory=list)
    num_open: int = 0
    """The number of trials that are not over."""
    end: str = ""

    @property
    def trials(self) -> list[TrialRecord]:
        """The records of the arm's trials, as they stand now."""
        return [progress.record for progress in self.records]

    @property
    def is_idle(self) -> bool:
        """No trial of the arm is under way, and the policy may still give it more."""
        return not self.num_open and not self.end


@dataclass(frozen=True)
class End:
    """No more trials for this arm; reason is a word or two. The search is told what its records say."""

    reason: str = "complete"


class SeedPolicy(Protocol):
    """A rule for the number of trials of each arm.

    It decides by results of the store alone, never by timing: a second start must come to the same decisions.
    """

    def first(self, proposal: Proposal) -> list[Trial]:
        """The trials that a configuration starts with."""

    def step(self, idle: Sequence[Arm], arms: Sequence[Arm]) -> Iterable[tuple[Arm, "list[Trial] | End"]]:
        """More trials, or the end, for some of the arms that are idle; others stay idle.

        idle: arms that have become idle since the last call. arms: all arms in the order of their proposals, ended ones too.
        """


class AllSeeds:
    """Every configuration at every distillation seed, whatever comes out."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def first(self, proposal: Proposal) -> list[Trial]:
        return plan_arm(self._sweep, proposal.arm, proposal.params)

    def step(self, idle: Sequence[Arm], arms: Sequence[Arm]) -> Iterator[tuple[Arm, "list[Trial] | End"]]:
        return ((arm, End()) for arm in idle)


def planned_record(trial: Trial) -> PlannedRecord:
    """What the run keeps of a trial that runs when every configuration gets everything."""
    judged = tuple(item.call.ref for item in trial.evaluators if item.is_main)
    calls = tuple(call.ref for call in trial.calls())
    return PlannedRecord(arm=trial.arm, seed=trial.seed, calls=calls, evaluators=judged)


def write_decisions(folder: RunFolder, decisions: RaceRecord | VerdictsRecord | RungsRecord) -> None:
    """Keep what a race or rungs decided so far; each start of a sweep writes it anew."""
    write_atomically(folder.path / SEED_POLICY, decisions.as_text(sort_keys=False))


def forget_decisions(folder: RunFolder) -> None:
    """Drop what an earlier start of the run decided under `race` or `rungs`, which it has no longer."""
    (folder.path / SEED_POLICY).unlink(missing_ok=True)
