"""A seed policy that drops a configuration as soon as it cannot be the best, and gives the rest one more seed.

A column is a seed at which all live arms have a value; decisions fall at columns alone, so they depend on results and not on
timing: a second start, or one with an emptied run folder, comes to the same ones. An arm with a failed trial is out.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from ddgd_ray.plan.plan import Trial, plan_arm
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.run.objective import sign_of, value_of
from ddgd_ray.run.records import DropRecord, PlannedRecord, RaceRecord
from ddgd_ray.search.ask_tell import Proposal
from ddgd_ray.search.elimination import Drop, Elimination
from ddgd_ray.search.seed_policy import Arm, End, planned_record, write_decisions
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)


class Race:
    def __init__(self, sweep: Sweep, store: Store, folder: RunFolder) -> None:
        assert sweep.spec.race is not None
        self._sweep, self._store, self._race = sweep, store, sweep.spec.race
        self._num_seeds = len(sweep.spec.seeds.distill)
        self._sign = sign_of(sweep.spec.objective.direction)
        self._trials: dict[str, list[Trial]] = {}
        self._num_arms = len(sweep.spec.grid())
        num_looks = self._num_seeds - self._race.first_seeds
        self._elimination = Elimination(self._race, self._num_arms, num_looks)
        self._folder = folder
        self._full: list[PlannedRecord] = []
        self._drops: list[Drop] = []
        self._failed: list[str] = []

    def first(self, proposal: Proposal) -> list[Trial]:
        self._trials[proposal.arm] = plan_arm(self._sweep, proposal.arm, proposal.params)
        self._full += map(planned_record, self._trials[proposal.arm])
        return self._trials[proposal.arm][: self._race.first_seeds]

    def step(self, idle: Sequence[Arm], arms: Sequence[Arm]) -> Iterator[tuple[Arm, list[Trial] | End]]:
        live = [arm for arm in arms if not arm.end]
        if len(arms) < self._num_arms or not all(arm.is_idle for arm in live):
            return
        values = {arm.proposal.arm: found for arm in live if (found := self._values(arm)) is not None}
        for arm in live:
            if arm.proposal.arm not in values:
                self._failed.append(arm.proposal.arm)
                yield arm, End("failed")
        n = len(next(iter(values.values()), ()))
        dropped = {drop.arm: drop for drop in self._elimination.look(values)} if 0 < n < self._num_seeds else {}
        self._drops += dropped.values()
        left = [name for name in values if name not in dropped]
        is_over = n >= self._num_seeds or len(left) <= self._race.keep
        self._write(left, is_over=is_over)
        for arm in live:
            name = arm.proposal.arm
            if name in dropped:
                drop = dropped[name]
                log.info("race: %s is dropped after %d seeds: %+.4f to %s", name, n, drop.difference, drop.against)
                yield arm, End(f"dropped after {n} seeds")
            elif name in values:
                yield arm, End("complete" if n >= self._num_seeds else "won") if is_over else self._trials[name][n : n + 1]

    def _values(self, arm: Arm) -> list[float] | None:
        """The values of an arm, one a seed in order of the seeds, larger is better; None where one failed or is missing."""
        found, spec = [], self._sweep.spec
        for trial in arm.trials:
            is_done = trial.state == "done"
            value = value_of(trial, spec.objective.metric, self._store, spec.resources) if is_done else None
            if value is None:
                return None
            found.append(self._sign * value)
        return found

    def _write(self, left: list[str], *, is_over: bool) -> None:
        objective = self._sweep.spec.objective
        drops = (replace(drop, difference=self._sign * drop.difference) for drop in self._drops)
        decisions = RaceRecord(
            metric=objective.metric,
            direction=objective.direction,
            settings=self._race,
            alpha=self._elimination.alpha,
            num_arms=self._num_arms,
            num_looks=self._elimination.num_looks,
            is_over=is_over,
            left=tuple(left),
            failed=tuple(self._failed),
            drops=tuple(DropRecord(**asdict(drop)) for drop in drops),
            full=tuple(self._full),
        )
        write_decisions(self._folder, decisions)
