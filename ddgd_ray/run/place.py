"""A run behind a URL: a local folder that is copied there while a driver holds the run, one driver among all hosts."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddgd_ray.errors import ArtifactError, StageError
from ddgd_ray.storage.leases import Holder, Lease, Pace
from ddgd_ray.storage.mirror import Mirror, is_unfinished
from ddgd_ray.storage.remote import Remote, url_of
from ddgd_ray.storage.remote_store import RemoteBoard

ORDERS = ("stop", "stop.now")
LOCAL = ("lock", *ORDERS)  # between processes of one host
LOOK_S = 3.0


class RunPlace:
    """Where the run folder `path` is copied to; nowhere when its run directory is a folder of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        url = url_of(path.parent)
        self.remote = Remote(url) if url else None

    def _mirror(self, remote: Remote) -> Mirror:
        prefix = f"runs/{self.path.name}"
        return Mirror(remote, prefix, self.path, skip=_stays_here, only_at_end=lambda name: name.endswith(".log"))

    def prepare(self) -> None:
        """Fetch what another host wrote. Raises StageError when the storage does not answer."""
        if self.remote is not None:
            self.remote.prepare()
            self.pull()

    def pull(self) -> None:
        """Bring the records here; nothing while a driver of this machine holds the run: it is ahead of what is there."""
        if self.remote is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            self._mirror(self.remote).pull(prefer_remote=True)
            outbox = self.path / "outbox"
            for entry in outbox.glob("*.json"):
                sent = outbox / "sent" / entry.name
                if sent.is_file() and sent.read_bytes() == entry.read_bytes():
                    entry.unlink()  # it was sent after the last copy

    def push(self) -> None:
        """Bring everything there, reports and logs too."""
        if self.remote is not None:
            self._mirror(self.remote).push(is_last=True)

    @contextmanager
    def held(self, pace: Pace = Pace()) -> Iterator[None]:  # noqa: B008  frozen
        """Hold the run among hosts, and copy it every few seconds. Raises ArtifactError that names a living holder.

        That of a dead host is taken over once its heartbeats have been missing for `pace.stale_s` seconds.
        """
        if self.remote is None:
            yield
            return
        lease = Lease(RemoteBoard(self.remote), f"run-{self.path.name}", pace)
        if not lease.acquire(unless_alive=True):
            what = f"this run is locked by {lease.holder or 'another host'}"
            where = f"{self.remote}/runs/{self.path.name}"
            raise ArtifactError(what, code="locked", where=where, fix="wait for it, or stop that process")
        mirror = self._mirror(self.remote)
        mirror.start()
        ended = threading.Event()
        threading.Thread(target=self._follow_orders, args=(self.remote, ended), name="stop-order", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            mirror.stop()
            lease.release()

    def holder(self) -> str:
        """`process PID on HOST` that holds the run among hosts, "" of none; who died a moment ago may be named still."""
        content = RemoteBoard(self.remote).read(f"run-{self.path.name}") if self.remote is not None else None
        found = Holder.parse(content) if content is not None else None
        return "" if found is None or found.is_gone else str(found)

    def order_stop(self, *, now: bool) -> None:
        """For the driver, wherever it runs."""
        if self.remote is not None:
            for name in ORDERS[: 1 + now]:
                self.remote.write(f"runs/{self.path.name}/{name}", b"")

    def withdraw_stop(self) -> None:
        if self.remote is not None:
            for name in ORDERS:
                self.remote.remove(f"runs/{self.path.name}/{name}")

    def _follow_orders(self, remote: Remote, ended: threading.Event) -> None:
        """Put here what `ddgd-ray stop` on another host has put there."""
        while not ended.wait(LOOK_S):
            with suppress(StageError):  # the storage does not answer: the next look may tell
                for name in ORDERS:
                    if not (self.path / name).exists() and remote.read(f"runs/{self.path.name}/{name}") is not None:
                        (self.path / name).touch()


def _stays_here(name: str) -> bool:
    """Locks and orders, what Tune writes, and what is being written."""
    return name in LOCAL or name.startswith("tune/") or is_unfinished(name)
