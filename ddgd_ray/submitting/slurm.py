"""A batch script for Slurm. Ray's nodes are started by `ray symmetric-run`, whose `ray stop` ends every ray process of the
user on its nodes: such a job takes whole nodes. A job that shares a node with others lets the sweep start a ray of its own."""

import math
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.submitting.files import render
from ddgd_ray.submitting.job import Job, Submission

GRACE_S = 120
LEAVE_S = 40  # before the end, what has not drained is told to leave at once
DRAIN_S = 60.0  # what jobs get to end by default
_WORD = re.compile(r"[A-Za-z0-9_.@,+-]+")
# what an #SBATCH line takes as it stands; sbatch would read % as a pattern
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@+=,:~-]*")

_CONSTRAINT = re.compile(r"[A-Za-z0-9_.&|()*,\[\]-]+")
_OPTION = re.compile(r"--[a-z][a-z-]*(=[^\x00-\x1f\x7f]*)?")
_IMAGE = re.compile(r"[A-Za-z0-9_./:@+#-]+")
# what the script itself counts on
_OURS = {"--nodes", "--ntasks", "--ntasks-per-node", "--cpus-per-task", "--output", "--open-mode", "--signal"}
_OURS |= {"--requeue", "--no-requeue"}


@dataclass(frozen=True)
class Slurm:
    """What a batch script needs besides the job.

    grace_s: seconds between Slurm's notice and the end of a job's time, 0 for what the sweep needs to drain. shares_node: the
    job has one node, and other jobs may use it too.
    """

    partition: str = ""
    account: str = ""
    grace_s: int = 0
    shares_node: bool = False
    qos: str = ""
    constraint: str = ""
    """Features of nodes, as `sbatch --constraint` takes them: a100|h100."""
    lines: tuple[str, ...] = ()
    """Further options of sbatch, each a line of its own: --reservation=ours."""
    container: str = ""
    """An image that Slurm's pyxis starts Ray and the sweep in, with the run folder and the sweep's own folders mounted."""
    mounts: tuple[str, ...] = ()
    """Further paths to mount there, PATH or PATH:INSIDE."""


def slurm_submission(job: Job, slurm: Slurm, folder: Path) -> Submission:
    """The batch script and the sweep's. folder: their place, which all nodes must see. Raises SpecErrors: all at once."""
    logs = log_folder(job, folder)
    slurm = replace(slurm, grace_s=slurm.grace_s or max(GRACE_S, needed_grace(job)))
    _check(job, slurm, logs)
    command = f"sbatch {shlex.quote(str(folder / f'{job.name}.sbatch'))}"
    common = {"name": job.name, "run_dir": job.run_dir, "options": job.options}
    text = render(
        "slurm-job.sh.j2",
        **common,
        command=command,
        nodes=job.nodes,
        cpus=job.cpus,
        gpus=job.gpus,
        memory_gib=job.memory_gib,
        time=job.time,
        partition=slurm.partition,
        account=slurm.account,
        grace_s=slurm.grace_s,
        leave_s=LEAVE_S,
        logs=str(logs),
        env=job.env,
        setup=job.setup,
        is_shared=slurm.shares_node,
        qos=slurm.qos,
        constraint=slurm.constraint,
        lines=slurm.lines,
        container=_container(job, slurm, folder),
        sweep_script=str(folder / f"{job.name}-sweep.sh"),
    )
    sweep = render("slurm-sweep.sh.j2", **common, folder=str(job.folder), file=str(job.file))
    notes = [f"all nodes must see {folder}, {job.file} and {job.run_dir}", f"log: {logs}/JOB.log"]
    if not job.time:
        notes.append("no --time: the partition's limit ends the job")
    return Submission({f"{job.name}.sbatch": text, f"{job.name}-sweep.sh": sweep}, command, tuple(notes))


def _container(job: Job, slurm: Slurm, folder: Path) -> str:
    """Options of srun that start its step in the container, "" without one."""
    if not slurm.container:
        return ""
    own = [str(path) for path in dict.fromkeys((folder, job.file.parent, job.folder))]
    own += [] if job.is_remote else [job.run_dir]
    mounts = ",".join(dict.fromkeys([*(f"{path}:{path}" for path in dict.fromkeys(own)), *map(_mount, slurm.mounts)]))
    return f"--container-image={shlex.quote(slurm.container)} --container-mounts={shlex.quote(mounts)}"


def _mount(text: str) -> str:
    return text if ":" in text else f"{text}:{text}"


def log_folder(job: Job, folder: Path) -> Path:
    """The folder of the job's output, which must be there when Slurm starts the job."""
    return folder / "logs" if job.is_remote else Path(job.run_dir) / job.name / "slurm"


def needed_grace(job: Job) -> int:
    """Seconds from Slurm's notice to the end of the job: its jobs end as the sweep lets them, then ray stops."""
    drain_s = float(job.sweep.spec.resources.model_dump().get("grace_s", DRAIN_S))
    return math.ceil(drain_s) + LEAVE_S


def _check(job: Job, slurm: Slurm, logs: Path) -> None:
    errors = []
    for option, value in (("--partition", slurm.partition), ("--account", slurm.account), ("--qos", slurm.qos)):
        if value and not _WORD.fullmatch(value):
            errors.append(SpecError(f"expected a name, got {value!r}", where=option, fix=f"e.g. {option} gpu"))
    if slurm.constraint and not _CONSTRAINT.fullmatch(slurm.constraint):
        what = f"expected features of nodes, got {slurm.constraint!r}"
        errors.append(SpecError(what, where="--constraint", fix="e.g. --constraint 'a100|h100'"))
    errors += [_no_option(line) for line in slurm.lines if not _OPTION.fullmatch(line) or line.split("=")[0] in _OURS]
    if slurm.mounts and not slurm.container:
        errors.append(SpecError("mounts are for a container", where="--container-mount", fix="add --container IMAGE"))
    for option, text in (("--container", slurm.container), *(("--container-mount", mount) for mount in slurm.mounts)):
        if text and not _IMAGE.fullmatch(text):
            what = f"srun cannot be given this: {text!r}"
            errors.append(SpecError(what, where=option, fix="use letters, digits and _ . / : @ + # -"))
    needed = needed_grace(job)
    if not needed <= slurm.grace_s <= 65535:
        what = f"expected {needed} to 65535 seconds, got {slurm.grace_s}: jobs may need that long to end (resources.grace_s)"
        errors.append(SpecError(what, where="--grace", fix=f"--grace {max(GRACE_S, needed)}"))
    if job.time_s and slurm.grace_s >= job.time_s:
        what = f"the notice comes {slurm.grace_s} s before the end of a job of {job.time_s} s: it would drain from the start"
        errors.append(SpecError(what, where="--grace", fix="a shorter --grace, or a longer --time"))
    if slurm.shares_node and job.nodes > 1:
        what = f"only a job of one node can share it, this one has {job.nodes}"
        errors.append(SpecError(what, where="--share-node", fix="--nodes 1"))
    if not _PLAIN_PATH.fullmatch(str(logs)):
        what = f"Slurm cannot write its log to this path, for its spaces or signs: {str(logs)!r}"
        where = "--to" if job.is_remote else "--run-dir"
        errors.append(SpecError(what, where=where, fix="use letters, digits and _ . @ + = , : ~ - in it"))
    if errors:
        raise SpecErrors(errors)


def _no_option(line: str) -> SpecError:
    if line.split("=")[0] in _OURS:
        return SpecError(f"the script sets {line.split('=')[0]} itself and counts on it", where="--sbatch", fix="leave it out")
    what = f"expected one long option of sbatch, got {line!r}"
    return SpecError(what, where="--sbatch", fix="e.g. --sbatch=--reservation=ours")
