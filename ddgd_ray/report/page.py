"""A run as one HTML page that needs nothing beside it: tables, drawings and pictures are inside."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from ddgd_ray import __version__
from ddgd_ray.report.costs import cost_table
from ddgd_ray.report.effect_figures import effect_figures
from ddgd_ray.report.factorial import is_of_effects
from ddgd_ray.report.figures import Drawing
from ddgd_ray.report.grids import chosen_arms
from ddgd_ray.report.headline import headline
from ddgd_ray.report.memories import memory_figures
from ddgd_ray.report.nearest import nearest_pictures
from ddgd_ray.report.notes import missing_note, readings_note, selection_note
from ddgd_ray.report.per_class import ClassTable, class_table
from ddgd_ray.report.pictures import PictureTable, left_out, memory_pictures, set_pictures
from ddgd_ray.report.render import Table
from ddgd_ray.report.search_figures import search_figures
from ddgd_ray.report.sensitivity import sensitivity_figures
from ddgd_ray.report.tables import at_ipc
from ddgd_ray.report.tradeoffs import tradeoff_figures
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import CEILING
from ddgd_ray.storage.store import write_atomically

PAGE = "index.html"
MAX_ROWS = 200
MAX_HEAT_ROWS, MAX_HEAT_COLUMNS = 40, 100
NUM_NEAREST, NUM_MEMORIES = 3, 2
"""Arms whose nearest real images and memories are shown."""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Listing:
    """A list of terms: names and values."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Heat:
    title: str
    classes: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    note: str


Block = Text | Listing | Table | Drawing | Heat | PictureTable


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def write_page(run: Run, tables: Sequence[Table], out: Path, *, all_pictures: bool = False) -> Path:
    """The path of the page, `out`/index.html, once it is written."""
    path = out / PAGE
    title = f"{run.spec.name}: preset {run.spec.preset}"
    write_atomically(path, render(title, _lead(run), sections_of(run, tables, all_pictures), headline(run)))
    return path


def sections_of(run: Run, tables: Sequence[Table], all_pictures: bool = False) -> list[Section]:
    """The sections of the page that have something to show."""
    sensitivity = sensitivity_figures(run)
    nearest_arms = [arm for arm in chosen_arms(run) if arm != CEILING] if all_pictures else _nearest_arms(run)
    memory_arms = portrayed_arms(run, all_pictures)
    shown = [*run.ranked[:4], *(arm for arm in run.controls if arm == "plain")]
    cost = cost_table(run)
    found = [
        Section("Selection", _selection(run)),
        Section("Results", [table for table in tables if not is_of_effects(table)]),
        Section("Effects", [*effect_figures(run), *filter(is_of_effects, tables)]),
        Section("Sensitivity", sensitivity),
        Section("Search", search_figures(run)),
        Section("Trade-offs", tradeoff_figures(run)),
        Section("Classes", _heats(run)),
        Section(
            "Pictures",
            [one for one in (set_pictures(run, all_pictures=all_pictures), nearest_pictures(run, nearest_arms)) if one],
        ),
        Section("Memories", [*memory_figures(run, shown), *memory_pictures(run, memory_arms)]),
        Section("Cost", [cost] if cost else []),
        Section("Failed trials", _failures(run)),
        Section("Settings", _settings(run)),
    ]
    return [section for section in found if section.blocks]


def portrayed_arms(run: Run, all_pictures: bool = False) -> list[str]:
    """The arms whose memories are shown: the best, or all."""
    return run.ranked if all_pictures else run.ranked[:NUM_MEMORIES]


def _nearest_arms(run: Run) -> list[str]:
    """The best arm, and what it is compared with."""
    return [*run.ranked[:1], *(arm for arm in ("plain", "pretrained") if arm in run.controls)][:NUM_NEAREST]


def _lead(run: Run) -> str:
    spec = run.spec
    finished = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.finished))
    until = f", finished {finished} UTC" if run.finished else ""
    return (
        f"{len(run.trials)} trials{until}. Accuracies are top-1 in [0, 1], mean ± sample standard deviation over distillation "
        f"seeds (n); protocol {run.protocol or '-'}; networks {', '.join(spec.evaluate.networks)}; images per class "
        f"{', '.join(map(str, spec.evaluate.ipc))}; {len(spec.seeds.evaluate)} classifier seeds "
        f"a set, averaged first."
    )


def _selection(run: Run) -> list[Block]:
    chosen = selection_note(run) if run.spec.vary or run.spec.search else ""
    return [Text(text) for text in (chosen, readings_note(run.rows), missing_note(run)) if text]


def _heats(run: Run) -> list[Heat]:
    """The accuracy of each class under the main protocol, a block for each number of images a class."""
    heats = []
    for ipc in run.spec.evaluate.ipc:
        found = class_table(at_ipc(run.main_rows, ipc), run.store)
        if found is not None:
            heats.append(_heat(run, ipc, found))
    return heats


def _heat(run: Run, ipc: int, table: ClassTable) -> Heat:
    order = [arm for arm in [*run.ranked, *run.controls, CEILING] if arm in table.values]
    arms = (
        order if len(order) <= MAX_HEAT_ROWS else [arm for arm in [*chosen_arms(run, MAX_HEAT_ROWS), CEILING] if arm in order]
    )
    classes = table.classes[:MAX_HEAT_COLUMNS]
    rows = [(arm, table.values[arm][:MAX_HEAT_COLUMNS]) for arm in arms]
    note = f"Mean top-1 on {table.measured_on} images of each class, the best arms first. Every classifier: per_class.csv."
    note += left_out(len(arms), len(order), "arms") + left_out(len(classes), len(table.classes), "classes")
    return Heat(f"Accuracy of each class, {ipc} images per class, protocol {run.protocol}", classes, rows, note)


def _failures(run: Run) -> list[Block]:
    failed = run.failed
    items = [(trial.name, trial.error) for trial in failed[:MAX_ROWS]]
    blocks: list[Block] = [Listing(items)] if items else []
    return [*blocks, Text(left_out(MAX_ROWS, len(failed), "failed trials").strip())] if len(failed) > MAX_ROWS else blocks


def _settings(run: Run) -> list[Block]:
    spec = run.spec
    varied = {path: ", ".join(map(str, values)) for path, values in spec.vary.items()}
    space = {path: json.dumps(value) for path, value in run.sweep.space.items()}
    seeds = {f"seeds.{name}": ", ".join(map(str, values)) for name, values in spec.seeds.canonical().items()}
    fixed = {path: str(value) for path, value in flat(run.sweep.settings).items()}
    rest = {"recipe": spec.recipe or "-", "objective": json.dumps(spec.objective.canonical())}
    rest |= {"controls": ", ".join(spec.controls) or "-", "ddgd-ray": run.sweep.ddgd_ray}
    return [Listing([*varied.items(), *space.items(), *seeds.items(), *rest.items(), *fixed.items(), *_versions(run)])]


def _versions(run: Run) -> list[tuple[str, str]]:
    """The versions of the packages that trained the first classifier."""
    for row in run.rows[:1]:
        artifact = run.store.get("evaluate", row.key)
        if artifact is not None:
            return sorted(artifact.versions.items())
    return []


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of nested objects."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{path}.{name}" if path else str(name))
    return found


def inline(text: str) -> Markup:
    """The note with its **bold** as HTML; everything else stands as it is."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


def render(title: str, lead: str, sections: Sequence[Section], finding: str = "") -> str:
    """The HTML of the page. Names are escaped wherever they stand."""
    source = resources.files("ddgd_ray.report")
    script = (source / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["inline"] = inline
    environment.filters["heat"] = lambda value: round(100 * max(0.0, min(1.0, value)))
    template = environment.from_string((source / "page.html.j2").read_text())
    return (
        template.render(
            title=title,
            lead=lead,
            finding=finding,
            sections=sections,
            style=Markup((source / "page.css").read_text()),
            script=Markup(script),
            script_sha256=digest,
            max_rows=MAX_ROWS,
            version=__version__,
            kind=lambda block: type(block).__name__,
            markup=Markup,
        )
        + "\n"
    )
