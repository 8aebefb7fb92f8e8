"""The tables of a run: a grid of two varied fields, arms, arms against a control, and everything as CSV.

A table holds rows of one protocol and one number of images a class; the caller groups.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ddgd_ray.report.cells import CellWriter
from ddgd_ray.report.compare import Paired, claim, compare, highest, marks
from ddgd_ray.report.judged import reference_of, verdict_note, verdicts_of
from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.report.statistics import ALPHA, Interval, mean_interval
from ddgd_ray.run.results import CEILING, Row, Stat, by_arm, main_metric, over_seeds, protocols_of, seed_means
from ddgd_ray.spec.base import Value
from ddgd_ray.spec.claims_spec import ClaimsSpec

METRIC_TITLES = {
    "val_top1": "validation (selects)",
    "top1_last": "test, last step",
    "top1_selected": "test, step chosen on validation",
    "top1_best": "test, best step (oracle)",
}
METRIC_SHORT = {"val_top1": "validation", "top1_last": "test", "top1_selected": "test, selected", "top1_best": "test, oracle"}


def at_ipc(rows: Sequence[Row], ipc: int) -> list[Row]:
    """Rows of sets with `ipc` images a class, and the ceiling's, which has all of them."""
    return [row for row in rows if row.ipc in (ipc, 0)]


def under(rows: Sequence[Row]) -> str:
    """What a table's title says of its rows: images a class, and the one protocol."""
    labels, ipcs = {row.protocol for row in rows}, {row.ipc for row in rows} - {0}
    assert max(len(labels), len(ipcs)) <= 1, f"a table that mixes {labels} or {ipcs}"
    return f"{next(iter(ipcs), 'all')} images per class, protocol {next(iter(labels), '-')}"


def common_metric(rows: Sequence[Row]) -> str:
    """Test accuracy where every arm has it, else validation accuracy: the one by which most arms can be drawn."""
    arms = {row.arm for row in rows if row.arm != CEILING}
    tested = {row.arm for row in rows if "top1_last" in row.metrics and row.arm != CEILING}
    return "top1_last" if tested == arms or not any("val_top1" in row.metrics for row in rows) else "val_top1"


def grid_table(rows: Sequence[Row], vary: Mapping[str, Sequence[Value]]) -> Table | None:
    """The grid of two varied fields, the first down and the second across, as the paper's Table 3; None unless two vary.

    Test accuracy, or validation accuracy where only some arms were tested.
    """
    rows = [row for row in rows if not row.is_control]
    if len(vary) != 2 or not rows:
        return None
    is_tested = {row.arm for row in rows} == {row.arm for row in rows if "top1_last" in row.metrics}
    metric, what = ("top1_last", "Test accuracy, last step") if is_tested else ("val_top1", "Validation accuracy")
    (down, across), (down_values, across_values) = tuple(vary), tuple(vary.values())
    lines = []
    for first in down_values:
        cells = []
        for second in across_values:
            found = [row for row in rows if row.params.get(down) == first and row.params.get(across) == second]
            cells.append(Cell(_text(over_seeds(found, metric))))
        lines.append((str(first), cells))
    columns = [Column(f"{down} \\ {across}"), *(Column(str(value)) for value in across_values)]
    return Table(f"{what}, {under(rows)}", columns, lines, "Mean ± sample standard deviation over n distillation seeds.")


def arm_table(rows: Sequence[Row], networks: Sequence[str]) -> Table:
    """A table with a line an arm: each metric over all networks, then the main metric of each network. The best are marked."""
    main = main_metric(rows)
    arms = by_arm(rows)
    columns = [(metric, list(networks)) for metric in METRIC_TITLES] + [(main, [network]) for network in networks]
    stats, marked = [], []
    for metric, chosen in columns:
        of_column = {arm: [row for row in found if row.network in chosen] for arm, found in arms.items()}
        stats.append({arm: over_seeds(found, metric) for arm, found in of_column.items()})
        marked.append(marks(of_column, metric))
    lines = []
    for arm, found in arms.items():
        counts = [stat.n for column in stats if (stat := column[arm]) is not None]
        n = max(counts, default=0)
        values = [_cell(column[arm], n, mark.get(arm, "")) for column, mark in zip(stats, marked, strict=True)]
        lines.append((_name(arm, found), [Cell(str(n)), *values]))
    heads = [Column("arm"), Column("n")]
    heads += [Column(text, METRIC_SHORT[metric], "mean over networks") for metric, text in METRIC_TITLES.items()]
    heads += [Column(f"{network}, {METRIC_TITLES[main]}", network, METRIC_TITLES[main]) for network in networks]
    best = highest(arms, main)
    note = "Top-1 accuracy, mean ± sample standard deviation over n distillation seeds."
    if any(marked):
        note += (
            f" Best in bold; underlined: not distinguishable from the best (paired sign-flip test over shared seeds, "
            f"Holm-corrected p ≥ {ALPHA}). {claim(compare(arms, best, main), best, METRIC_TITLES[main])}"
        )
    return Table(f"Arms, {under(rows)}", heads, lines, note.strip())


def comparison_table(rows: Sequence[Row], control: str, claims: ClaimsSpec | None = None) -> Table:
    """A table with a line an arm: mean with interval, paired difference to the control with interval and corrected p.

    With `claims` also its verdict; without, the note says what these seeds could have told.
    """
    metric = main_metric(rows)
    arms = by_arm(rows)
    compared = compare(arms, control, metric)
    verdicts = verdicts_of(arms, control, metric, claims) if claims else {}
    lines = []
    for arm, found in arms.items():
        means = list(seed_means(found, metric).values())
        stat = over_seeds(found, metric)
        if stat is None:
            continue
        cells = [Cell(stat.value), Cell(interval_text(mean_interval(means))), *paired_cells(compared.get(arm))]
        cells += [Cell(verdicts[arm].word if arm in verdicts else "-")] if claims else []
        lines.append((_name(arm, found), cells))
    heads = ["arm", METRIC_TITLES[metric], "95 % interval", "difference", "95 % interval of it", "shared n", "p", "p (Holm)"]
    groups = ["", "", "", *[f"paired difference to {control}"] * 5]
    short = ["", METRIC_SHORT[metric], "", "mean", "95 % interval", "n", "", ""]
    columns = [Column(head, name, group) for head, name, group in zip(heads, short, groups, strict=True)]
    columns += [Column("verdict", group=groups[-1])] if claims else []
    num_tested = sum(paired.p is not None for paired in compared.values())
    note = (
        "Mean over networks; differences are paired by distillation seed. Intervals: BCa bootstrap, which runs short with few "
        "seeds (of nominal 95 %, about 87 % at n = 6 and 90 % at n = 10)."
    )
    if num_tested:
        note += f" p: two-sided sign-flip test, corrected by Holm over {num_tested} comparisons."
    note += f" {claim(compared, control, METRIC_TITLES[metric])} {verdict_note(arms, control, metric, claims)}"
    return Table(f"Arms against {control}, {under(rows)}", columns, lines, note.strip())


def paired_cells(paired: Paired | None) -> list[Cell]:
    if paired is None:
        return [Cell("-")] * 5
    stat = paired.stat
    difference = f"{stat.mean:+.4f}" + (f" ± {stat.std:.4f}" if stat.std is not None else "")
    texts = [difference, interval_text(paired.interval, digits=4), str(stat.n), p_text(paired.p), p_text(paired.p_holm)]
    return [Cell(text) for text in texts]


def averaged_csv(rows: Sequence[Row], networks: Sequence[str], claims: ClaimsSpec | None = None) -> str:
    """CSV, a line for each protocol, ipc, network or all, metric and arm, with differences to the control. Empty: no value.

    The verdict of a line holds together with those of the other arms under the same protocol, ipc, network and metric.
    """
    text = io.StringIO()
    writer = CellWriter(text)
    head = "protocol,ipc,network,metric,arm,is_control,mean,std,n,ci_low,ci_high"
    writer.writerow(
        f"{head},control,difference,difference_std,difference_low,difference_high,n_shared,p,p_holm,verdict".split(",")
    )
    for protocol in protocols_of(rows):
        of_protocol = [row for row in rows if row.protocol == protocol]
        control = reference_of(of_protocol, claims)
        for ipc in sorted({row.ipc for row in of_protocol}):
            for network in ("all", *networks):
                found = by_arm([row for row in of_protocol if row.ipc == ipc and network in ("all", row.network)])
                for metric in METRIC_TITLES:
                    for arm, values in _averaged(found, control, metric, claims):
                        writer.writerow([protocol, ipc, network, metric, arm, *values])
    return text.getvalue()


def _averaged(
    arms: Mapping[str, Sequence[Row]], control: str, metric: str, claims: ClaimsSpec | None
) -> list[tuple[str, list[Any]]]:
    compared = compare(arms, control, metric)
    verdicts = verdicts_of(arms, control, metric, claims) if claims else {}
    lines: list[tuple[str, list[Any]]] = []
    for arm, rows in arms.items():
        stat = over_seeds(rows, metric)
        if stat is None:
            continue
        values = [rows[0].is_control, *_numbers(stat, mean_interval(list(seed_means(rows, metric).values())))]
        if arm in compared:
            paired = compared[arm]
            mean, std, n, low, high = _numbers(paired.stat, paired.interval)
            values += [control, mean, std, low, high, n, _number(paired.p), _number(paired.p_holm)]
            values += [verdicts[arm].word if arm in verdicts else ""]
        else:
            values += [""] * 9
        lines.append((arm, values))
    return lines


def _numbers(stat: Stat, interval: Interval | None) -> list[Any]:
    """The cells mean, std, n, low, high."""
    bounds = (interval.low, interval.high) if interval else (None, None)
    return [_number(stat.mean), _number(stat.std), stat.n, *map(_number, bounds)]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def csv_table(rows: Sequence[Row]) -> str:
    """CSV with every evaluator as a line: nothing averaged."""
    names = sorted({name for row in rows for name in row.metrics})
    params = sorted({name for row in rows for name in row.params})
    text = io.StringIO()
    writer = CellWriter(text)
    writer.writerow(
        ["arm", "is_control", *params, "distill_seed", "network", "ipc", "evaluate_seed", "protocol", "key", *names]
    )
    for row in rows:
        values = [row.params.get(name, "") for name in params]
        metrics = [repr(row.metrics[name]) if name in row.metrics else "" for name in names]
        place = [row.seed, row.network, row.ipc, row.evaluate_seed, row.protocol, row.key]
        writer.writerow([row.arm, row.is_control, *values, *place, *metrics])
    return text.getvalue()


def _name(arm: str, rows: Sequence[Row]) -> str:
    if arm == CEILING:
        return f"{arm} (ceiling)"
    return f"{arm} (control)" if rows[0].is_control else arm


def _cell(stat: Stat | None, n: int, mark: str) -> Cell:
    """The cell of a mean; its n is said where it is not that of the line."""
    if stat is None:
        return Cell("-")
    return Cell(stat.value if stat.n == n else str(stat), mark)


def _text(stat: Stat | None) -> str:
    return "-" if stat is None else str(stat)


def interval_text(interval: Interval | None, digits: int = 3) -> str:
    return "-" if interval is None else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def p_text(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3g}"
