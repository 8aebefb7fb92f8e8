"""The door to Optuna. The study lives in memory and is made anew from the results each time: nothing to damage or migrate."""

import logging
from typing import Any

import optuna

from ddgd_ray.engine.search import Proposal, Score
from ddgd_ray.spec.space import Choice, FloatRange, IntRange
from ddgd_ray.spec.sweep import Sweep


class OptunaSearch:
    """Batch-synchronous: proposal k depends on (seed, k) and the results of earlier batches alone, whatever the timing.

    A rerun of the sweep asks for the same proposals in the same order; those whose stages are published are told at once, so
    the search continues where it was.
    """

    def __init__(self, sweep: Sweep) -> None:
        spec = sweep.spec.search
        assert spec is not None
        logging.getLogger("optuna").setLevel(logging.WARNING)
        self._spec = spec
        self._space = {name: _distribution(value) for name, value in sweep.space.items()}
        self._directions = [sweep.spec.objective.direction]
        self._told: dict[int, tuple[Proposal, Score | None]] = {}
        self._batch: list[Proposal] = []
        self._num_proposed = 0
        self._num_asked = 0

    @property
    def exhausted(self) -> bool:
        return self._num_asked >= self._spec.trials

    def ask(self) -> Proposal | None:
        if self.exhausted:
            return None
        if not self._batch:
            if len(self._told) < self._num_proposed:
                return None  # the batch before is still out
            self._propose()
        self._num_asked += 1
        return self._batch.pop(0)

    def tell(self, proposal: Proposal, score: Score | None) -> None:
        assert proposal.number not in self._told, "a proposal is told once"
        self._told[proposal.number] = (proposal, score)

    def _propose(self) -> None:
        first = self._num_proposed
        study = optuna.create_study(directions=self._directions, sampler=self._sampler(first))
        for number in sorted(self._told):
            proposal, score = self._told[number]
            state = optuna.trial.TrialState.COMPLETE if score else optuna.trial.TrialState.FAIL
            reached: dict[int, float] = {}
            if score and score.rung is not None:  # TPE ranks those below the complete ones, a higher rung first
                state, reached = optuna.trial.TrialState.PRUNED, {score.rung: score.values[0]}
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(proposal.params),
                    distributions=self._space,
                    values=score.values if score and not reached else None,
                    intermediate_values=reached,
                    state=state,
                )
            )
        for number in range(first, min(first + self._spec.parallel, self._spec.trials)):
            params: dict[str, Any] = study.ask(self._space).params
            self._batch.append(Proposal(number, f"trial{number:04d}", params))
            self._num_proposed += 1

    def _sampler(self, first: int) -> optuna.samplers.BaseSampler:
        seed = self._spec.seed * 1_000_003 + first  # one seed for all batches would propose the first points again
        if self._spec.algorithm == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        startup = max(4, min(10, self._spec.trials // 3))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)


def _distribution(value: Choice | IntRange | FloatRange) -> optuna.distributions.BaseDistribution:
    if isinstance(value, Choice):
        return optuna.distributions.CategoricalDistribution(value.values)
    if isinstance(value, IntRange):
        return optuna.distributions.IntDistribution(value.low, value.high, log=value.log)
    return optuna.distributions.FloatDistribution(value.low, value.high, log=value.log)
