"""What policies have in common that decide seed by seed over a grid whose arms are all known at its start.

A column is a seed at which all live arms have a value; decisions fall at columns alone, so they depend on results and not on
timing: a second start, or one with an emptied run folder, comes to the same ones. An arm with a failed trial is out.
"""

from collections.abc import Sequence

from ddgd_ray.plan.plan import Trial, plan_arm
from ddgd_ray.run.decisions import PlannedRecord
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.run.objective import sign_of, value_of
from ddgd_ray.search.ask_tell import Proposal
from ddgd_ray.search.seed_policy import Arm, planned_record
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store


class Columns:
    def __init__(self, sweep: Sweep, store: Store, folder: RunFolder) -> None:
        assert sweep.spec.race is not None
        self.race, self.objective = sweep.spec.race, sweep.spec.objective
        self.num_seeds, self.num_arms = len(sweep.spec.seeds.distill), len(sweep.spec.grid())
        self.sign = sign_of(sweep.spec.objective.direction)
        self.trials: dict[str, list[Trial]] = {}
        self.full: list[PlannedRecord] = []
        """What would run if every configuration had every seed."""
        self.failed: list[str] = []
        self.folder = folder
        self._sweep, self._store = sweep, store

    def first(self, proposal: Proposal) -> list[Trial]:
        """The trials of a configuration at the first seeds of the race."""
        self.trials[proposal.arm] = plan_arm(self._sweep, proposal.arm, proposal.params)
        self.full += map(planned_record, self.trials[proposal.arm])
        return self.trials[proposal.arm][: self.race.first_seeds]

    def column(self, arms: Sequence[Arm]) -> dict[str, list[float]] | None:
        """{live arm: its values so far} when all live arms have come to the same seed, larger is better; None before.

        Live arms that failed are noted in `failed` and are not in it.
        """
        live = [arm for arm in arms if not arm.end]
        if len(arms) < self.num_arms or not all(arm.is_idle for arm in live):
            return None
        values = {arm.proposal.arm: found for arm in live if (found := self._values(arm)) is not None}
        self.failed += [arm.proposal.arm for arm in live if arm.proposal.arm not in values]
        return values

    def _values(self, arm: Arm) -> list[float] | None:
        """The values of an arm, one a seed in order of the seeds; None where one failed or is missing."""
        found, spec = [], self._sweep.spec
        for trial in arm.trials:
            is_done = trial.state == "done"
            value = value_of(trial, spec.objective.metric, self._store, spec.resources) if is_done else None
            if value is None:
                return None
            found.append(self.sign * value)
        return found
