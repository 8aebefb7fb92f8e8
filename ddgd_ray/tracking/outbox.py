"""The tracker's outbox: what waits on disk until a shipper has sent it.

`NAME.json` waits, `sending/NAME.json` was taken up and waits too, `sent/` and `refused/` (with the reason in NAME.txt) are done
with, `closed` says that no more will come, `trouble` holds the last error. A newer record of a trial replaces one that waits.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.errors import ArtifactError
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.storage.store import write_atomically

SWEEP = "sweep"
"""The entry that ends the sweep's own run; no trial is named so, their names end in -sSEED."""


@dataclass(frozen=True)
class Undelivered:
    """How many records a tracking server has not got. why: the last error."""

    waiting: int
    refused: int
    why: str

    def __bool__(self) -> bool:
        return bool(self.waiting or self.refused)

    def __str__(self) -> str:
        counts = [f"{self.waiting} waiting"] if self.waiting else []
        counts += [f"{self.refused} refused"] if self.refused else []
        records = "record is" if self.waiting + self.refused == 1 else "records are"
        cause = f": {self.why}" if self.why else ""
        return f"{self.waiting + self.refused} {records} not in MLflow ({', '.join(counts)}){cause}"


class Outbox:
    """The outbox of one run folder, for the driver that fills it and for the one shipper that empties it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sending, self._sent, self._refused = path / "sending", path / "sent", path / "refused"

    def waiting(self) -> list[str]:
        """Names in order, the sweep last: it ends what the trials belong to."""
        names = {file.stem for folder in (self.path, self._sending) for file in folder.glob("*.json")}
        return sorted(names, key=lambda name: (name == SWEEP, name))

    def undelivered(self) -> Undelivered:
        trouble = self.path / "trouble"
        why = trouble.read_text() if trouble.is_file() else ""
        refused = sorted(self._refused.glob("*.txt"))
        return Undelivered(len(self.waiting()), len(refused), why or (refused[0].read_text() if refused else ""))

    @contextmanager
    def lock(self, *, wait: bool) -> Iterator[None]:
        """Held by the one shipper of a run: two would make every run twice. Raises ArtifactError unless it may wait."""
        for folder in (self._sending, self._sent, self._refused):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as err:
                raise ArtifactError(
                    "another process is sending this run's records",
                    code="locked",
                    where=str(self.path),
                    fix="the running sweep sends them itself; try again when it has ended",
                ) from err
            yield

    def take_up(self, name: str) -> Path:
        """The file of the newest record of an entry; the entry counts as waiting until `done` or `refuse`."""
        taken = self._sending / f"{name}.json"
        if (self.path / taken.name).exists():
            os.replace(self.path / taken.name, taken)
        return taken

    def take(self, name: str) -> TrialRecord:
        """The newest record of a trial, taken up. Raises ArtifactError when it holds something else."""
        taken = self.take_up(name)
        return TrialRecord.from_text(taken.read_bytes(), taken)

    def done(self, name: str) -> None:
        os.replace(self._sending / f"{name}.json", self._sent / f"{name}.json")
        for earlier in (self._refused / f"{name}.json", self._refused / f"{name}.txt"):
            earlier.unlink(missing_ok=True)

    def refuse(self, name: str, reason: str) -> None:
        write_atomically(self._refused / f"{name}.txt", reason)
        os.replace(self._sending / f"{name}.json", self._refused / f"{name}.json")

    def readmit(self) -> None:
        """Give refused entries another chance: the server may have been upgraded, the record repaired."""
        for file in self._refused.glob("*.json"):
            if not (self._sending / file.name).exists():
                os.replace(file, self._sending / file.name)
            file.with_suffix(".txt").unlink(missing_ok=True)

    def add_sweep(self) -> None:
        write_atomically(self.path / f"{SWEEP}.json", json.dumps({"name": SWEEP}))

    def open(self) -> None:
        (self.path / "closed").unlink(missing_ok=True)

    def close(self) -> None:
        """Say that no more trials will come, and have the sweep's own run ended."""
        self.add_sweep()
        (self.path / "closed").touch()

    @property
    def is_closed(self) -> bool:
        return (self.path / "closed").exists()

    def note(self, trouble: str) -> None:
        """Keep the last error for who waits for the shipper; empty: there is none."""
        if trouble:
            write_atomically(self.path / "trouble", trouble)
        else:
            (self.path / "trouble").unlink(missing_ok=True)
