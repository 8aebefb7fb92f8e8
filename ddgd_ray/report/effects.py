"""Effects in a factorial experiment whose blocks are seeds: main effects of levels, two-way interactions, parts of a method.

A grid of two or more varied fields at the same seeds is a designed experiment. All cells that share a level speak about it, and
cells of one seed share that seed's luck, so nine arms at three seeds tell more of a level than any one arm tells of itself.

Each effect is a mean over blocks of a contrast made inside the block. Blocks that lack a value the contrast needs are left
out, so a grid with failed cells still has effects. What each kind compares, and the null hypothesis of its p, are in NULLS.

Two ways to look at the same contrast stand side by side, because a block is less than a seed. One seed may favour a level in
all its blocks alike; then blocks of one seed are no independent witnesses, and p within blocks is too small. The interval over
seeds takes each seed's mean as one value and does not depend on that. An effect is told apart from zero only where both say
so.

legend: S seeds, L levels of a factor, B blocks, I and J levels of two factors
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from ddgd_ray.report.blocks import permutation_p
from ddgd_ray.report.statistics import ALPHA, Interval, holm

Kind = Literal["mean", "default", "interaction", "part"]

NULLS: Mapping[Kind, str] = {
    "mean": "within a block (one seed and one level of every other factor), which level has which value is chance: the factor "
    "does nothing",
    "default": "within a block (one seed and one level of every other factor), which of the two levels has which value is "
    "chance: the two do the same",
    "interaction": "within a block (one seed and one level of every further factor), what is left of the plane after both "
    "factors' main effects could stand in any order of rows and of columns: the two factors add up",
    "part": "at a seed, which of the two arms has which value is chance: switching the part off does nothing",
}


@dataclass(frozen=True)
class Effect:
    """Of one level, of two levels together, or of one part of a method.

    against: the level that it is compared with; None for the mean over the factor's levels and for interactions.
    error: standard error over blocks, by the residual spread of the whole experiment, with `freedom` degrees of freedom; nan
    and 0 where there are too few values. by_seed: a value for each seed. p: within blocks. p_holm: corrected over the effects
    of its kind.
    """

    kind: Kind
    factors: tuple[str, ...]
    levels: tuple[Any, ...]
    against: Any
    difference: float
    num_blocks: int
    by_seed: Mapping[int, float]
    error: float
    freedom: int
    p: float
    is_exact: bool
    hypothesis: tuple[Any, ...]
    """The same for effects that are one another's mirror image, such as those of a factor with two levels: tested once."""
    p_holm: float = 1.0

    @property
    def interval(self) -> Interval | None:
        """95 %, over blocks; None with too few values."""
        return _around(self.difference, self.error, self.freedom) if self.freedom else None

    def within(self, alpha: float) -> float:
        """The least bound on its size by two one-sided t tests over blocks, each at `alpha`; inf with too few values."""
        if not self.freedom:
            return math.inf
        return abs(self.difference) + _around(0.0, self.error, self.freedom, 1 - 2 * alpha).high

    @property
    def seed_interval(self) -> Interval | None:
        """95 % t interval of the seeds' means."""
        return t_interval(list(self.by_seed.values()))

    @property
    def is_distinguishable(self) -> bool:
        """Corrected p below 0.05 within blocks, and the seeds' own interval leaves out zero."""
        seeds = self.seed_interval
        return self.p_holm < ALPHA and seeds is not None and (seeds.low > 0 or seeds.high < 0)


def t_interval(values: Sequence[float], confidence: float = 1 - ALPHA) -> Interval | None:
    """Of the mean of independent values with a normal distribution; None below two."""
    if len(values) < 2:
        return None
    import numpy as np

    return _around(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)), len(values) - 1, confidence)


def _around(mean: float, error: float, freedom: int, confidence: float = 1 - ALPHA) -> Interval:
    from scipy.special import stdtrit

    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Interval(mean - reach, mean + reach)


def effects(
    values: Any, seeds: Sequence[int], factors: Mapping[str, Sequence[Any]], defaults: Mapping[str, Any] | None = None
) -> list[Effect]:
    """Main effects against the factor's mean, then against its default level, then two-way interactions; Holm within each kind.

    values: (S, L of the first factor, L of the second, ...), NaN where nothing was measured. factors: {name: its levels}, in
    the order of the axes. defaults: {name: level} where a factor has one of its levels as its default. A level without any
    value takes no part; effects for which no block is complete are left out.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    assert values.shape == (len(seeds), *map(len, factors.values())), f"{values.shape} values, {len(seeds)} seeds, {factors}"
    experiment = _Experiment(*_measured(values, factors), tuple(seeds))
    found: list[Effect] = []
    for name in factors:
        found += experiment.against_mean(name)
    for name, default in (defaults or {}).items():
        found += experiment.against_default(name, default)
    for first, second in combinations(factors, 2):
        found += experiment.interactions(first, second)
    return corrected([effect for effect in found if effect.num_blocks])


def corrected(found: Sequence[Effect]) -> list[Effect]:
    """With Holm's p over the hypotheses of each kind, one that several effects share counted once."""
    result = list(found)
    for kind in dict.fromkeys(effect.kind for effect in found):
        raw = {effect.hypothesis: effect.p for effect in found if effect.kind == kind}
        adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
        result = [replace(one, p_holm=adjusted[one.hypothesis]) if one.kind == kind else one for one in result]
    return result


def residual_spread(values_S: Any) -> tuple[float, int]:
    """Standard deviation and degrees of freedom of what a mean for each cell and a shift for each seed leave over.

    On a full grid the residual of the analysis of variance in randomized blocks, (S - 1)(cells - 1) degrees of freedom. With
    fewer than one degree, (nan, 0).
    """
    import numpy as np

    flat = np.asarray(values_S, dtype=float).reshape(len(values_S), -1)
    seed, cell = np.nonzero(np.isfinite(flat))
    design = np.hstack([np.eye(flat.shape[0])[seed], np.eye(flat.shape[1])[cell]])
    solution, _, rank, _ = np.linalg.lstsq(design, flat[seed, cell], rcond=None)
    freedom = len(seed) - int(rank)
    if freedom < 1:
        return math.nan, 0
    return float(np.sqrt(np.sum((flat[seed, cell] - design @ solution) ** 2) / freedom)), freedom


def _measured(values: Any, factors: Mapping[str, Sequence[Any]]) -> tuple[Any, dict[str, list[Any]]]:
    """Without the levels that have no value at all."""
    import numpy as np

    left: dict[str, list[Any]] = {}
    for axis, (name, levels) in enumerate(factors.items(), start=1):
        others = tuple(other for other in range(values.ndim) if other != axis)
        places = np.flatnonzero(np.isfinite(values).any(axis=others)).tolist()
        values = np.take(values, places, axis=axis)
        left[name] = [levels[place] for place in places]
    return values, left


@dataclass(frozen=True)
class _Experiment:
    values: Any
    factors: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]

    @cached_property
    def spread(self) -> tuple[float, int]:
        return residual_spread(self.values)

    def axis(self, name: str) -> int:
        return 1 + list(self.factors).index(name)

    def against_mean(self, name: str) -> list[Effect]:
        levels = self.factors[name]
        if len(levels) < 2:
            return []
        rows_BL, seed_of = self.blocks(self.values, self.axis(name))
        deviations = rows_BL - rows_BL.mean(axis=1, keepdims=True)
        found = []
        for place, level in enumerate(levels):
            hypothesis = (name,) if len(levels) == 2 else (name, place)  # of two levels one is the other with its sign turned
            label = _Label("mean", (name,), (level,), None, hypothesis)
            found.append(self.effect(label, deviations[:, place], deviations, seed_of, 1 - 1 / len(levels)))
        return found

    def against_default(self, name: str, default: Any) -> list[Effect]:
        import numpy as np

        levels, axis, found = list(self.factors[name]), self.axis(name), []
        if default not in levels:
            return []
        for place, level in enumerate(levels):
            if level == default:
                continue
            pair = np.take(self.values, [place, levels.index(default)], axis=axis)
            rows_B2, seed_of = self.blocks(pair, axis)
            differences = rows_B2[:, 0] - rows_B2[:, 1]
            label = _Label("default", (name,), (level,), default, (name, place))
            found.append(self.effect(label, differences, np.stack([differences, -differences], axis=1), seed_of, 2.0))
        return found

    def interactions(self, first: str, second: str) -> list[Effect]:
        """What a cell of two levels has beyond the sum of their main effects, for every pair of levels."""
        rows, columns = self.factors[first], self.factors[second]
        if min(len(rows), len(columns)) < 2:
            return []
        planes_BIJ, seed_of = self.blocks(self.values, self.axis(first), self.axis(second))
        rest = planes_BIJ - planes_BIJ.mean(axis=2, keepdims=True) - planes_BIJ.mean(axis=1, keepdims=True)
        rest = rest + planes_BIJ.mean(axis=(1, 2), keepdims=True)
        # Where nothing but chance is left, a block's rows and columns can be put in any order: a cell gets any of the numbers.
        choices = rest.reshape(len(rest), len(rows) * len(columns))
        size = (1 - 1 / len(rows)) * (1 - 1 / len(columns))
        found = []
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                hypothesis = (first, second, i if len(rows) > 2 else 0, j if len(columns) > 2 else 0)
                label = _Label("interaction", (first, second), (row, column), None, hypothesis)
                found.append(self.effect(label, rest[:, i, j], choices, seed_of, size))
        return found

    def blocks(self, values: Any, *axes: int) -> tuple[Any, Any]:
        """Complete blocks, (B, levels along `axes`), and the seed of each, (B,)."""
        import numpy as np

        moved = np.moveaxis(values, axes, range(-len(axes), 0))
        inner = moved.shape[-len(axes) :]
        rows = moved.reshape(-1, *inner)
        is_whole = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        return rows[is_whole], np.repeat(np.asarray(self.seeds), len(rows) // len(self.seeds))[is_whole]

    def effect(self, label: "_Label", values_B: Any, choices_BK: Any, seed_of: Any, size: float) -> Effect:
        """size: variance of one block's contrast in units of the residual variance."""
        num_blocks = len(values_B)
        mean = float(values_B.mean()) if num_blocks else math.nan
        std, freedom = self.spread
        error = std * math.sqrt(size / num_blocks) if num_blocks else math.nan
        by_seed = {seed: float(values_B[seed_of == seed].mean()) for seed in dict.fromkeys(seed_of.tolist())}
        p, is_exact = permutation_p(values_B, choices_BK)
        named = (label.kind, label.factors, label.levels, label.against)
        return Effect(*named, mean, num_blocks, by_seed, error, freedom, p, is_exact, label.hypothesis)


@dataclass(frozen=True)
class _Label:
    kind: Kind
    factors: tuple[str, ...]
    levels: tuple[Any, ...]
    against: Any
    hypothesis: tuple[Any, ...]


def parts_of_method(differences: Mapping[str, Mapping[int, float]]) -> list[Effect]:
    """What each part adds: the full method minus the same with the part switched off, a block being a seed.

    differences: {part: {seed: full - without, at seeds that both have}}. Parts without a seed are left out.
    """
    import numpy as np

    found = []
    for part, by_seed in differences.items():
        values = np.array(list(by_seed.values()))
        if not len(values):
            continue
        p, is_exact = permutation_p(values, np.stack([values, -values], axis=1))
        freedom = len(values) - 1
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if freedom else math.nan
        mean = float(values.mean())
        found.append(Effect("part", (part,), (), None, mean, len(values), dict(by_seed), error, freedom, p, is_exact, (part,)))
    return corrected(found)
