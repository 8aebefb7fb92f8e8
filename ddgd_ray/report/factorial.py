"""The effects of a grid of two or more varied fields, as tables: from the rows of a run to report.effects and back.

A table holds rows of one protocol and one number of images a class; the caller groups.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddgd_ray.report.cells import CellWriter
from ddgd_ray.report.effects import NULLS, Effect, effects, parts_of_method
from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.report.statistics import ALPHA
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, common_metric, interval_text, p_text, under
from ddgd_ray.report.verdicts import Verdict, alpha_of_pair, judge
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, paired_differences, protocols_of, seed_means
from ddgd_ray.spec.claims_spec import ClaimsSpec
from ddgd_ray.spec.sweep_spec import FULL, PARTS, WITHOUT

MAX_CELLS = 400
"""Cells of a grid whose effects are worth a table; a larger one has thousands of interactions."""
TITLES = {
    "mean": "Main effects of levels, against the mean over the field's levels",
    "default": "Main effects of levels, against the default level",
    "interaction": "Interactions of two levels: what the pair has beyond both main effects",
    "part": "Parts of the method: the whole of it minus the same without the part",
}


def grid_factors(vary: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """{field: its levels} of a grid of two or more fields that vary; empty for others and for very large ones."""
    factors = {name: list(levels) for name, levels in vary.items() if len(levels) > 1}
    num_cells = math.prod(len(levels) for levels in factors.values())
    return factors if len(factors) > 1 and num_cells <= MAX_CELLS else {}


def grid_effects(
    rows: Sequence[Row], vary: Mapping[str, Sequence[Any]], default_of: Callable[[str], Any], metric: str
) -> list[Effect]:
    """Effects on `metric` over the cells of the grid; none where fewer than two fields vary. default_of: a preset's value."""
    import numpy as np

    factors = grid_factors(vary)
    cells: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        if not row.is_control and factors.keys() <= row.params.keys():
            place = tuple(_place(levels, row.params[name]) for name, levels in factors.items())
            if -1 not in place:
                cells.setdefault(place, []).append(row)
    means = {place: seed_means(found, metric) for place, found in cells.items()}
    seeds = sorted({seed for of_cell in means.values() for seed in of_cell})
    if not factors or not seeds:
        return []
    values = np.full((len(seeds), *map(len, factors.values())), np.nan)
    for place, of_cell in means.items():
        for seed, value in of_cell.items():
            values[(seeds.index(seed), *place)] = value
    return effects(values, seeds, factors, {name: default_of(name) for name in factors})


def _place(levels: Sequence[Any], value: Any) -> int:
    """-1 for a value that the sweep file does not list: a grid that shrank."""
    return next((place for place, level in enumerate(levels) if level == value), -1)


def effect_name(effect: Effect) -> str:
    """`memory_real.pop max_similarity`, and both of a pair: fields without the stage that they belong to."""
    if effect.kind == "part":
        return effect.factors[0]
    named = zip(effect.factors, effect.levels, strict=True)
    return ", ".join(f"{short_field(factor)} {level}" for factor, level in named)


def short_field(path: str) -> str:
    return path.partition(".")[2] or path


def effect_verdicts(found: Sequence[Effect], claims: ClaimsSpec | None) -> dict[tuple[Any, ...], Verdict]:
    """{hypothesis: verdict} of the effects of one table, one value a seed; empty without `claims`."""
    if claims is None:
        return {}
    alpha = alpha_of_pair(claims.confidence, len(found))
    return {one.hypothesis: judge(list(one.by_seed.values()), claims.smallest_effect, alpha) for one in found}


def effect_tables(
    rows: Sequence[Row],
    vary: Mapping[str, Sequence[Any]],
    default_of: Callable[[str], Any],
    claims: ClaimsSpec | None = None,
) -> list[Table]:
    """One table of each kind of effect that the grid has, or that of a method's parts; none for another sweep."""
    metric = common_metric(rows)
    found = [*grid_effects(rows, vary, default_of, metric), *parts_effects(rows, metric)]
    tables = []
    for kind, title in TITLES.items():
        of_kind = [effect for effect in found if effect.kind == kind]
        if of_kind:
            tables.append(_table(f"{title}, {METRIC_TITLES[metric]}, {under(rows)}", of_kind, claims))
    return tables


def is_of_effects(table: Table) -> bool:
    """Whether a table of the report is one of effects or parts."""
    return table.title.startswith(tuple(TITLES.values()))


def parts_effects(rows: Sequence[Row], metric: str) -> list[Effect]:
    """What each part adds to a method; none for a sweep without `parts`."""
    arms: dict[str, list[Row]] = {}
    for row in rows:
        if PARTS in row.params:
            arms.setdefault(str(row.params[PARTS]), []).append(row)
    full = arms.pop(FULL, [])
    lost = {arm.removeprefix(WITHOUT): paired_differences(full, found, metric) for arm, found in arms.items()}
    return parts_of_method(lost)


def effects_csv(run: Run) -> str:
    """A line for each effect under each protocol and number of images a class; the head alone where there is none."""
    text = io.StringIO()
    writer = CellWriter(text)
    head = "protocol,ipc,metric,kind,effect,against,difference,low,high,blocks,p,p_holm,is_exact,seed_low,seed_high,seeds,told"
    writer.writerow([*head.split(","), "verdict"])
    for protocol in protocols_of(run.rows):
        for ipc in run.spec.evaluate.ipc:
            rows = [row for row in at_ipc(run.rows, ipc) if row.protocol == protocol]
            metric = common_metric(rows)
            found = [*grid_effects(rows, run.spec.vary, run.default, metric), *parts_effects(rows, metric)]
            for kind in TITLES:
                of_kind = [effect for effect in found if effect.kind == kind]
                verdicts = effect_verdicts(of_kind, run.spec.claims) if kind in ("default", "part") else {}
                for one in of_kind:
                    word = verdicts[one.hypothesis].word if verdicts else ""
                    writer.writerow([protocol, ipc, metric, kind, *_values(one), word])
    return text.getvalue()


def _values(effect: Effect) -> list[Any]:
    bounds = [(one.low, one.high) if one else ("", "") for one in (effect.interval, effect.seed_interval)]
    against = "" if effect.against is None else effect.against
    return [
        *(effect_name(effect), against, effect.difference, *bounds[0], effect.num_blocks, effect.p, effect.p_holm),
        *(effect.is_exact, *bounds[1], len(effect.by_seed), effect.is_distinguishable),
    ]


def _table(title: str, found: Sequence[Effect], claims: ClaimsSpec | None) -> Table:
    """Levels that are compared with one other, and parts, have verdicts; a mean of levels and an interaction have none."""
    is_against = found[0].kind == "default"
    verdicts = effect_verdicts(found, claims) if found[0].kind in ("default", "part") else {}
    heads = ["part" if found[0].kind == "part" else "effect", *(["against"] if is_against else []), "difference"]
    heads += [
        "95 % interval",
        "blocks",
        "p",
        "p (Holm)",
        "95 % interval over seeds",
        "seeds",
        *(["verdict"] if verdicts else []),
    ]
    lines = []
    for effect in found:
        cells = [Cell(str(effect.against))] if is_against else []
        cells += [Cell(f"{effect.difference:+.4f}", "best" if effect.is_distinguishable else "")]
        texts = [interval_text(effect.interval, digits=4), str(effect.num_blocks), p_text(effect.p), p_text(effect.p_holm)]
        texts += [interval_text(effect.seed_interval, digits=4), str(len(effect.by_seed))]
        texts += [verdicts[effect.hypothesis].word] if verdicts else []
        lines.append((effect_name(effect), [*cells, *map(Cell, texts)]))
    return Table(title, [Column(head) for head in heads], lines, _note(found, claims if verdicts else None))


def _note(found: Sequence[Effect], claims: ClaimsSpec | None) -> str:
    num = len({effect.hypothesis for effect in found})
    how = "exact" if all(effect.is_exact for effect in found) else "exact, or of 99,999 drawn patterns where there are too many"
    told = [f"{effect_name(effect)} ({effect.difference:+.4f})" for effect in found if effect.is_distinguishable]
    note = (
        f"Null hypothesis of p: {NULLS[found[0].kind]}. p: two-sided permutation test within blocks, {how}; corrected by Holm "
        f"over the {num} hypotheses of this table. Intervals: over blocks, with the residual spread of the whole grid; over "
        f"seeds, a value for each seed. In bold: told apart from zero, by corrected p below {ALPHA} within blocks and by the "
        f"interval over seeds, since one seed may favour a level in all its blocks: {', '.join(told) or 'none'}."
    )
    if claims is None:
        return note
    return (
        f"{note} Verdicts by the seeds' values: better, worse, or equivalent within {claims.smallest_effect:g}; those of this "
        f"table are right together with probability {claims.confidence:g} or more, however often one looks."
    )
