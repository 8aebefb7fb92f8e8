"""One sentence that a reader can quote, true by the numbers behind it: what the page of a run begins with."""

import math
from collections.abc import Sequence

from ddgd_ray.report.effects import Effect
from ddgd_ray.report.factorial import effect_name, grid_effects, short_field
from ddgd_ray.report.judged import differences_to, reach_of, reference_of, tally, verdicts_of
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, common_metric, p_text
from ddgd_ray.report.verdicts import alpha_of_pair, judge
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, by_arm
from ddgd_ray.spec.claims_spec import ClaimsSpec


def headline(run: Run) -> str:
    """Under the main protocol, at the largest sets: effects of a grid, then the arms against their reference.

    "" where nothing is compared. Differences of accuracies are given in points, hundredths.
    """
    rows = at_ipc(run.main_rows, run.ipc)
    metric = common_metric(rows)
    of_grid = _of_effects(grid_effects(rows, run.spec.vary, run.default, metric))
    of_arms = _of_arms(rows, metric, run.spec.claims)
    said = "; ".join(part for part in (of_grid, of_arms) if part)
    return f"{run.spec.preset} at {run.ipc} images a class, {METRIC_TITLES[metric]}: {said}." if said else ""


def _of_effects(found: Sequence[Effect]) -> str:
    """The level that matters most, or that none does; and within what bounds the levels lie that are not told apart."""
    tried = [effect for effect in found if effect.kind == "default"] or [one for one in found if one.kind == "mean"]
    if not tried:
        return ""
    told = [effect for effect in tried if effect.is_distinguishable]
    num_left, num_seeds = len(tried) - len(told), max(len(effect.by_seed) for effect in tried)
    one, several = ("its default", "their defaults") if tried[0].kind == "default" else ("the mean", "the means")
    bound = max((effect.within(0.05 / len(tried)) for effect in tried if effect not in told), default=0.0)
    within = f"within {points_up(bound)} points of {several if num_left > 1 else one} (over blocks, 95 % together)"
    if not told:
        fields = " or ".join(dict.fromkeys(short_field(effect.factors[0]) for effect in tried))
        least = min(effect.p_holm for effect in tried)
        text = f"no level of {fields} is told apart from {one}"
        text += f" (n = {num_seeds} seeds, least p {p_text(least)} by Holm over {len(tried)})"
        return f"{text}, and all lie {within}" if math.isfinite(bound) else text
    text = _told(max(told, key=lambda effect: abs(effect.difference)), len(tried), num_seeds)
    text += f", and {len(told) - 1} more {'level differs' if len(told) == 2 else 'levels differ'}" if len(told) > 1 else ""
    others = "the other level lies" if num_left == 1 else f"the other {num_left} levels lie"
    return f"{text}; {others} {within}" if num_left and math.isfinite(bound) else text


def points_up(bound: float) -> str:
    """A bound in points with one digit, rounded up so that it stays one."""
    return f"{math.ceil(round(1000 * bound, 6)) / 10:.1f}" if math.isfinite(bound) else "?"


def _told(effect: Effect, num_tried: int, num_seeds: int) -> str:
    against = f"in place of {effect.against}" if effect.kind == "default" else "against the mean"
    interval = (
        f" (95 % interval {100 * effect.interval.low:+.2f} to {100 * effect.interval.high:+.2f})" if effect.interval else ""
    )
    return (
        f"{effect_name(effect)} {against} makes {100 * effect.difference:+.2f} points{interval}, {effect.num_blocks} blocks of "
        f"{num_seeds} seeds, p {p_text(effect.p)}, by Holm over {num_tried} levels {p_text(effect.p_holm)}"
    )


def _of_arms(rows: Sequence[Row], metric: str, claims: ClaimsSpec | None) -> str:
    """Verdicts where the sweep file has `claims`; else how far any arm may be from the reference, or what could be told."""
    arms, reference = by_arm(rows), reference_of(rows, claims)
    differences = differences_to(arms, reference, metric)
    if not differences:
        return ""
    n = max(map(len, differences.values()))
    if claims is not None:
        said = tally(verdicts_of(arms, reference, metric, claims))
        within = f"{100 * claims.smallest_effect:g} point{'' if claims.smallest_effect == 0.01 else 's'}"
        return (
            f"of {len(differences)} arms against {reference} {said} (within {within}; all at {claims.confidence:.0%}, n = {n})"
        )
    alpha = alpha_of_pair(0.95, len(differences))
    bounds = {arm: judge(found, 1.0, alpha).within for arm, found in differences.items()}
    near = {arm: bound for arm, bound in bounds.items() if bound < 0.02}
    if near:
        beside = "every arm" if len(near) == len(bounds) else f"{len(near)} of {len(bounds)} arms"
        return f"{beside} within {points_up(max(near.values()))} points of {reference} (all at 95 %, n = {n})"
    reach = reach_of(differences)
    told = f"{n} seeds tell two arms apart from {100 * reach.told:.1f} points on (80 % power)" if reach else ""
    return told
