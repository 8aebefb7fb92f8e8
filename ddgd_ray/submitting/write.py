"""Templates to texts, and texts to files."""

import io
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.submitting.job import Job, Submission


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


def sweep_script(job: Job, file: str, folder: str) -> str:
    """What runs on a head node whose ray is up. file and folder: the sweep file and the working directory there."""
    return render(
        "sweep.sh.j2",
        name=job.name,
        env=job.env,
        setup=job.setup,
        folder=folder,
        file=file,
        run_dir=job.run_dir,
        options=job.options,
    )


def as_yaml(*documents: Mapping[str, Any]) -> str:
    """Several documents in one text; texts of several lines stay readable."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10_000  # a long command is not folded
    out = io.StringIO()
    yaml.dump_all([_literal(document) for document in documents], out)
    return out.getvalue()


def _literal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(inner) for inner in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value


def write(submission: Submission, folder: Path) -> list[Path]:
    """Write the files; scripts are for their owner to run. Raises SpecError for a script that is no valid shell, before any
    file is written, and StageError for a folder that cannot be written."""
    for name, text in submission.files.items():
        if name.endswith((".sh", ".sbatch")):
            refuse_broken(name, text)
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


def refuse_broken(name: str, text: str) -> None:
    """bash reads the script without running it; nothing of ours can be wrong there, what --setup holds can."""
    bash = shutil.which("bash")
    if bash is None:
        return
    read = subprocess.run([bash, "-n"], input=text, text=True, capture_output=True, check=False)
    if read.returncode:
        what = f"bash does not understand {name} with it: {read.stderr.strip().splitlines()[0]}"
        raise SpecError(what, where="--setup", fix="close its quotes and brackets")
