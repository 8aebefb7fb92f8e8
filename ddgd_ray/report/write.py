"""All files of a report in one go."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError
from ddgd_ray.report.compare import CEILING, by_arm, choose_control
from ddgd_ray.report.dd_ranking import dd_ranking_table, is_without_augmentation
from ddgd_ray.report.grids import write_grids
from ddgd_ray.report.notes import missing_note, readings_note, selection_note
from ddgd_ray.report.pareto import pareto_tables
from ddgd_ray.report.per_class import per_class_csv
from ddgd_ray.report.quality import quality_tables
from ddgd_ray.report.render import Table, latex, markdown
from ddgd_ray.report.results import Row, protocols_of, rows_of
from ddgd_ray.report.tables import (
    arm_table,
    at_ipc,
    averaged_csv,
    comparison_table,
    csv_table,
    grid_table,
    in_order_of,
)
from ddgd_ray.store import Store, write_atomically


@dataclass(frozen=True)
class Report:
    markdown: str
    brief: str
    """Of the Markdown the arms under the first protocol, and what was selected."""
    tables: tuple[Path, ...]
    """table.md, table.tex and table.csv: averaged over seeds."""
    results: Path
    """results.csv: every evaluator."""
    pictures: tuple[Path, ...]


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """sweep.json and the trial records of a run folder. Raises ArtifactError when it is none."""
    try:
        sweep = json.loads((path / "sweep.json").read_text())
    except (OSError, ValueError) as err:
        raise ArtifactError(
            "this is no run folder: expected a readable sweep.json",
            code="no-run",
            where=str(path),
            fix="give runs/NAME, or run the sweep again: it rebuilds its records from the store",
        ) from err
    records = []
    for file in sorted((path / "trials").glob("*.json")):
        try:
            records.append(json.loads(file.read_text()))
        except ValueError as err:
            raise ArtifactError("cannot be read", where=str(file), fix="run the sweep again: it writes this file anew") from err
    return sweep, records


def write_report(path: Path, store: Store) -> Report:
    """Tables, results and one grid an arm under `path`/report."""
    sweep, records = read_run(path)
    spec = sweep["spec"]
    rows = in_order_of(spec["vary"], rows_of(records, store))
    order = list(by_arm(rows))
    of_arms = sorted(records, key=lambda record: order.index(record["arm"]) if record["arm"] in order else len(order))
    tables = [*result_tables(spec, rows), *pareto_tables(spec, records, store), *quality_tables(of_arms, store)]
    out = path / "report"
    out.mkdir(exist_ok=True)
    text = markdown_report(spec, rows, tables, records)
    files = {"table.md": text, "table.tex": latex_report(spec, tables)}
    files |= {"table.csv": averaged_csv(rows, spec["evaluate"]["networks"]), "results.csv": csv_table(rows)}
    files["per_class.csv"] = per_class_csv(rows, store)
    for name, content in files.items():
        write_atomically(out / name, content)
    protocol = next(iter(protocols_of(rows)), "-")
    arms = [table for table in tables if table.title.startswith("Arms, ") and table.title.endswith(f"protocol {protocol}")]
    brief = markdown_report(spec, rows, arms, records)
    written = (out / "table.md", out / "table.tex", out / "table.csv")
    return Report(text, brief, written, out / "results.csv", tuple(write_grids(records, store, out)))


def result_tables(spec: Mapping[str, Any], rows: Sequence[Row]) -> list[Table]:
    """For each protocol and number of images a class: grid, arms, arms against the control, DD-Ranking."""
    tables: list[Table | None] = []
    networks = spec["evaluate"]["networks"]
    for protocol in protocols_of(rows):
        of_protocol = [row for row in rows if row.protocol == protocol]
        control = choose_control(of_protocol)
        for ipc in spec["evaluate"]["ipc"]:
            found = at_ipc(of_protocol, ipc)
            if all(row.ipc == 0 for row in found):
                continue
            tables += [grid_table(found, spec["vary"]), arm_table(found, networks)]
            if len({row.arm for row in found} - {CEILING}) > 1:
                tables.append(comparison_table(found, control))
            if not is_without_augmentation(protocol):
                tables.append(dd_ranking_table(rows, protocol, ipc))
    return [table for table in tables if table is not None]


def markdown_report(
    spec: Mapping[str, Any], rows: Sequence[Row], tables: Sequence[Table], records: Sequence[Mapping[str, Any]]
) -> str:
    """Tables, then what was selected on what, how often the test images were read, and what failed."""
    protocols = protocols_of(rows)
    chosen_under = [row for row in rows if row.protocol in protocols[:1]]
    parts = [
        f"# {spec['name']}: preset {spec['preset']}",
        f"Accuracies are top-1 in [0, 1], mean ± sample standard deviation over distillation seeds (n); protocol "
        f"{', '.join(protocols) or '-'}; networks {', '.join(spec['evaluate']['networks'])}; images per class "
        f"{', '.join(map(str, spec['evaluate']['ipc']))}; classifier seeds {len(spec['seeds']['evaluate'])} a set, averaged "
        f"first.",
        missing_note(records, rows),
        *map(markdown, tables),
        f"## Selection\n\n{selection_note(spec, chosen_under)}" if spec["vary"] or spec["search"] else "",
        readings_note(rows),
    ]
    failed = [record for record in records if record["state"] == "failed"]
    if failed:
        lines = [f"- {record['name']}: {'; '.join(sorted(set(record['errors'].values())))}" for record in failed]
        parts += ["## Failed trials", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex_report(spec: Mapping[str, Any], tables: Sequence[Table]) -> str:
    """The tables to \\input, or to copy from."""
    head = f"% {spec['name']}: preset {spec['preset']}. In the preamble: \\usepackage{{booktabs}}"
    return "\n\n".join([head, *map(latex, tables)]) + "\n"
