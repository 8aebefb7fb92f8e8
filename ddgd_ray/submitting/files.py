"""The files of a submission: the sweep's own, taken along, and those that are made from templates."""

import io
import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.plain_files import read_text
from ddgd_ray.spec.shipped import find_file
from ddgd_ray.submitting.job import Job, Submission

SWEEP = "sweep.yaml"
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9./_-]*")
_WORDS_OF_YAML_1 = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class SweepFiles:
    """The files that a sweep is read from, for machines that do not see them here.

    sweep: its path in the folder that is taken along. texts: {path there: text}; as far apart as the files are here.
    """

    sweep: str
    texts: dict[str, str]


def sweep_files(job: Job, errors: list[SpecError]) -> SweepFiles:
    """The sweep file, and the search space that it names. What is wrong goes to `errors`."""
    search = job.sweep.spec.search
    if search is None:
        return SweepFiles(SWEEP, {SWEEP: read_text(job.file)})
    if posixpath.isabs(search.space):
        what = f"this file is not taken along, its path is absolute: {search.space}"
        errors.append(SpecError(what, where="search.space", fix="give its path from the sweep file"))
    parts = posixpath.normpath(search.space).split("/")
    up = parts.count("..")
    sweep = "/".join(["sweep"] * up + [SWEEP])  # a folder for each step up, so that `..` leads to a place of ours
    beside = job.file.parent / search.space
    space = beside if beside.is_file() else find_file(Path(search.space))
    space = job.folder / space
    return SweepFiles(sweep, {sweep: read_text(job.file), "/".join(parts[up:]): read_text(space)})


def render(template: str, **values: Any) -> str:
    """A template of this package, filled in; a name that it uses and does not get is an error. `| sh` quotes for a shell."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ddgd_ray.submitting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sh"] = shlex.quote
    return environment.get_template(template).render(**values)


def sweep_script(job: Job, file: str, folder: str, scheduled_as: str = "") -> str:
    """The script that runs on a head node whose ray is up. file and folder: the sweep file and the working directory there.

    scheduled_as: the scheduler's name for the job, of which it never runs two; "" without a scheduler.
    """
    return render(
        "sweep.sh.j2",
        name=job.name,
        env=job.env,
        setup=job.setup,
        folder=folder,
        file=file,
        run_dir=job.run_dir,
        nodes=job.nodes,
        options=job.options,
        scheduled_as=scheduled_as,
    )


def as_yaml(*documents: Mapping[str, Any]) -> str:
    """One text of several documents, read alike by YAML 1.1 and 1.2; texts of several lines stay readable."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10_000  # a long command is not folded
    out = io.StringIO()
    yaml.dump_all([_styled(document) for document in documents], out)
    return out.getvalue()


def _styled(value: Any) -> Any:
    """A copy, so that no alias is written, with quotes around what YAML 1.1 would read as something else than text."""
    if isinstance(value, Mapping):
        return {key: _styled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_styled(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if "\n" in value:
        return LiteralScalarString(value)
    return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML_1 else DoubleQuotedScalarString(value)


def write(submission: Submission, folder: Path) -> list[Path]:
    """The paths of the files, written; scripts may be executed. Raises StageError for a folder that cannot be written."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in submission.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755 if name.endswith((".sh", ".sbatch")) else 0o644)
            written.append(path)
    except OSError as err:
        what = f"cannot be written: {err.strerror}"
        raise StageError(what, where=str(folder), fix="choose another folder: --to FOLDER") from err
    return written
