"""Templates to texts, and texts to files."""

import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from ddgd_ray.errors import StageError
from ddgd_ray.submitting.job import Job, Submission

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9./_-]*")
_WORDS_OF_YAML_1 = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


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
    """What runs on a head node whose ray is up. file and folder: the sweep file and the working directory there.

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
    """Several documents in one text, read alike by YAML 1.1 and 1.2; texts of several lines stay readable."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10_000  # a long command is not folded
    out = io.StringIO()
    yaml.dump_all([_styled(document) for document in documents], out)
    return out.getvalue()


def _styled(value: Any) -> Any:
    """Copies, so that no alias is written; quotes around what YAML 1.1 would read as something else than text."""
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
    """Write the files, scripts fit to be run. Raises StageError for a folder that cannot be written."""
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
