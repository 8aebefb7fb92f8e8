"""The folder of one run: what was asked (`sweep.json`), one record per trial, the lock, and the outbox of the tracker."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ddgd_ray import __version__
from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.plan.plan import Evaluator, Trial
from ddgd_ray.run.identity import changes, identity_of
from ddgd_ray.run.remote_copy import RemoteCopy
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.stages.base import StageCall, stop_now_file
from ddgd_ray.storage.addresses import local_folder, url_of
from ddgd_ray.storage.remote import Remote
from ddgd_ray.storage.remote_store import RemoteStore
from ddgd_ray.storage.store import Store, make_writable, write_atomically

SCHEMA = 1
ALLOTMENT = "allotment.json"
BUNDLED = Path(__file__).resolve().parent.parent / "bundled"


def open_store(run_dir: Path | str) -> Store:
    """`run_dir/store`, or the store behind a URL or its local folder, backed by the checkpoints that ship with the package."""
    folder = local_folder(run_dir)  # absolute: workers have working directories of their own
    url = url_of(folder)
    return RemoteStore(Remote(url), (BUNDLED,)) if url else Store(folder / "store", (BUNDLED,))


@dataclass
class TrialRecord:
    """The ledger's line of one trial: everything a report or a tracker needs besides the artifacts themselves."""

    trial: Trial
    state: str = "planned"  # planned, done, failed
    errors: dict[str, str] = field(default_factory=dict)
    """{stage key: message} of what failed."""
    attempts: dict[str, int] = field(default_factory=dict)
    """{stage key: number} where it took more than one."""
    finished: float = 0.0
    is_finalist: bool = False
    """Its classifiers see the test images (`test: finalists`)."""

    def calls(self) -> Iterator[StageCall]:
        yield from self.trial.calls()
        if self.is_finalist:
            yield from (item.test for item in self.trial.evaluators if item.test is not None)

    def as_json(self) -> dict[str, Any]:
        trial = self.trial

        def one(evaluator: Evaluator) -> dict[str, Any]:
            labels = {"network": evaluator.network, "ipc": evaluator.ipc, "seed": evaluator.seed}
            made = {"protocol": evaluator.protocol, "stage": evaluator.call.stage, "key": evaluator.call.key}
            tested = {"test": list(evaluator.test.ref)} if evaluator.test is not None and self.is_finalist else {}
            return {**labels, **made, **tested}

        return {
            "schema": SCHEMA,
            "name": trial.name,
            "arm": trial.arm,
            "params": dict(trial.params),
            "seed": trial.seed,
            "rung": trial.rung,
            "is_control": trial.is_control,
            "state": self.state,
            "prepare": [list(call.ref) for call in trial.prepare],
            "build": [list(call.ref) for call in trial.build],
            "evaluators": [one(evaluator) for evaluator in trial.evaluators],
            "quality": [[*measure.calls[-1].ref, measure.label] for measure in trial.measures],
            "measures": [[list(call.ref) for call in measure.calls] for measure in trial.measures],
            "folder": trial.folder,
            "errors": self.errors,
            "attempts": self.attempts,
            "finished": self.finished,
        }


class RunFolder:
    """`run_dir/name/`, with the store and MLflow's database beside it."""

    def __init__(self, run_dir: Path | str, name: str) -> None:
        self.run_dir = local_folder(run_dir)
        self.path = self.run_dir / name
        self.remote_copy = RemoteCopy(self.path)
        self.trials = self.path / "trials"
        self.outbox = self.path / "outbox"
        self.stop_file = self.path / "stop"
        """Exists once running jobs are to keep what they have and end; stages/base.py, Context."""

    def prepare(self) -> None:
        """Create the folders. Raises StageError when they cannot be written."""
        make_writable("the run folder", self.path, self.trials, self.outbox)
        self.remote_copy.prepare()

    @contextmanager
    def lock(self, *, force: bool = False) -> Iterator[None]:
        """One driver a run. Raises ArtifactError that names the holder.

        On one host the kernel frees the lock when its holder dies. A holder on another host may be alive where its lock is not
        seen here: its line stays until it takes it away, or until `force`. A scheduler runs a job once at a time: the job that
        DDGD_JOB names takes over at once what its earlier start left, on whatever host that was.
        """
        job = os.environ.get("DDGD_JOB", "").strip()
        of_job = f" for job {job}" if job else ""
        with (self.path / "lock").open("a+") as file:
            is_free = _flock(file)
            file.seek(0)
            line = file.read().strip()
            is_ours = bool(of_job) and line.endswith(of_job)
            elsewhere = bool(line) and not is_ours and f" on {socket.gethostname()} " not in line
            if not is_free or (elsewhere and not force):
                what = f"this run is locked by {line or 'another process'}"
                fix = "if that process is gone for certain: --force-unlock" if is_free else "wait for it, or stop that process"
                raise ArtifactError(what, code="locked", where=str(self.path), fix=fix)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}{of_job}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def holder(self) -> str:
        """`process PID on HOST since TIME for job JOB` of the driver that holds the lock, "" of none."""
        try:
            with (self.path / "lock").open("a+") as file:
                is_free = _flock(file)
                file.seek(0)
                line = file.read().strip()
        except OSError:
            return ""
        return "" if is_free and f" on {socket.gethostname()} " in f"{line} " else line

    def order_stop(self, *, now: bool = False) -> None:
        """Running jobs that can go on later stop soon; with `now` the others too, and lose what they have."""
        self.stop_file.touch()
        if now:
            stop_now_file(self.stop_file).touch()

    def withdraw_stop(self) -> None:
        """Of an earlier start; for the holder of the lock."""
        self.stop_file.unlink(missing_ok=True)
        stop_now_file(self.stop_file).unlink(missing_ok=True)
        self.remote_copy.withdraw_stop()

    @property
    def is_told_to_stop(self) -> bool:
        return self.stop_file.exists()

    def remember(self, sweep: Sweep, *, amend: bool = False) -> None:
        """Write sweep.json, or check that the folder belongs to the same sweep. Raises SpecError with the differing fields.

        More seeds, networks, controls, values or trials, and ipc below its largest, continue a sweep, with `amend`: what is
        done stays. Another preset, grid or recipe under the same name would mix two tables; fewer of anything would leave lines
        of no use behind.
        """
        path = self.path / "sweep.json"
        identity, started = identity_of(sweep), time.time()
        if path.is_file():
            before = _read_line(path)
            started = before.get("started", started)
            if before.get("schema", SCHEMA) != SCHEMA:
                what = f"expected schema {SCHEMA}, found schema {before['schema']}: another version of ddgd-ray made this run"
                raise ArtifactError(what, where=str(path), fix="use that version, or another --run-dir")
            found = changes(before.get("identity", {}), identity)
            others = [change for change in found if not change.keeps]
            said = "\n".join(f"    {change.line}" for change in (others or found))
            if others:
                raise SpecError(
                    f"this folder holds another sweep:\n{said}",
                    code="other-sweep",
                    where=str(self.path),
                    fix="give the changed sweep another name (--set name=...); finished stages are shared all the same",
                )
            if found and not amend:
                raise SpecError(
                    f"this folder holds a smaller sweep of the same kind:\n{said}",
                    code="changed-sweep",
                    where=str(self.path),
                    fix="--amend continues it with these changes; all that is done stays",
                )
        content = {
            "schema": SCHEMA,
            "ddgd_ray": __version__,
            "started": started,
            "name": sweep.spec.name,
            "identity": identity,
            "spec": sweep.spec.canonical(),
            "source": sweep.source.source,
        }
        write_atomically(path, json.dumps(content, indent=1))  # the order of `vary` is that of the table

    @property
    def is_remembered(self) -> bool:
        return (self.path / "sweep.json").is_file()

    def forget(self) -> None:
        """Give the name free again, before anything ran under it."""
        (self.path / "sweep.json").unlink(missing_ok=True)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The ledger, lower rungs included; what cannot be read is left out."""
        yield from filter(None, map(_read_line, sorted(self.trials.glob("*.json"))))

    def write(self, record: TrialRecord) -> None:
        """The trial's line in the ledger; a finished trial also goes to the tracker's outbox.

        A line that says as much already stays: how often a job was tried is known to the start that tried it.
        """
        line = record.as_json()
        path = self.trials / f"{record.trial.name}.json"
        before = _read_line(path)
        what = ("build", "evaluators", "quality", "measures")
        same = what if record.state == "planned" else (*what, "state", "errors")
        if before and all(before.get(name, []) == line[name] for name in same):
            return
        text = json.dumps(line, indent=1, sort_keys=True)
        write_atomically(path, text)
        if record.state != "planned":
            write_atomically(self.outbox / f"{record.trial.name}.json", text)


def _flock(file: TextIO) -> bool:
    """Whether this open file has got the lock; it goes when the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read_line(path: Path) -> dict[str, Any]:
    """{} when there is none or it cannot be read."""
    try:
        line = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return line if isinstance(line, dict) else {}
