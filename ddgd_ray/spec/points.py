"""The points of a search space: {dotted path: value} for the fields that are searched there, parents before children."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddgd_ray.spec.base import canonical_json
from ddgd_ray.spec.space import AnyDistribution, Choice, FloatRange, Space

Point = dict[str, Any]


def is_active(distribution: AnyDistribution, point: Mapping[str, Any]) -> bool:
    """Whether the field is searched, given the values of its parents."""
    conditions = distribution.when.items()
    return all(parent in point and repr(point[parent]) in map(repr, values) for parent, values in conditions)


def compose(space: Space, value_of: Callable[[str, AnyDistribution], Any]) -> Point:
    """The point that these values make, each asked for if its field is active, parents first."""
    point: Point = {}
    for name, distribution in space.items():
        if is_active(distribution, point):
            point[name] = value_of(name, distribution)
    return point


def draw(space: Space, rng: random.Random) -> Point:
    """A random point: choices uniform, ranges uniform or, with `log`, uniform in the logarithm."""
    return compose(space, lambda name, distribution: _draw_value(distribution, rng))


def _draw_value(distribution: AnyDistribution, rng: random.Random) -> Any:
    if isinstance(distribution, Choice) or (isinstance(distribution, FloatRange) and distribution.step):
        return rng.choice(distribution.values)
    if isinstance(distribution, FloatRange):
        if not distribution.log:
            return rng.uniform(distribution.low, distribution.high)
        drawn = math.exp(rng.uniform(math.log(distribution.low), math.log(distribution.high)))
        return min(max(drawn, distribution.low), distribution.high)
    if not distribution.log:
        return rng.randrange(distribution.low, distribution.high + 1, distribution.step or 1)
    low, high = distribution.low - 0.5, distribution.high + 0.5  # so that the ends are as likely as their share
    drawn = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    return min(max(drawn, distribution.low), distribution.high)


def why_not(point: Mapping[str, Any], space: Space) -> str:
    """What keeps a point out of the space, "" when it lies in it."""
    unknown = [name for name in point if name not in space]
    if unknown:
        return f"{unknown[0]} is no field of the space"
    missing: list[str] = []
    active = compose(space, lambda name, distribution: point[name] if name in point else missing.append(name))
    if missing:
        return f"{missing[0]} is missing"
    idle = [name for name in point if name not in active]
    if idle:
        return f"{idle[0]} is not searched where {_conditions(space[idle[0]], point)}"
    outside = [name for name, value in point.items() if not space[name].has(value)]
    if outside:
        return f"{outside[0]}: {point[outside[0]]!r} lies outside the space"
    return ""


def _conditions(distribution: AnyDistribution, point: Mapping[str, Any]) -> str:
    return ", ".join(f"{parent} is {point.get(parent, 'not searched')}" for parent in distribution.when)


def points(space: Space) -> Iterator[Point]:
    """Every point of a finite space, the last field fastest."""
    yield from _points(list(space.items()), {})


def _points(left: list[tuple[str, AnyDistribution]], point: Point) -> Iterator[Point]:
    if not left:
        yield dict(point)
        return
    (name, distribution), *rest = left
    if not is_active(distribution, point):
        yield from _points(rest, point)
        return
    for value in distribution.values:  # none of a range without an end
        yield from _points(rest, point | {name: value})


def size(space: Space) -> int | None:
    """How many points there are; None: infinitely many.

    Only fields that others depend on are gone through; the rest multiplies.
    """
    if any(distribution.size is None for distribution in space.values()):
        return None
    deciding = {parent for distribution in space.values() for parent in distribution.when}
    total = 0
    for decided in points({name: space[name] for name in space if name in deciding}):
        free = [d for name, d in space.items() if name not in deciding and is_active(d, decided)]
        total += math.prod(distribution.size or 0 for distribution in free)
    return total


def identity(point: Mapping[str, Any]) -> str:
    """One text for equal points, whatever their order; 1 and 1.0 are equal."""
    return canonical_json({name: _plain(value) for name, value in point.items()})


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
