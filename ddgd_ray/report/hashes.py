"""The list of hashes that is written with a report: of its files, and of the records of the run that it was made from.

Tables are compared with the artifacts. A picture, a drawing of the page, the time at which a trial ended: for what nothing else
could be compared with, and for the list itself, `report --verify` has this list.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ddgd_ray.run.reading import SEED_POLICY, SWEEP_FILE, trial_files
from ddgd_ray.run.records import Record
from ddgd_ray.spec.base import canonical_json
from ddgd_ray.storage.commit import write_atomically
from ddgd_ray.storage.manifest import file_sha256

LIST = "hashes.json"


class ReportHashes(Record):
    """SHA-256 of files, by their names relative to the report's folder and to the run's."""

    report: dict[str, str]
    run: dict[str, str]
    own: str
    """SHA-256 of both lists."""

    @property
    def is_sound(self) -> bool:
        return self.own == _own(self.report, self.run)


def _own(report: Mapping[str, str], run: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json([dict(report), dict(run)]).encode()).hexdigest()


def write_hashes(run: Path, out: Path, files: Iterable[Path]) -> Path:
    """The path of the list, once it is written. run: the run's folder; files: those of the report, which lie in `out`."""
    of_report = {str(file.relative_to(out)): file_sha256(file) for file in sorted(files)}
    of_run = {str(file.relative_to(run)): file_sha256(file) for file in record_files(run)}
    found = ReportHashes(report=of_report, run=of_run, own=_own(of_report, of_run))
    write_atomically(out / LIST, found.as_text())
    return out / LIST


def record_files(run: Path) -> list[Path]:
    """The files of a run's folder that a report goes by."""
    known = (run / SWEEP_FILE, run / SEED_POLICY)
    return [*(file for file in known if file.is_file()), *trial_files(run)]


def changed_since(run: Path, out: Path) -> Iterator[str]:
    """A line for each file that is not what it was when the report was written. Raises ArtifactError for an unreadable list."""
    listed = ReportHashes.read(out / LIST)
    if not listed.is_sound:
        yield f"{out / LIST}: was changed since it was written; write the report again"
    for folder, files in ((out, listed.report), (run, listed.run)):
        for name, sha256 in files.items():
            what = _change(folder / name, sha256)
            if what:
                yield f"{folder / name}: {what}"
    for file in record_files(run):
        if str(file.relative_to(run)) not in listed.run:
            yield f"{file}: came after the report was written; write the report again"


def _change(file: Path, sha256: str) -> str:
    try:
        is_same = file_sha256(file) == sha256
    except OSError as err:
        return f"cannot be read: {err.strerror}"
    return "" if is_same else "is not what it was when the report was written: damaged, or the run went on since"
