"""Successive halving across stages (Jamieson & Talwalkar 2016): all at a cheap setting, the best 1/eta at the next one.

The arms that are open together are one bracket: all of a grid, or the batch of a search. A rung is decided when all its arms
have their results at it: decisions depend on results and not on timing. Equal stages of two rungs run once; a fine-tuning of
more steps is another artifact, and does not go on from one of fewer. The search is told the rung of an arm that went out early.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ddgd_ray.plan.plan import Trial, plan_arm
from ddgd_ray.run.decisions import PlannedRecord, RungDecision, RungsRecord
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.run.objective import Worth, in_order, worth_at_the_end
from ddgd_ray.search.ask_tell import Proposal
from ddgd_ray.search.seed_policy import Arm, End, planned_record, write_decisions
from ddgd_ray.spec.fidelity import at_rung
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)


def rung_trials(sweep: Sweep, rung: int, proposal: Proposal) -> list[Trial]:
    """The trials of one configuration at a rung; those of the last carry no mark."""
    assert sweep.spec.rungs is not None
    if rung == len(sweep.spec.rungs.settings) - 1:
        return plan_arm(sweep, proposal.arm, proposal.params)
    return [replace(trial, rung=rung) for trial in plan_arm(at_rung(sweep, rung), proposal.arm, proposal.params)]


class Rungs:
    def __init__(self, sweep: Sweep, store: Store, folder: RunFolder) -> None:
        assert sweep.spec.rungs is not None
        self._sweep, self._store, self._spec = sweep, store, sweep.spec.rungs
        self._last = len(self._spec.settings) - 1
        self._rung: dict[str, int] = {}
        self._folder = folder
        self._full: list[PlannedRecord] = []
        self._decisions: list[RungDecision] = []

    def first(self, proposal: Proposal) -> list[Trial]:
        self._rung[proposal.arm] = 0
        self._full += map(planned_record, plan_arm(self._sweep, proposal.arm, proposal.params))
        return rung_trials(self._sweep, 0, proposal)

    def step(self, idle: Sequence[Arm], arms: Sequence[Arm]) -> Iterator[tuple[Arm, list[Trial] | End]]:
        live = [arm for arm in arms if not arm.end]
        if not all(arm.is_idle for arm in live):
            return
        verdicts: list[tuple[Arm, list[Trial] | End]] = []
        for rung in sorted({self._rung[arm.proposal.arm] for arm in live}):
            verdicts += self._decide(rung, [arm for arm in live if self._rung[arm.proposal.arm] == rung])
        objective = self._sweep.spec.objective
        decisions = RungsRecord(
            metric=objective.metric,
            direction=objective.direction,
            settings=self._spec,
            decisions=tuple(self._decisions),
            full=tuple(self._full),
        )
        write_decisions(self._folder, decisions)
        yield from verdicts

    def _decide(self, rung: int, bracket: list[Arm]) -> Iterator[tuple[Arm, list[Trial] | End]]:
        """The verdicts on the arms of a bracket: the best 1/eta go on, earlier proposals first among equals; who failed is out.

        With several objectives front after front, by the first of them within one; who breaks a constraint comes last.
        """
        spec = self._sweep.spec
        worths: dict[str, Worth] = {}
        for arm in bracket:
            worth = worth_at_the_end(arm.trials, spec.objective, self._store, spec.resources)
            if worth is not None:
                worths[arm.proposal.arm] = worth
        ranked = in_order(worths, spec.objective.directions)
        going_on = set(ranked[: math.ceil(len(bracket) / self._spec.eta)]) if rung < self._last else set()
        for arm in bracket:
            name = arm.proposal.arm
            outcome = "goes on" if name in going_on else "failed" if name not in worths else "out"
            if rung == self._last and name in worths:
                outcome = "complete"
            place = ranked.index(name) + 1 if name in worths else 0
            value = worths[name].values[0] if name in worths else None
            decision = RungDecision(rung=rung, arm=name, value=value, place=place, of=len(bracket), outcome=outcome)
            self._decisions.append(decision)
            if name in going_on:
                self._rung[name] = rung + 1
                yield arm, rung_trials(self._sweep, rung + 1, arm.proposal)
            else:
                log.info("rungs: %s ends at rung %d: %s", name, rung, outcome)
                yield arm, End(outcome if rung == self._last else f"{outcome} at rung {rung}")
