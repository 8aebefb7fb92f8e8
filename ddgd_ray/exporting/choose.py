"""Which set of a run is meant: an arm, a seed, a number of images a class. What is not there is refused with what is."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.exporting.run_data import Record, RunData
from ddgd_ray.spec.load import nearest


@dataclass(frozen=True)
class Choice:
    """A trial of a run."""

    run: RunData
    record: Record

    @property
    def arm(self) -> str:
        return str(self.record["arm"])

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    @property
    def is_best(self) -> bool:
        """Whether the run's objective prefers this arm, whoever chose it."""
        best = self.run.best()
        return best is not None and best[0] == self.arm


def choose(run: RunData, arm: str = "", seed: int | None = None) -> Choice:
    """The named trial, or the best arm's; without a seed the first one whose set is there.

    Raises SpecError for an arm or a seed that the run has not got, StageError while nothing is finished.
    """
    best = run.best()
    if not arm and best is None:
        raise StageError(
            "no arm has a result yet: none is the best one",
            code="not-finished",
            where=str(run.path),
            fix="run the sweep again to continue it, or name an arm: --arm NAME",
        )
    if not arm and best is not None:
        arm = best[0]
    if arm not in run.arms:
        raise SpecError(
            f"there is no arm {arm!r} in this run; there: {listed(run.arms)}",
            code="unknown-arm",
            where=str(run.path),
            fix=f"did you mean {nearest(arm, run.arms)}?",
        )
    records = run.of_arm(arm)
    if seed is not None and seed not in (seeds := [record["seed"] for record in records]):
        raise SpecError(
            f"arm {arm} has no seed {seed}; there: {listed(seeds)}",
            code="unknown-seed",
            where=str(run.path),
            fix=f"e.g. --seed {seeds[0]}",
        )
    wanted = [record for record in records if seed in (None, record["seed"])]
    chosen = next((record for record in wanted if _is_made(record, run)), None)
    if chosen is None:
        raise _not_finished(wanted[0], run)
    return Choice(run, chosen)


def listed(values: Sequence[object], most: int = 20) -> str:
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown or "none"


def _is_made(record: Record, run: RunData) -> bool:
    """A ready-made set is, once its record is."""
    return not record["build"] or run.store.has(*record["build"][-1])


def _not_finished(record: Record, run: RunData) -> StageError:
    why = "; ".join(sorted(set(record["errors"].values())))
    what = f"the set of {record['name']} is not finished, its trial is {record['state']}{f': {why}' if why else ''}"
    return StageError(
        what,
        code="not-finished",
        where=str(run.path),
        fix="run the sweep again to continue it, or choose another --arm or --seed",
    )
