"""A seed policy that drops a configuration as soon as it cannot be the best, and gives the rest one more seed."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from ddgd_ray.plan.plan import Trial
from ddgd_ray.run.decisions import DropRecord, RaceRecord
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.search.columns import Columns
from ddgd_ray.search.elimination import Drop, Elimination
from ddgd_ray.search.seed_policy import Arm, End, write_decisions
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)


class Race(Columns):
    def __init__(self, sweep: Sweep, store: Store, folder: RunFolder) -> None:
        super().__init__(sweep, store, folder)
        self._elimination = Elimination(self.race, self.num_arms, self.num_seeds - self.race.first_seeds)
        self._drops: list[Drop] = []

    def step(self, idle: Sequence[Arm], arms: Sequence[Arm]) -> Iterator[tuple[Arm, list[Trial] | End]]:
        values = self.column(arms)
        if values is None:
            return
        n = len(next(iter(values.values()), ()))
        dropped = {drop.arm: drop for drop in self._elimination.look(values)} if 0 < n < self.num_seeds else {}
        self._drops += dropped.values()
        left = [name for name in values if name not in dropped]
        is_over = n >= self.num_seeds or len(left) <= self.race.keep
        self._write(left, is_over=is_over)
        for arm in [arm for arm in arms if not arm.end]:
            name = arm.proposal.arm
            if name not in values:
                yield arm, End("failed")
            elif name in dropped:
                drop = dropped[name]
                log.info("race: %s is dropped after %d seeds: %+.4f to %s", name, n, drop.difference, drop.against)
                yield arm, End(f"dropped after {n} seeds")
            else:
                yield arm, End("complete" if n >= self.num_seeds else "won") if is_over else self.trials[name][n : n + 1]

    def _write(self, left: list[str], *, is_over: bool) -> None:
        drops = (replace(drop, difference=self.sign * drop.difference) for drop in self._drops)
        decisions = RaceRecord(
            metric=self.objective.metric,
            direction=self.objective.direction,
            settings=self.race,
            alpha=self._elimination.alpha,
            num_arms=self.num_arms,
            num_looks=self._elimination.num_looks,
            is_over=is_over,
            left=tuple(left),
            failed=tuple(self.failed),
            drops=tuple(DropRecord(**asdict(drop)) for drop in drops),
            full=tuple(self.full),
        )
        write_decisions(self.folder, decisions)
