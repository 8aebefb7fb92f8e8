"""A sweep to be submitted and the nodes it gets. All that is wrong with them is said before a file is written."""

import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.errors import SpecError
from ddgd_ray.plain_files import read_text
from ddgd_ray.redact import has_secret
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import AmountsSpec, ResourcesSpec

# what a job may ask of a node: the option that offers it, and its name for people
OFFERED = {
    "gpus": ("--gpus-per-node", "GPUs"),
    "cpus": ("--cpus-per-node", "CPUs"),
    "memory_gb": ("--memory-per-node", "GB of memory"),
}
VARIABLES = "e.g. --env MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD"
TIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")


@dataclass(frozen=True)
class Job:
    """One sweep on nodes of one kind.

    options: further options of `ddgd-ray sweep`. run_dir: an absolute path that all nodes see, or s3://BUCKET/FOLDER.

    gpus and cpus are those of a node. memory_gib: of a node, 0 for the scheduler's default. time: [D-]HH:MM:SS or "" for the
    scheduler's limit. env: names of variables that the sweep needs; their values never enter a file. setup: shell commands
    before the sweep, as the user wrote them. folder: where `submit` was called; relative paths of the sweep start there.
    """

    sweep: Sweep
    file: Path
    options: tuple[str, ...]
    run_dir: str
    folder: Path
    nodes: int = 1
    gpus: int = 0
    cpus: int = 8
    memory_gib: int = 0
    time: str = ""
    env: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.sweep.spec.name

    @property
    def is_remote(self) -> bool:
        """Whether the run lies in an object store."""
        return "://" in self.run_dir

    @property
    def time_s(self) -> int:
        """Seconds of `time`; 0 when it is not given."""
        found = TIME.fullmatch(self.time)
        if found is None:
            return 0
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class Submission:
    """The files for a scheduler, {name in the folder: text}; the command that submits them; notes of what the user must do."""

    files: dict[str, str]
    command: str
    notes: tuple[str, ...] = ()


def check_job(job: Job) -> list[SpecError]:
    """Errors of everything that no backend could serve."""
    errors = []
    for option, value, lowest in (
        ("--nodes", job.nodes, 1),
        ("--gpus-per-node", job.gpus, 0),
        ("--cpus-per-node", job.cpus, 1),
        ("--memory-per-node", job.memory_gib, 0),
    ):
        if value < lowest:
            errors.append(SpecError(f"expected {lowest} or more, got {value}", where=option, fix=f"{option} {max(lowest, 1)}"))
    if job.time and not TIME.fullmatch(job.time):
        what = f"expected [D-]HH:MM:SS, got {job.time!r}"
        errors.append(SpecError(what, where="--time", fix="e.g. --time 24:00:00 or --time 2-00:00:00"))
    for entry in job.env:
        name, equals, _ = entry.partition("=")
        if equals:
            what = "expected the name of a variable, got a value too; values would stand readable in the files"
            errors.append(SpecError(what, where="--env", fix=f"--env {name if VARIABLE.fullmatch(name) else 'NAME'}"))
        elif not VARIABLE.fullmatch(entry):
            errors.append(SpecError(f"{entry!r} cannot name a variable", where="--env", fix="e.g. --env HF_TOKEN"))
    errors += refuse_control({"FILE": [str(job.file)], "--run-dir": [job.run_dir], "--setup": job.setup, "--": job.options})
    errors += refuse_control({"the working directory": [str(job.folder)]})
    given = [("--run-dir", job.run_dir), ("--setup", "\n".join(job.setup)), ("--", " ".join(job.options))]
    for where, text in [*given, ("FILE", _text(job.file))]:
        if has_secret(text):
            what = "a password or token would stand readable in the files"
            errors.append(
                SpecError(
                    what, code="secret", where=where, fix=f"leave it out and name the variables that hold it, {VARIABLES}"
                )
            )
    errors += [error for command in job.setup for error in _broken(command)]
    return errors + misfits(job.sweep.spec.resources, nodes=job.nodes, gpus=job.gpus, cpus=job.cpus, memory_gib=job.memory_gib)


def _text(file: Path) -> str:
    """The text of the sweep file, which some schedulers take along; "" of one that cannot be read, which is told elsewhere."""
    try:
        return read_text(file)
    except (OSError, ValueError):
        return ""


def refuse_control(texts: dict[str, Iterable[str]]) -> list[SpecError]:
    """Errors for texts with line breaks and other control characters: no quoting is sure to survive every file format."""
    return [
        SpecError(f"holds a line break or another control character: {text!r}", where=where, fix="use plain text")
        for where, all_texts in texts.items()
        for text in all_texts
        if _CONTROL.search(text)
    ]


def _broken(command: str) -> list[SpecError]:
    """The error of a command that bash does not understand: an open quote would swallow the script behind it. Nothing runs."""
    bash = shutil.which("bash")
    if bash is None:
        return []
    read = subprocess.run([bash, "-n"], input=command, text=True, capture_output=True, check=False)
    if not read.returncode:
        return []
    what = f"bash does not understand it: {read.stderr.strip().splitlines()[0]}"
    return [SpecError(what, where="--setup", fix="close its quotes and brackets")]


def misfits(resources: ResourcesSpec, *, nodes: int, gpus: int, cpus: int, memory_gib: int = 0) -> list[SpecError]:
    """Errors of jobs of the sweep that could not run on these nodes: a job that fits nowhere would wait for ever."""
    offered = {"gpus": float(gpus), "cpus": float(cpus)} | ({"memory_gb": memory_gib * 2**30 / 1e9} if memory_gib else {})
    errors: list[SpecError] = []
    for field, amounts in _amounts(resources):
        asked = amounts.model_dump()
        found = []
        for name, amount in offered.items():
            option, unit = OFFERED[name]
            if asked.get(name, 0) > amount:
                what = f"a job of the sweep asks for {asked[name]:g} {unit} ({field}.{name}), a node has {amount:g}"
                fix = f"{option} {math.ceil(asked[name])}, or lower {field}.{name}"
                found.append(SpecError(what, code="infeasible", where=option, fix=fix))
        shares = [int(amount / asked[name]) for name, amount in offered.items() if asked.get(name, 0)]
        if not found and shares and nodes * min(shares) < asked["workers"]:
            what = (
                f"a job of the sweep has {asked['workers']:g} workers, and {nodes * min(shares)} fit on {nodes} of these nodes"
            )
            fix = f"more or larger nodes, or lower {field}.workers"
            found.append(SpecError(what, code="infeasible", where="--nodes", fix=fix))
        errors += found
    return errors


def _amounts(resources: ResourcesSpec) -> Iterator[tuple[str, AmountsSpec]]:
    """(field, what a worker holds and how many there are): of all jobs, then of the stages that ask for other amounts."""
    yield "resources", resources
    for stage in resources.stages:
        yield f"resources.stages.{stage}", resources.of(stage)
