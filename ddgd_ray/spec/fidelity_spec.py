"""The sections `race` and `rungs` of a sweep file: where seeds and steps are saved, and what may be lost by it."""

from typing import Literal

from pydantic import Field

from ddgd_ray.spec.base import Spec, Values


class RaceSpec(Spec):
    """Seeds go to the configurations that may still be the best; search/elimination.py has the test."""

    goal: Literal["best", "verdicts"] = "best"
    """best: drop who cannot win. verdicts: seeds until every arm has its verdict against the reference of `claims`, which says
    how sure and how large; of the fields below only first_seeds is for this goal."""
    first_seeds: int = Field(3, ge=2)
    """Distillation seeds that every configuration gets; from then on the others are decided one at a time."""
    confidence: float = Field(0.95, ge=0.5, lt=1)
    """Least probability that no configuration is dropped wrongly, over all looks and opponents of the race together."""
    min_effect: float = Field(0.0, ge=0)
    """In units of the metric: a configuration is dropped once it is shown not to be better than the incumbent by as much.
    0: once it is shown to be worse."""
    pool_variance: bool = False
    """Estimate one spread from all configurations of a look. Decides with far fewer seeds; holds its rate only where the spread
    is about the same in all of them."""
    keep: int = Field(1, ge=1)
    """The race ends when no more than these are left."""


class RungsSpec(Spec):
    """Successive halving over whole settings: cheap for all, the full one for the best."""

    settings: tuple[dict[str, Values], ...] = Field(min_length=2)
    """One mapping a rung, cheapest first: fields of the preset, `seeds.*` or `evaluate.*` by dotted path. The last is {}."""
    eta: int = Field(3, ge=2)
    """The best 1/eta of a rung, rounded up, go on to the next."""
