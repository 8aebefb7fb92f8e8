"""The folder of one run as its driver writes it: what was asked, one record a trial, the lock, the outbox of the tracker."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ddgd_ray import __version__
from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.plan.plan import Evaluator, Trial
from ddgd_ray.run.identity import changes, identity_of
from ddgd_ray.run.reading import SWEEP_FILE, read_sweep_record
from ddgd_ray.run.records import DAMAGED, EvaluatorRecord, QualityRecord, State, SweepRecord, TrialRecord
from ddgd_ray.run.remote_copy import RemoteCopy
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.stages.base import StageCall, stop_now_file
from ddgd_ray.storage.addresses import local_folder, url_of
from ddgd_ray.storage.remote import Remote
from ddgd_ray.storage.remote_store import RemoteStore
from ddgd_ray.storage.store import Store, make_writable, write_atomically

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"


def open_store(run_dir: Path | str) -> Store:
    """`run_dir/store`, or the store behind a URL or its local folder, backed by the checkpoints that ship with the package."""
    folder = local_folder(run_dir)  # absolute: workers have working directories of their own
    url = url_of(folder)
    return RemoteStore(Remote(url), (BUNDLED,)) if url else Store(folder / "store", (BUNDLED,))


@dataclass
class TrialProgress:
    """A trial of a sweep under way, and its state so far."""

    trial: Trial
    state: State = "planned"
    errors: dict[str, str] = field(default_factory=dict)
    """{key of a stage call: message} of what failed."""
    attempts: dict[str, int] = field(default_factory=dict)
    """{key of a stage call: number} where it took more than one."""
    finished: float = 0.0
    is_finalist: bool = False
    """Whether its classifiers see the test images (`test: finalists`)."""

    def calls(self) -> Iterator[StageCall]:
        """Every stage call that the trial needs now."""
        yield from self.trial.calls()
        if self.is_finalist:
            yield from (item.test for item in self.trial.evaluators if item.test is not None)

    @property
    def record(self) -> TrialRecord:
        """What the run folder keeps: everything a report or a tracker needs besides the artifacts themselves."""
        trial = self.trial
        return TrialRecord(
            name=trial.name,
            arm=trial.arm,
            params=dict(trial.params),
            seed=trial.seed,
            rung=trial.rung,
            is_control=trial.is_control,
            state=self.state,
            prepare=tuple(call.ref for call in trial.prepare),
            build=tuple(call.ref for call in trial.build),
            labels=tuple(call.ref for call in trial.labels),
            evaluators=tuple(map(self._evaluator, trial.evaluators)),
            quality=tuple(QualityRecord(*measure.calls[-1].ref, measure.label) for measure in trial.measures),
            measures=tuple(tuple(call.ref for call in measure.calls) for measure in trial.measures),
            folder=trial.folder,
            errors=dict(self.errors),
            attempts=dict(self.attempts),
            finished=self.finished,
        )

    def _evaluator(self, planned: Evaluator) -> EvaluatorRecord:
        return EvaluatorRecord(
            network=planned.network,
            ipc=planned.ipc,
            seed=planned.seed,
            protocol=planned.protocol,
            stage=planned.call.stage,
            key=planned.call.key,
            test=planned.test.ref if planned.test is not None and self.is_finalist else None,
        )


class RunFolder:
    """`run_dir/name/`, with the store and MLflow's database beside it."""

    def __init__(self, run_dir: Path | str, name: str) -> None:
        self.run_dir = local_folder(run_dir)
        self.path = self.run_dir / name
        self.remote_copy = RemoteCopy(self.path)
        self.trials = self.path / "trials"
        self.outbox = self.path / "outbox"
        self.stop_file = self.path / "stop"
        """The file that exists once running jobs are to keep what they have and end; stages/base.py, Context."""

    def prepare(self) -> None:
        """Create the folders. Raises StageError when they cannot be written."""
        make_writable("the run folder", self.path, self.trials, self.outbox)
        self.remote_copy.prepare()

    @contextmanager
    def lock(self, *, force: bool = False) -> Iterator[None]:
        """A block in which this process alone drives the run. Raises ArtifactError that names the holder.

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
            with (self.path / "lock").open("r+") as file:
                is_free = _flock(file)
                file.seek(0)
                line = file.read().strip()
        except OSError:
            return ""
        return "" if is_free and f" on {socket.gethostname()} " in f"{line} " else line

    def order_stop(self, *, now: bool = False) -> None:
        """Order the running jobs that can go on later to stop soon; with `now` the others too, which lose what they have."""
        self.stop_file.touch()
        if now:
            stop_now_file(self.stop_file).touch()

    def withdraw_stop(self) -> None:
        """Take back the order to stop that an earlier start was given. For the holder of the lock."""
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
        identity, started = identity_of(sweep), time.time()
        before = self._remembered()
        if before is not None:
            started = before.started or started
            found = changes(before.identity, identity)
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
        record = SweepRecord(
            ddgd_ray=__version__,
            started=started,
            name=sweep.spec.name,
            identity=identity,
            spec=sweep.spec,
            source=sweep.source.source,
        )
        # the order of `vary` is that of the table
        write_atomically(self.path / SWEEP_FILE, record.as_text(sort_keys=False))

    def _remembered(self) -> SweepRecord | None:
        """sweep.json as it was written, None without one and where it is damaged: it is written anew from the sweep file.

        Raises ArtifactError when another version of the project wrote it.
        """
        if not self.is_remembered:
            return None
        try:
            return read_sweep_record(self.path)
        except ArtifactError as err:
            if err.code != DAMAGED:
                raise
            log.warning("%s is written anew: it %s", self.path / SWEEP_FILE, err.what)
            return None

    @property
    def is_remembered(self) -> bool:
        return (self.path / SWEEP_FILE).is_file()

    def forget(self) -> None:
        """Give the name free again, before anything ran under it."""
        (self.path / SWEEP_FILE).unlink(missing_ok=True)

    def readable_trials(self) -> Iterator[TrialRecord]:
        """The trial records that can be read, lower rungs included; the store tells the others again."""
        for path in sorted(self.trials.glob("*.json")):
            with suppress(ArtifactError):
                yield TrialRecord.read(path)

    def write(self, progress: TrialProgress) -> None:
        """Write the trial's record into the run folder, and that of a finished trial into the tracker's outbox too.

        A record that says as much already stays: how often a job was tried is known to the start that tried it.
        """
        record = progress.record
        path = self.trials / f"{record.name}.json"
        with suppress(ArtifactError):
            before = TrialRecord.read(path)
            if _says_as_much(before, record):
                return
        text = record.as_text()
        write_atomically(path, text)
        if record.state != "planned":
            write_atomically(self.outbox / f"{record.name}.json", text)


def _says_as_much(before: TrialRecord, now: TrialRecord) -> bool:
    needs = (before.build, before.labels, before.evaluators, before.quality, before.measures)
    if needs != (now.build, now.labels, now.evaluators, now.quality, now.measures):
        return False
    return now.state == "planned" or (before.state, before.errors) == (now.state, now.errors)


def _flock(file: TextIO) -> bool:
    """Whether this open file has got the lock; it goes when the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
