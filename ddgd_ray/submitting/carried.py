"""The files that a sweep is read from, taken along to machines that do not see them here."""

import posixpath
from dataclasses import dataclass

from ddgd_ray.errors import SpecError
from ddgd_ray.submitting.job import Job

SWEEP = "sweep.yaml"


@dataclass(frozen=True)
class Carried:
    """sweep: its path in the folder that is taken along. files: {path there: text}; as far apart as they are here."""

    sweep: str
    files: dict[str, str]


def carried(job: Job, errors: list[SpecError]) -> Carried:
    """What is wrong goes to `errors`."""
    search = job.sweep.spec.search
    if search is None:
        return Carried(SWEEP, {SWEEP: job.file.read_text()})
    if posixpath.isabs(search.space):
        what = f"this file is not taken along, its path is absolute: {search.space}"
        errors.append(SpecError(what, where="search.space", fix="give its path from the sweep file"))
    parts = posixpath.normpath(search.space).split("/")
    up = parts.count("..")
    sweep = "/".join(["sweep"] * up + [SWEEP])  # a folder for each step up, so that `..` leads to a place of ours
    beside = job.file.parent / search.space
    space = beside if beside.is_file() else job.folder / search.space
    return Carried(sweep, {sweep: job.file.read_text(), "/".join(parts[up:]): space.read_text()})
