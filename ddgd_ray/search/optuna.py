"""The door to Optuna. The study lives in memory and is made anew from the results each time: nothing to damage or migrate."""

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from ddgd_ray.run.objective import Worth
from ddgd_ray.search.ask_tell import Drawn, Known, Proposal, Proposals
from ddgd_ray.search.samplers import KEEPS_NOTES, distributions, quiet, sampler_for, suggest
from ddgd_ray.spec.points import Point, draw, identity, points, size
from ddgd_ray.spec.sweep import Sweep

log = logging.getLogger(__name__)

TRIES = 200
"""The number of random draws in place of a repeated proposal, before the points that are left are gone through."""


class OptunaSearch:
    """A search by one of Optuna's samplers.

    Deterministic: proposal k depends on (seed, k) and the results of earlier batches alone, whatever the timing.

    A rerun of the sweep hands out what was proposed before, in the same order; configurations whose stages are published are
    told at once, so the search continues where it was. Asynchronous: at most `parallel` configurations are out, and each
    proposal knows the results that are in by then.

    No configuration is proposed twice: when the sampler repeats one, it is told the result of the first, and a random draw
    takes its place.
    """

    def __init__(self, sweep: Sweep, proposals: Proposals | None = None, known: Sequence[Known] = ()) -> None:
        spec = sweep.spec.search
        assert spec is not None
        quiet()
        self._spec = spec
        self._space = sweep.space
        self._objective = sweep.spec.objective
        self._file = proposals or Proposals(None)
        self._recorded = [drawn for batch in self._file.read() for drawn in batch]
        self.study = optuna.create_study(directions=self._objective.directions)
        self._size = size(self._space)
        self._limit = min(spec.trials, self._size) if self._size is not None else spec.trials
        self._rest: Iterator[Point] = points(self._space)  # of a finite space, for when most of it is used up
        self._numbers: dict[str, int] = {}  # {point: number of the proposal}
        self._batch: list[Proposal] = []
        self._drawn: list[Drawn] = []
        self._scores: dict[int, Worth | None] = {}
        self._trials: dict[int, optuna.Trial] = {}  # proposals that the study knows as under way
        self._repeats: dict[int, list[optuna.Trial]] = {}
        self._late: dict[int, list[Mapping[str, Any]]] = {}  # repeats read from the file, by the number of the replacement
        self._open: dict[int, Drawn] = {}  # proposals whose end the study does not know
        self._num_entered = 0  # proposals that the study knows the end of, in deterministic mode
        self._num_handed = 0
        for one in known:
            self.study.add_trial(self._finished(one.params, one.score))
        if spec.mode == "asynchronous":
            log.warning("search.mode is asynchronous: what is proposed depends on timing and will not be proposed again")

    @property
    def exhausted(self) -> bool:
        return not self._batch and len(self._drawn) >= self._limit

    @property
    def note(self) -> str:
        """Why the search ends before `search.trials`; "" when it does not."""
        if self._size is None or self._size >= self._spec.trials:
            return ""
        return f"the search space is used up: it holds {self._size} configurations, search.trials is {self._spec.trials}"

    def ask(self) -> Proposal | None:
        if self.exhausted:
            return None
        if not self._batch:
            num_out = self._num_handed - len(self._scores)
            if self._spec.mode == "asynchronous":
                if num_out >= self._spec.parallel:
                    return None
                self._propose(1)
            else:
                if num_out:
                    return None  # the batch before is still out
                self._enter_batch()
                self._propose(min(self._spec.parallel, self._limit - len(self._drawn)))
        self._num_handed += 1
        return self._batch.pop(0)

    def tell(self, proposal: Proposal, score: Worth | None) -> None:
        assert proposal.number not in self._scores, "a proposal is told once"
        if score is not None and not all(map(math.isfinite, (*score.values, *score.excess))):
            log.warning("%s counts as failed: its objective is %s", proposal.arm, score.values)
            score = None
        self._scores[proposal.number] = score
        if self._spec.mode == "asynchronous":
            self._enter(proposal.number)
        elif self.exhausted and len(self._scores) == self._num_handed:
            self._enter_batch()  # nothing will be asked any more, and no trial of the study stays under way

    def _enter_batch(self) -> None:
        """Tell the study the results of the last batch, in order of the proposals."""
        for number in range(self._num_entered, len(self._drawn)):
            self._enter(number)
        self._num_entered = len(self._drawn)

    def _enter(self, number: int) -> None:
        score = self._scores[number]
        drawn = self._open.pop(number)
        for params in self._late.pop(number, ()):
            first = self._numbers[identity(params)]
            if first in self._scores:
                self.study.add_trial(self._finished(params, self._scores[first]))
        trial = self._trials.pop(number, None)
        if trial is None:
            self.study.add_trial(self._finished(drawn.params, score))
        else:
            self._finish(trial, score)
        for repeat in self._repeats.pop(number, ()):
            self._finish(repeat, score)

    def _finish(self, trial: optuna.Trial, score: Worth | None) -> None:
        if score is None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        for place, excess in enumerate(score.excess):
            trial.set_constraint(str(place), excess)
        if score.rung is None:
            self.study.tell(trial, list(score.values))
            return
        if len(score.values) == 1:  # TPE ranks those that went out below the complete ones, a higher rung first
            trial.report(score.values[0], score.rung)
        self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _finished(self, params: Mapping[str, Any], score: Worth | None) -> optuna.trial.FrozenTrial:
        states = optuna.trial.TrialState
        state = states.FAIL if score is None else states.COMPLETE if score.rung is None else states.PRUNED
        reached: dict[int, float] = {}
        if score is not None and score.rung is not None and len(score.values) == 1:
            reached = {score.rung: score.values[0]}
        return optuna.trial.create_trial(
            params=dict(params),
            distributions=distributions(params, self._space),
            values=score.values if score and state == states.COMPLETE else None,
            intermediate_values=reached,
            state=state,
            constraints={str(place): excess for place, excess in enumerate(score.excess)} if score else None,
        )

    def _propose(self, count: int) -> None:
        fresh: list[Drawn] = []
        for _ in range(count):
            number = len(self._drawn)
            recorded = self._recorded[number] if number < len(self._recorded) else None
            if recorded is None:
                drawn = self._draw(number)
                fresh.append(drawn)
            else:
                drawn = self._replay(recorded)
            self._drawn.append(drawn)
            self._open[number] = drawn
            self._numbers[identity(drawn.params)] = number
            self._batch.append(Proposal(number, f"trial{number:04d}", drawn.params))
        if fresh:
            self._file.add(fresh)

    def _replay(self, recorded: Drawn) -> Drawn:
        """The proposal as it was recorded; samplers that keep notes in the study are asked again, for the sake of the notes."""
        if self._spec.algorithm in KEEPS_NOTES and recorded.origin in ("sampler", "random"):
            again = self._drawn_anew(recorded.number)
            if identity(again.params) == identity(recorded.params):
                return again
            log.warning("trial%04d stays as it was proposed, under other settings of the search", recorded.number)
            trial = self._trials.pop(recorded.number, None)
            if trial is not None:
                self._finish(trial, None)
            return Drawn(recorded.number, recorded.params, "random")
        if recorded.repeats:
            self._late.setdefault(recorded.number, []).append(recorded.repeats)
        return recorded

    def _draw(self, number: int) -> Drawn:
        """A new proposal: the next point of `search.first` that was not proposed yet, or one of the grid or the sampler."""
        left = (dict(point) for point in self._spec.first if identity(point) not in self._numbers)
        point = next(left, None)
        return Drawn(number, point, "first") if point is not None else self._drawn_anew(number)

    def _drawn_anew(self, number: int) -> Drawn:
        if self._spec.algorithm != "grid":
            self._make_known()
            self.study.sampler = sampler_for(self._spec, number)
            trial = self.study.ask()
            point = suggest(trial, self._space)
            earlier = self._numbers.get(identity(point))
            if earlier is None:
                self._trials[number] = trial
                return Drawn(number, point, "sampler")
            if earlier in self._scores:
                self._finish(trial, self._scores[earlier])
            else:
                self._repeats.setdefault(earlier, []).append(trial)
            return Drawn(number, self._another(number), "random", repeats=point)
        return Drawn(number, self._another(number), "random" if self._spec.algorithm != "grid" else "grid")

    def _another(self, number: int) -> Point:
        """A point that was not proposed: the next of a grid, otherwise a random one. `exhausted` has told that one is left."""
        rng = random.Random(f"{self._spec.seed} {number}")
        for _ in range(0 if self._spec.algorithm == "grid" else TRIES):
            point = draw(self._space, rng)
            if identity(point) not in self._numbers:
                return point
        assert self._size is not None, "an infinite space gives no point twice for ever"
        return next(point for point in self._rest if identity(point) not in self._numbers)

    def _make_known(self) -> None:
        """Show the sampler the points that are under way but did not come from it, so that it keeps away from them."""
        for drawn in self._open.values():
            if drawn.number in self._trials or drawn.number in self._scores:
                continue
            self.study.enqueue_trial(dict(drawn.params))
            self.study.sampler = optuna.samplers.RandomSampler(seed=0)
            trial = self.study.ask()
            suggest(trial, self._space)
            self._trials[drawn.number] = trial
