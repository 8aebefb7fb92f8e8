"""Tracking beside the sweep: a shipper process takes finished trials from the outbox on disk. Never on the sweep's path."""

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ddgd_ray.doctor.services import UNFIT_FIX, unfit_uri
from ddgd_ray.errors import SpecError
from ddgd_ray.redact import redact
from ddgd_ray.run.folder import RunFolder
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.storage.addresses import plain_link
from ddgd_ray.tracking.outbox import SWEEP, Outbox, Undelivered

log = logging.getLogger(__name__)

URI = "MLFLOW_TRACKING_URI"
POLL_S = 0.5
TRIES = 8
"""How often one entry is tried while the sweep runs; then it is left for the end."""
LONGEST_PAUSE_S = 60.0
SYNC_TRIES, SYNC_PAUSE_S = 5, 8.0
"""Tries and longest pause of `mlflow sync`: together longer than a database stays locked."""
LAST_TRIES, LAST_PAUSE_S = 3, 1.0
"""Tries and longest pause at the end of a sweep, when somebody waits."""
KILL_AFTER_S = 0.5


class Destination(Protocol):
    """A place that records are sent to. Sending one again changes nothing."""

    def ship(self, trial: TrialRecord) -> None: ...

    def finish(self) -> None:
        """End the sweep's own run, with its report."""


def default_uri(run_dir: Path) -> str:
    """The address of the database in a run directory. MLflow takes ? # % in a path for parts of an address."""
    return f"sqlite:///{plain_link(run_dir.absolute()) / 'mlflow.db'}"


def uri_of(argument: str | None, run_dir: Path) -> str:
    """The address that was asked for, else that of $MLFLOW_TRACKING_URI, else the run's own database.

    The variable is there for addresses with passwords: process lists show arguments.
    """
    return argument or os.environ.get(URI) or default_uri(run_dir)


def refuse_unfit(argument: str | None) -> None:
    """Raises SpecError for an address that MLflow cannot write to at all: a later try would not help."""
    uri = argument or os.environ.get(URI) or ""
    what = unfit_uri(uri) if uri else ""
    if what:
        raise SpecError(what, code="tracking", where="--tracking-uri" if argument else URI, fix=UNFIT_FIX)


def waiting(folder: RunFolder) -> list[str]:
    """The names of the records that wait to be sent."""
    return Outbox(folder.outbox).waiting()


def start_shipper(folder: RunFolder, uri: str) -> subprocess.Popen[bytes]:
    """A process of its own, at low priority, that sends what comes into the outbox until it is closed."""
    outbox = Outbox(folder.outbox)
    outbox.open()
    outbox.note("")
    command = [sys.executable, "-m", "ddgd_ray.cli", "mlflow", "sync", str(folder.path), "--follow", str(os.getpid())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {URI: uri}
    with (folder.path / "tracker.log").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)


def close(folder: RunFolder, shipper: subprocess.Popen[bytes], wait_s: float) -> Undelivered:
    """The records that are undelivered once the shipper has had `wait_s` to finish; no more trials will come."""
    outbox = Outbox(folder.outbox)
    outbox.close()
    try:
        shipper.wait(wait_s)
    except subprocess.TimeoutExpired:
        shipper.terminate()
        try:
            shipper.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            shipper.kill()
    return outbox.undelivered()


def ship_all(
    folder: RunFolder,
    connect: Callable[[], Destination],
    is_refusal: Callable[[Exception], bool],
    *,
    follow_pid: int = 0,
    tries: int = SYNC_TRIES,
) -> Undelivered:
    """The records that are undelivered after everything that waits, or was refused before, has been tried.

    With `follow_pid`, what comes until that process closes the outbox or is gone is sent too. Raises ArtifactError while
    another process sends. is_refusal: whether an error speaks of the record alone. tries: how often each record, and a server
    that does not answer, is tried without `follow_pid`.
    """
    outbox = Outbox(folder.outbox)
    with outbox.lock(wait=bool(follow_pid)):
        if not follow_pid:
            outbox.readmit()
            outbox.add_sweep()
        delivery = _Delivery(outbox, connect, is_refusal)
        if follow_pid:
            delivery.connect()  # importing MLflow takes seconds: not at the end, when somebody waits
        while follow_pid and not outbox.is_closed:
            if not _is_alive(follow_pid):
                outbox.close()
                break
            delivery.round()
            time.sleep(POLL_S)
        delivery.last_rounds(*((LAST_TRIES, LAST_PAUSE_S) if follow_pid else (tries, SYNC_PAUSE_S)))
        return outbox.undelivered()


class _Delivery:
    """Tries every entry that is due. One that failed is due again after a pause that doubles; the others do not wait for it."""

    def __init__(self, outbox: Outbox, connect: Callable[[], Destination], is_refusal: Callable[[Exception], bool]) -> None:
        self._outbox, self._connect, self._is_refusal = outbox, connect, is_refusal
        self._destination: Destination | None = None
        self._failures: Counter[str] = Counter()
        self._due: dict[str, float] = {}
        self._is_last = False
        self._tries, self._longest_s = TRIES, LONGEST_PAUSE_S

    def connect(self) -> None:
        if self._destination is not None:
            return
        try:
            self._destination = self._connect()
        except Exception as err:  # whatever the server or the database says: nothing is lost
            self._postpone("", err)
            return
        self._failures[""] = 0

    def round(self) -> None:
        for name in self._outbox.waiting():
            if name == SWEEP and not self._is_last:
                continue
            if self._is_due("") and self._is_due(name):
                self._try(name)

    def last_rounds(self, tries: int, longest_s: float) -> None:
        """A few more tries for everything, then leave it."""
        self._is_last, self._tries, self._longest_s = True, tries, longest_s
        self._failures.clear()
        self._due.clear()
        while self._has_hope():
            self.round()
            if self._has_hope():
                time.sleep(LAST_PAUSE_S / 4)

    def _has_hope(self) -> bool:
        """Whether the server, and an entry that waits, have tries left."""
        return self._is_allowed("") and any(self._is_allowed(name) for name in self._outbox.waiting())

    def _is_allowed(self, name: str) -> bool:
        is_patient = not (name or self._is_last)  # a server may be away for days
        return is_patient or self._failures[name] < self._tries

    def _is_due(self, name: str) -> bool:
        return self._is_allowed(name) and time.monotonic() >= self._due.get(name, 0.0)

    def _try(self, name: str) -> None:
        self.connect()
        if self._destination is None:
            return
        try:
            if name == SWEEP:
                self._outbox.take_up(name)
                self._destination.finish()
            else:
                self._destination.ship(self._outbox.take(name))
        except Exception as err:
            if self._is_refusal(err):
                log.error("tracking: %s is refused: %s", name, _reason(err))
                self._outbox.refuse(name, _reason(err))
            else:
                self._destination = None  # the next try opens anew, which tells a dead server from one that dislikes this entry
                self._postpone(name, err)
            return
        self._outbox.done(name)
        self._failures[name] = 0
        if not any(self._failures.values()):
            self._outbox.note("")

    def _postpone(self, name: str, err: Exception) -> None:
        self._failures[name] += 1
        self._due[name] = time.monotonic() + min(2.0 ** min(self._failures[name] - 1, 9), self._longest_s)
        self._outbox.note(_reason(err))
        log.warning("tracking: %s, failure %d: %s", name or "the server", self._failures[name], _reason(err))


def _reason(err: Exception) -> str:
    """The error in one line without secrets."""
    first = next(iter(str(err).splitlines()), "")
    return redact(f"{type(err).__name__}: {first}")[:300]


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
