"""Which set of a run is meant: an arm, a seed, a number of images a class. What is not there is refused with what is."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.spec.load import nearest
from ddgd_ray.storage.store import Artifact


@dataclass(frozen=True)
class Choice:
    """A trial of a run whose set is there."""

    run: Run
    trial: TrialRecord

    @property
    def arm(self) -> str:
        return self.trial.arm

    @property
    def seed(self) -> int:
        return self.trial.seed

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    @property
    def set(self) -> Artifact | None:
        """The artifact that is the trial's set, None for a ready-made one."""
        return self.run.store.get(*self.trial.set) if self.trial.set is not None else None

    @property
    def is_best(self) -> bool:
        """Whether the run's objective prefers this arm, whoever chose it."""
        return self.run.ranking.best == self.arm


def choose(run: Run, arm: str = "", seed: int | None = None) -> Choice:
    """The named trial, or the best arm's; without a seed the first one whose set is there.

    Raises SpecError for an arm or a seed that the run has not got, StageError while nothing is finished.
    """
    arm = arm or run.ranking.best
    if not arm:
        raise StageError(
            "no arm has a result yet: none is the best one",
            code="not-finished",
            where=str(run.path),
            fix="run the sweep again to continue it, or name an arm: --arm NAME",
        )
    if arm not in run.arms:
        raise SpecError(
            f"there is no arm {arm!r} in this run; there: {listed(run.arms)}",
            code="unknown-arm",
            where=str(run.path),
            fix=f"did you mean {nearest(arm, run.arms)}?",
        )
    trials = run.of_arm(arm)
    if seed is not None and seed not in (seeds := [trial.seed for trial in trials]):
        raise SpecError(
            f"arm {arm} has no seed {seed}; there: {listed(seeds)}",
            code="unknown-seed",
            where=str(run.path),
            fix=f"e.g. --seed {seeds[0]}",
        )
    wanted = [trial for trial in trials if seed in (None, trial.seed)]
    chosen = next((trial for trial in wanted if _has_set(trial, run)), None)
    if chosen is None:
        raise _not_finished(wanted[0], run)
    return Choice(run, chosen)


def listed(values: Sequence[object], most: int = 20) -> str:
    """The values in words, `none` without any; of more than `most`, how many are left out."""
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown or "none"


def _has_set(trial: TrialRecord, run: Run) -> bool:
    """Whether the trial's set is there; a ready-made one is, once its record is."""
    return trial.set is None or run.store.has(*trial.set)


def _not_finished(trial: TrialRecord, run: Run) -> StageError:
    return StageError(
        f"the set of {trial.name} is not finished, its trial is {trial.state}{f': {trial.error}' if trial.error else ''}",
        code="not-finished",
        where=str(run.path),
        fix="run the sweep again to continue it, or choose another --arm or --seed",
    )
