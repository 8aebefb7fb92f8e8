"""Two sweeps side by side: arms by name, differences on the seeds they share, and what differs in their settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddgd_ray.report.compare import claim, tested_pairs
from ddgd_ray.report.page import Block, Section, Text, flat, render
from ddgd_ray.report.render import Cell, Column, Table, markdown
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, paired_cells, under
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import CEILING, Row, by_arm, main_metric, over_seeds, paired_differences, protocols_of

COMPARED = (
    "preset",
    "recipe",
    "vary",
    "search",
    "seeds",
    "controls",
    "sets",
    "quality",
    "test",
    "evaluate",
    "objective",
)
"""Sections of a sweep file that decide what its results mean."""


@dataclass(frozen=True)
class RunComparison:
    """Two runs side by side. tables: of results, one for each protocol and number of images a class that both runs have."""

    title: str
    settings: Table
    tables: Sequence[Table]
    notes: Sequence[str]

    def as_markdown(self) -> str:
        parts = [f"# {self.title}", *map(markdown, self.tables), *self.notes, markdown(self.settings)]
        return "\n\n".join(parts) + "\n"

    def as_html(self) -> str:
        results: list[Block] = [*self.tables, *map(Text, self.notes)]
        sections = [Section("Results", results), Section("Settings that differ", [self.settings])]
        lead = (
            "Differences are B less A, paired by distillation seed and classifier, under one protocol and the same real images."
        )
        return render(self.title, lead, [section for section in sections if section.blocks])


def compare_runs(first: Run, second: Run) -> RunComparison:
    """The comparison of two runs: a table wherever a difference means something; the notes say where it does not, and why."""
    tables: list[Table] = []
    notes: list[str] = []
    ours, theirs = protocols_of(first.rows), protocols_of(second.rows)
    for protocol in ours:
        if protocol not in theirs:
            continue
        real = [_real_images(run, protocol) for run in (first, second)]
        if real[0] != real[1]:
            notes.append(
                f"Protocol {protocol}: the runs were judged on different real images, or other splits of them: not compared."
            )
            continue
        for ipc in first.spec.evaluate.ipc:
            pair = [at_ipc([row for row in run.rows if row.protocol == protocol], ipc) for run in (first, second)]
            if all(any(row.ipc == ipc for row in rows) for rows in pair):
                tables.append(_table(pair[0], pair[1], protocol, ipc, notes))
    sides = (("A", ours, theirs), ("B", theirs, ours))
    apart = [f"{name} in {which} alone" for which, mine, other in sides for name in mine if name not in other]
    if apart:
        notes.append(f"Protocols: {', '.join(apart)}. Results of two protocols are never compared.")
    if not tables:
        notes.insert(0, "There is nothing that both runs measured in the same way.")
    title = f"{_name(first, 'A')} and {_name(second, 'B')}"
    return RunComparison(title, settings_table(first, second), tables, list(dict.fromkeys(notes)))


def _name(run: Run, letter: str) -> str:
    return f"{letter}: {run.spec.name} (preset {run.spec.preset})"


def _real_images(run: Run, protocol: str) -> set[str]:
    """Keys of the decoded images that the classifiers of a protocol were tested on."""
    artifacts = (run.store.get("evaluate", row.key) for row in run.rows if row.protocol == protocol)
    return {artifact.inputs["real"] for artifact in artifacts if artifact is not None}


def _table(ours: Sequence[Row], theirs: Sequence[Row], protocol: str, ipc: int, notes: list[str]) -> Table:
    metric = main_metric([*ours, *theirs])
    first, second = by_arm(ours), by_arm(theirs)
    arms = list(dict.fromkeys([*first, *second]))
    other = [arm for arm in arms if arm in first and arm in second and first[arm][0].params != second[arm][0].params]
    differences = {}
    for arm in arms:
        if arm in first and arm in second and arm not in other:
            found = list(paired_differences(second[arm], first[arm], metric).values())
            if found:
                differences[arm] = found
    compared = tested_pairs(differences)
    lines = []
    for arm in arms:
        stats = [over_seeds(side.get(arm, ()), metric) for side in (first, second)]
        cells = [Cell(str(stat) if stat else "-") for stat in stats]
        lines.append((arm, [*cells, *paired_cells(compared.get(arm))]))
    if other:
        notes.append(f"Same name, other values: {', '.join(other)}; these arms are not compared.")
    same = [arm for arm, found in differences.items() if not any(found) and _keys(first[arm]) & _keys(second[arm])]
    if same:
        notes.append(f"The same artifacts in both runs, so no difference: {', '.join(same)}.")
    heads = ["arm", "A", "B", "B less A", "95 % interval of it", "shared n", "p", "p (Holm)"]
    compared_arms = {arm: paired for arm, paired in compared.items() if arm != CEILING}
    note = (
        f"{METRIC_TITLES[metric].capitalize()}, mean over networks ± sample standard deviation over distillation seeds (n). "
        f"{claim(compared_arms, 'itself in A', METRIC_TITLES[metric])}"
    )
    return Table(f"A and B, {under([*ours, *theirs])}", [Column(head) for head in heads], lines, note.strip())


def _keys(rows: Sequence[Row]) -> set[str]:
    return {row.key for row in rows}


def settings_table(first: Run, second: Run) -> Table:
    """Fields that differ, of the preset with its overrides and of the sweep; `-` where a run leaves one at its default."""
    sides = [_settings(run) for run in (first, second)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    lines = []
    for name in names:
        values = [side.get(name, "-") for side in sides]
        if values[0] != values[1]:
            lines.append((name, [Cell(value) for value in values]))
    note = "" if lines else "No setting differs."
    return Table("Settings", [Column("field"), Column("A"), Column("B")], lines, note)


def _settings(run: Run) -> dict[str, str]:
    """{field: value} of the preset with its overrides, and of the sweep as far as it says what is compared."""
    spec = run.spec.canonical()
    own = {f"sweep.{name}": _text(value) for name, value in flat({part: spec[part] for part in COMPARED}).items()}
    return {name: _text(value) for name, value in flat(run.sweep.settings).items()} | own


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
