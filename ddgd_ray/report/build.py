"""The files of a report, all written in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.report.dd_ranking import dd_ranking_table, is_without_augmentation
from ddgd_ray.report.factorial import effect_tables, effects_csv
from ddgd_ray.report.grids import chosen_arms, write_grids
from ddgd_ray.report.hashes import write_hashes
from ddgd_ray.report.headline import headline
from ddgd_ray.report.judged import reference_of
from ddgd_ray.report.notes import missing_note, readings_note, selection_note
from ddgd_ray.report.page import write_page
from ddgd_ray.report.pareto import pareto_tables
from ddgd_ray.report.per_class import per_class_csv
from ddgd_ray.report.quality import quality_tables
from ddgd_ray.report.race import seed_policy_tables
from ddgd_ray.report.render import Table, latex, markdown
from ddgd_ray.report.sizes import size_tables
from ddgd_ray.report.tables import arm_table, at_ipc, averaged_csv, comparison_table, csv_table, grid_table
from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.run.results import CEILING, protocols_of
from ddgd_ray.storage.store import Store, make_writable, write_atomically


@dataclass(frozen=True)
class Report:
    markdown: str
    brief: str
    """The part of the Markdown with the arms under the first protocol, and what was selected."""
    tables: tuple[Path, ...]
    """table.md, table.tex and table.csv, averaged over seeds."""
    results: Path
    """results.csv, a line for every evaluator."""
    pictures: tuple[Path, ...]
    page: Path | None = None
    """index.html; None where no page was asked for."""


def tables_of(run: Run) -> list[Table]:
    """Every table of the report: results under each protocol, the front, the race or the rungs, the quality of the sets."""
    place = {arm: index for index, arm in enumerate(run.arms)}
    of_arms = sorted(run.trials, key=lambda trial: place[trial.arm])
    return [
        *result_tables(run),
        *pareto_tables(run),
        *seed_policy_tables(run),
        *quality_tables(of_arms, run.store),
        *size_tables(of_arms, run.store),
    ]


def report_texts(run: Run, tables: Sequence[Table]) -> dict[str, str]:
    """{file name: content} of all but the pictures and the page: a function of the run folder and the store alone."""
    return {
        "table.md": markdown_report(run, tables),
        "table.tex": latex_report(run, tables),
        "table.csv": averaged_csv(run.rows, run.spec.evaluate.networks, run.spec.claims),
        "effects.csv": effects_csv(run),
        "results.csv": csv_table(run.rows),
        "per_class.csv": per_class_csv(run.rows, run.store),
    }


def write_report(
    path: Path, store: Store, *, to: Path | None = None, all_pictures: bool = False, with_page: bool = False
) -> Report:
    """The report of a run, once it is written under `path`/report or `to`: tables, results, a grid of each chosen arm, hashes.

    with_page: index.html too; its drawings take some seconds. Raises StageError, and ArtifactError for what is damaged.
    """
    run = read_run(path, store)
    tables = tables_of(run)
    out = to or path / "report"
    make_writable("the report", out, fix="say where it may lie: --to FOLDER")
    texts = report_texts(run, tables)
    for name, content in texts.items():
        write_atomically(out / name, content)
    arms = [table for table in tables if table.title.startswith("Arms, ") and table.title.endswith(f"protocol {run.protocol}")]
    brief = markdown_report(run, arms)
    shown = None if all_pictures else chosen_arms(run)
    pictures = write_grids(run, out, arms=shown)
    page = write_page(run, tables, out, all_pictures=all_pictures) if with_page else None
    written = (out / "table.md", out / "table.tex", out / "table.csv")
    write_hashes(path, out, [*(out / name for name in texts), *pictures, *([page] if page else [])])
    return Report(texts["table.md"], brief, written, out / "results.csv", tuple(pictures), page)


def result_tables(run: Run) -> list[Table]:
    """The tables of results, for each protocol and ipc: grid, arms, arms against the reference, effects, DD-Ranking."""
    tables: list[Table | None] = []
    for protocol in protocols_of(run.rows):
        of_protocol = [row for row in run.rows if row.protocol == protocol]
        reference = reference_of(of_protocol, run.spec.claims)
        for ipc in run.spec.evaluate.ipc:
            found = at_ipc(of_protocol, ipc)
            if all(row.ipc == 0 for row in found):
                continue
            tables += [grid_table(found, run.spec.vary), arm_table(found, run.spec.evaluate.networks)]
            if len({row.arm for row in found} - {CEILING}) > 1:
                tables.append(comparison_table(found, reference, run.spec.claims))
            tables += effect_tables(found, run.spec.vary, run.default, run.spec.claims)
            if not is_without_augmentation(protocol):
                tables.append(dd_ranking_table(run.rows, protocol, ipc))
    return [table for table in tables if table is not None]


def markdown_report(run: Run, tables: Sequence[Table]) -> str:
    """The report as Markdown: tables, what was selected on what, how often the test images were read, what failed."""
    spec = run.spec
    parts = [
        f"# {spec.name}: preset {spec.preset}",
        headline(run),
        f"Accuracies are top-1 in [0, 1], mean ± sample standard deviation over distillation seeds (n); protocol "
        f"{', '.join(protocols_of(run.rows)) or '-'}; networks {', '.join(spec.evaluate.networks)}; images per class "
        f"{', '.join(map(str, spec.evaluate.ipc))}; classifier seeds {len(spec.seeds.evaluate)} a set, averaged first.",
        missing_note(run),
        *map(markdown, tables),
        f"## Selection\n\n{selection_note(run)}" if spec.vary or spec.search else "",
        readings_note(run.rows),
    ]
    if run.failed:
        parts += ["## Failed trials", "\n".join(f"- {trial.name}: {trial.error}" for trial in run.failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex_report(run: Run, tables: Sequence[Table]) -> str:
    """The tables as LaTeX, to \\input or to copy from."""
    head = f"% {run.spec.name}: preset {run.spec.preset}. In the preamble: \\usepackage{{booktabs}}"
    return "\n\n".join([head, *map(latex, tables)]) + "\n"
