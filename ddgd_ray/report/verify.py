"""Verification: is everything behind a run what was published, and does the report say what the artifacts say?"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from difflib import unified_diff
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError
from ddgd_ray.plan.plan import classifier_seed
from ddgd_ray.report.build import report_texts, tables_of
from ddgd_ray.report.hashes import LIST, changed_since
from ddgd_ray.report.memories import portrait_of
from ddgd_ray.report.page import MAX_ROWS, PAGE
from ddgd_ray.report.published import json_of, points_of
from ddgd_ray.report.render import Table
from ddgd_ray.run.lineage import spec_of
from ddgd_ray.run.reading import Run, read_seed_policy, read_sweep_record, trial_files
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.evaluation import STAGE_SPECS
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import MANIFEST, Artifact, Store, key_of_identity

STAGE_OF = {"select": "pick"}
"""Sections of a preset whose stage has another name: stage select makes the controls, of which no field varies."""
MAX_LINES = 6
"""Lines of a file that differs that are shown."""


@dataclass
class Verification:
    """What was looked at and found. problems: a line each, with the name of what is damaged; notes: what was left out."""

    num_artifacts: int = 0
    num_files: int = 0
    num_bytes: int = 0
    num_cells: int = 0
    """Numbers of the report's tables that were computed again and compared."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_unreadable: bool = False
    """Something that numbers come from could not be read: tables of the rest would not be those of the run."""

    @contextmanager
    def damage(self) -> Iterator[None]:
        """A block in which what is found damaged becomes a problem."""
        try:
            yield
        except ArtifactError as err:
            self.problems.append(f"{err.where}: {err.what}")
            self.has_unreadable = True


def verify_run(path: Path, store: Store, report: Path) -> Verification:
    """What is wrong with a run: every file behind it hashed again, every key derived anew, every report file compared.

    report: the folder of the report. Raises ArtifactError when `path` is no run folder, or its sweep.json is damaged: nothing
    can be looked at then.
    """
    found = Verification()
    run = Run(path, read_sweep_record(path), _sound_trials(path, found), store)
    artifacts = _behind(run, found)
    for artifact in artifacts.values():
        _check_artifact(artifact, found)
    for trial in run.trials:
        found.problems += [f"trial {trial.name}: {what}" for what in _contradictions(trial, artifacts)]
    if not report.is_dir():
        found.notes.append(f"no report on disk at {report}")
        return found
    _check_hashes(path, report, found)
    try:
        if not found.has_unreadable:
            _check_report(replace(run, trials=[trial for trial in run.trials if trial.rung is None]), report, found)
    except ArtifactError:  # a file of an artifact, which is among the problems already
        found.has_unreadable = True
    if found.has_unreadable:
        found.notes.append("the report's numbers were not computed again: what is damaged has none")
    return found


def _sound_trials(path: Path, found: Verification) -> list[TrialRecord]:
    """The trial records that can be read, those of lower rungs too; the others are among the problems, as is a damaged race."""
    trials = []
    for file in trial_files(path):
        with found.damage():
            trials.append(TrialRecord.read(file))
    with found.damage():
        read_seed_policy(path)
    return trials


def _behind(run: Run, found: Verification) -> dict[Ref, Artifact]:
    """Every artifact of the records and, from there, of their inputs."""
    artifacts: dict[Ref, Artifact] = {}
    open_: list[Ref] = []
    for trial in run.trials:
        for ref in trial.refs():
            if run.store.has(*ref):
                open_.append(ref)
            elif trial.state == "done":
                found.problems.append(f"{ref.stage} {ref.key}: is not in the store, trial {trial.name} is done with it")
    for arm in run.first_trials():
        with suppress(ArtifactError):  # of a manifest that is met again below
            portrait = portrait_of(run, arm)  # the page's pictures of memories
            open_ += [portrait.ref] if portrait is not None else []
    seen, absent = set[Ref](), set[str]()
    while open_:
        ref = open_.pop()
        if ref in seen:
            continue
        seen.add(ref)
        with found.damage():
            artifact = run.store.get(*ref)
            assert artifact is not None, "has() said that it is there"
            artifacts[ref] = artifact
            for key in artifact.inputs.values():
                if re.fullmatch("[0-9a-f]{64}", key):  # others are fingerprints of what no stage made
                    made = [Ref(stage, key) for stage in STAGE_SPECS if run.store.has(stage, key)]
                    open_ += made
                    absent |= set() if made else {key}
    if absent:
        found.notes.append(f"{len(absent)} inputs are no longer in the store and could not be looked at")
    return artifacts


def _check_artifact(artifact: Artifact, found: Verification) -> None:
    name, files = f"{artifact.stage} {artifact.key}", artifact.files
    found.num_artifacts += 1
    found.num_files += len(files)
    found.num_bytes += sum(entry["bytes"] for entry in files.values())
    if key_of_identity(artifact.stage, artifact.version, artifact.spec, artifact.inputs) != artifact.key:
        found.problems.append(f"{name}: its key does not follow from its spec and inputs")
    try:
        compare_files(artifact)
    except ArtifactError as err:
        found.problems.append(f"{name}: {err.what}")
        return
    listed = {*files, MANIFEST}
    there = {str(path.relative_to(artifact.path)) for path in artifact.path.rglob("*") if path.is_file()}
    found.problems += [f"{name}: {extra} was not published with it" for extra in sorted(there - listed)]
    found.problems += [f"{name}: {what}" for what in _wrong_metrics(artifact)]


def _wrong_metrics(artifact: Artifact) -> Iterator[str]:
    """Metrics that do not follow from the classifier's own files: the confusion matrix and the curve."""
    if artifact.stage not in ("evaluate", "test"):
        return
    metrics = artifact.metrics
    try:
        expected = {**_by_curve(artifact), **_by_confusion(artifact)}
    except ArtifactError as err:
        yield err.what
        return
    except (KeyError, TypeError, IndexError, AttributeError) as err:  # JSON, of another form than a classifier writes
        yield f"its curve or its confusion matrix cannot be read: {err!r}"
        return
    for name, value in expected.items():
        if name in metrics and not math.isclose(metrics[name], value, abs_tol=1e-6):
            yield f"{name} is {metrics[name]:.6f} in its manifest, {value:.6f} by its own files"


def _by_curve(artifact: Artifact) -> dict[str, float]:
    """The metrics that follow from the curve: its last point, and the best of all where each was tested."""
    points, expected = points_of(artifact), dict[str, float]()
    tested = [point["test_top1"] for point in points if "test_top1" in point]
    if points and "val_top1" in points[-1]:
        expected["val_top1"] = points[-1]["val_top1"]
    if tested and "test_top1" in points[-1]:
        expected["top1_last"] = tested[-1]
        if artifact.spec.get("tests") == "all":
            expected["top1_best"] = max(tested)
    return expected


def _by_confusion(artifact: Artifact) -> dict[str, float]:
    """The accuracy that follows from the confusion matrix, under the name of the images that it was measured on."""
    content = json_of(artifact, "result.json")
    if content is None:
        return {}
    counts = content["confusion"]
    share = sum(row[place] for place, row in enumerate(counts)) / max(1.0, sum(map(sum, counts)))
    return {"top1_last" if content["measured_on"] == "test" else "val_top1": share}


def _contradictions(trial: TrialRecord, artifacts: Mapping[Ref, Artifact]) -> Iterator[str]:
    """What the trial's record says otherwise than the artifacts that it names."""
    build = [artifact for ref in trial.build if (artifact := artifacts.get(ref)) is not None]
    for path, value in trial.params.items():
        section, *names = path.split(".")
        for artifact in build:
            is_its = artifact.stage == STAGE_OF.get(section, section)
            made = _field_of(artifact, names) if is_its else value
            if made != value:
                yield f"{path} is {value!r} in its record, {made!r} in {section} {artifact.key[:8]}"
    for item in trial.evaluators:
        evaluator = artifacts.get(item.ref)
        if evaluator is None:
            continue
        seeds = (item.seed, classifier_seed(trial.seed, item.seed))  # early versions trained with the listed seed itself
        for name, told, may_be in (
            ("network", item.network, (item.network,)),
            ("ipc", item.ipc, (item.ipc,)),
            ("seed", item.seed, seeds),
        ):
            made = evaluator.spec.get(name)
            if made not in may_be:
                yield f"{name} is {told!r} in its record, {made!r} in evaluate {item.key[:8]}"
        if trial.set is not None and evaluator.inputs.get("set") != trial.set.key:
            yield f"evaluate {item.key[:8]} was trained on another set"


def _field_of(artifact: Artifact, names: Sequence[str]) -> Any:
    """The field of an artifact's spec; of a part that a name may stand for, its name. Fields left out have their default."""
    try:
        found: Any = spec_of(artifact, STAGE_SPECS[artifact.stage])
    except ArtifactError:  # of another form than today's: whether it was changed, its key tells
        found = artifact.spec
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    return getattr(found, "name", found) if isinstance(found, Spec) else found


def _check_hashes(path: Path, report: Path, found: Verification) -> None:
    """Compare the files of the report and the records of the run with the hashes that were written with the report."""
    if not (report / LIST).is_file():
        found.notes.append(f"{LIST} is not there: pictures and drawings of the report were not looked at")
        return
    with found.damage():
        found.problems += changed_since(path, report)


def _check_report(run: Run, report: Path, found: Verification) -> None:
    tables = tables_of(run)
    for name, text in report_texts(run, tables).items():
        path = report / name
        if not path.is_file():
            found.notes.append(f"{name} is not there")
            continue
        before = path.read_bytes().decode(errors="backslashreplace")
        found.num_cells += len(re.findall(r"\d+\.\d+", text))
        if before != text:
            found.problems.append("\n    ".join([f"{path}: differs from what the artifacts say", *_difference(before, text)]))
    page = report / PAGE
    if page.is_file():
        _check_page(page, tables, found)
    else:
        found.notes.append(f"{PAGE} is not there")


def _difference(before: str, after: str) -> list[str]:
    lines = unified_diff(before.splitlines(), after.splitlines(), "file", "artifacts", n=0, lineterm="")
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    more = [f"... {len(changed) - MAX_LINES} lines more"] if len(changed) > MAX_LINES else []
    return [*changed[:MAX_LINES], *more]


def _check_page(page: Path, tables: list[Table], found: Verification) -> None:
    shown = _PageTables()
    shown.feed(page.read_bytes().decode(errors="backslashreplace"))
    for table in tables:
        cells = shown.tables.get(table.title)
        if cells is None:
            found.problems.append(f"{page}: has no table {table.title!r}")
            continue
        expected = [[name, *(cell.text for cell in row)] for name, row in table.rows[:MAX_ROWS]]
        found.num_cells += sum(map(len, expected))
        for place, (was, should) in enumerate(zip(cells, expected, strict=False)):
            if was != should:
                found.problems.append(f"{page}: {table.title}, line {place + 1}: {was} where the artifacts say {should}")
        if len(cells) != len(expected):
            found.problems.append(f"{page}: {table.title} has {len(cells)} lines, expected {len(expected)}")


class _PageTables(HTMLParser):
    """{title: lines of cells} of the page's tables of numbers."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] | None = None
        self._is_body = self._is_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        title = dict(attrs).get("data-title")
        if tag == "table":
            self._rows = self.tables.setdefault(title, []) if title else None
        elif tag == "tbody":
            self._is_body = True
        elif self._rows is not None and self._is_body and tag == "tr":
            self._rows.append([])
        elif self._rows is not None and self._is_body and tag in ("td", "th"):
            self._rows[-1].append("")
            self._is_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._is_cell = False
        elif tag == "tbody":
            self._is_body = False

    def handle_data(self, data: str) -> None:
        if self._is_cell and self._rows:
            self._rows[-1][-1] += data
