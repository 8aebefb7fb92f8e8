"""All files of a report in one go."""

import json
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError
from ddgd_ray.report.grids import write_grids
from ddgd_ray.report.results import rows_of
from ddgd_ray.report.tables import csv_table, markdown_report
from ddgd_ray.store import Store, write_atomically


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


def write_report(path: Path, store: Store) -> tuple[str, list[Path]]:
    """table.md, results.csv and one grid an arm under `path`/report; returns the Markdown and the files."""
    sweep, records = read_run(path)
    rows = rows_of(records, store)
    out = path / "report"
    out.mkdir(exist_ok=True)
    markdown = markdown_report(sweep, rows, [record for record in records if record["state"] == "failed"])
    write_atomically(out / "table.md", markdown)
    write_atomically(out / "results.csv", csv_table(rows))
    return markdown, [out / "table.md", out / "results.csv", *write_grids(records, store, out)]
