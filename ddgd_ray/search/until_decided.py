"""Seeds until it is decided: a policy that gives seeds to an arm until it has its verdict against the reference.

Verdicts are those of report.verdicts, which hold at whatever seed one looks: each arm is better, worse or equivalent within the
smallest effect that `claims` names, or gets one more seed, up to the last in seeds.distill. The reference runs as long as an
arm needs it. All verdicts are right together with probability `claims.confidence` or more.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

from ddgd_ray.errors import SpecError
from ddgd_ray.plan.plan import Trial, arm_name
from ddgd_ray.report.verdicts import Verdict, alpha_of_pair, judge
from ddgd_ray.run.decisions import VerdictRecord, VerdictsRecord
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.search.columns import Columns
from ddgd_ray.search.seed_policy import Arm, End, write_decisions
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)


def reference_arm(sweep: Sweep) -> str:
    """The arm of the grid that others are judged against: that of `claims`, else that of the preset's values, else the first.

    Raises SpecError when `claims.reference` is no arm of the grid.
    """
    grid = {arm_name(params): params for params in sweep.spec.grid()}
    named = sweep.spec.claims.reference if sweep.spec.claims else ""
    if named and named not in grid:
        raise SpecError(
            f"a race for verdicts judges against an arm of its grid, and {named!r} is none; they are {', '.join(grid)}",
            code="no-reference",
            where=sweep.source.where(("claims", "reference")),
            fix="name one of these, or remove it: then the arm of the preset's own values is the reference",
        )
    preset = sweep.preset_with({})

    def value(path: str) -> object:
        found: object = preset
        for name in path.split("."):
            found = getattr(found, name, None)
        return found

    own = [arm for arm, params in grid.items() if all(value(path) == wanted for path, wanted in params.items())]
    return named or next(iter([*own, *grid]), "")


class UntilDecided(Columns):
    def __init__(self, sweep: Sweep, store: Store, folder: RunFolder) -> None:
        super().__init__(sweep, store, folder)
        assert sweep.spec.claims is not None
        self._claims, self._reference = sweep.spec.claims, reference_arm(sweep)
        self._alpha = alpha_of_pair(self._claims.confidence, self.num_arms - 1)
        self._verdicts: dict[str, Verdict] = {}

    def step(self, idle: Sequence[Arm], arms: Sequence[Arm]) -> Iterator[tuple[Arm, list[Trial] | End]]:
        values = self.column(arms)
        if values is None:
            return
        n = len(next(iter(values.values()), ()))
        if self._reference in values:
            self._judge(values)
        open_pairs = [name for name in values if name != self._reference and not self._is_decided(name)]
        is_over = n >= self.num_seeds or not open_pairs or self._reference not in values
        self._write(is_over=is_over)
        for arm in [arm for arm in arms if not arm.end]:
            name = arm.proposal.arm
            if name not in values:
                yield arm, End("failed")
            elif self._reference not in values:
                yield arm, End("not judged: the reference failed")
            elif self._is_decided(name):
                log.info("race: %s is %s after %d seeds: %+.4f", name, self._said(name), n, self._verdicts[name].difference)
                yield arm, End(f"{self._said(name)} after {n} seeds")
            elif is_over:
                yield arm, End("complete" if name == self._reference else "undecided")
            else:
                yield arm, self.trials[name][n : n + 1]

    def _judge(self, values: Mapping[str, Sequence[float]]) -> None:
        reference = values[self._reference]
        for name, found in values.items():
            if name != self._reference:
                differences = [own - other for own, other in zip(found, reference, strict=True)]
                self._verdicts[name] = judge(differences, self._claims.smallest_effect, self._alpha)

    def _is_decided(self, name: str) -> bool:
        return name in self._verdicts and self._verdicts[name].is_decided

    def _said(self, name: str) -> str:
        return self._verdicts[name].word

    def _write(self, *, is_over: bool) -> None:
        decisions = VerdictsRecord(
            metric=self.objective.metric,
            direction=self.objective.direction,
            claims=self._claims,
            reference=self._reference,
            alpha=self._alpha,
            limit=self.num_seeds,
            is_over=is_over,
            failed=tuple(self.failed),
            verdicts=tuple(self._record(arm, verdict) for arm, verdict in self._verdicts.items()),
            full=tuple(self.full),
        )
        write_decisions(self.folder, decisions)

    def _record(self, arm: str, verdict: Verdict) -> VerdictRecord:
        """In units of the metric, whose smaller values may be the better ones."""
        ends = [self.sign * end for end in (verdict.interval.low, verdict.interval.high)] if verdict.interval else []
        low, high = (min(ends), max(ends)) if ends else (None, None)
        return VerdictRecord(
            arm=arm, word=verdict.word, num_seeds=verdict.n, difference=self.sign * verdict.difference, low=low, high=high
        )
