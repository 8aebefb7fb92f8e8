"""The copy of a run behind a URL: kept equal to the local folder while a driver holds the run, one driver among all hosts."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddgd_ray.errors import ArtifactError
from ddgd_ray.storage.addresses import url_of
from ddgd_ray.storage.leases import Holder, Lease, Pace
from ddgd_ray.storage.mirror import Mirror, is_unfinished
from ddgd_ray.storage.remote import Remote

ORDERS = ("stop", "stop.now")
LOCAL = ("lock", *ORDERS)  # between processes of one host
LOOK_S = 2.0  # between two looks for what has changed here, and for orders there


class RemoteCopy:
    """The copy of the run folder `path`. There is none, and nothing happens, when its run directory is a folder of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        url = url_of(path.parent)
        self.remote = Remote(url) if url else None
        self._prefix, self._lease = f"runs/{path.name}", f"leases/run-{path.name}"

    def _mirror(self, remote: Remote) -> Mirror:
        return Mirror(
            remote,
            self._prefix,
            self.path,
            skip=_stays_here,
            only_at_end=lambda name: name.endswith(".log"),
            orders=ORDERS,
            every_s=LOOK_S,
        )

    def prepare(self) -> None:
        """Fetch what another host wrote. Raises StageError when the storage does not answer."""
        if self.remote is not None:
            self.remote.prepare()
            self.pull()

    def pull(self) -> None:
        """Fetch the records; nothing while a driver of this host holds the run: its folder is ahead of the copy."""
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
        """Upload everything that has changed, reports and logs too."""
        if self.remote is not None:
            self._mirror(self.remote).push(is_last=True)

    @contextmanager
    def held(self, pace: Pace = Pace()) -> Iterator[None]:  # noqa: B008  frozen
        """A block that holds the run among hosts and copies it every few seconds. Raises ArtifactError naming a living holder.

        The lease of a dead host is taken over once its heartbeats have been missing for `pace.stale_s` seconds.
        """
        if self.remote is None:
            yield
            return
        lease = Lease(self.remote, self._lease, pace)
        if not lease.acquire(unless_alive=True):
            what = f"this run is locked by {lease.holder or 'another host'}"
            where = f"{self.remote}/{self._prefix}"
            raise ArtifactError(what, code="locked", where=where, fix="wait for it, or stop that process")
        mirror = self._mirror(self.remote)
        mirror.start()
        try:
            yield
        finally:
            mirror.stop()
            lease.release()

    def holder(self) -> str:
        """`process PID on HOST` that holds the run among hosts, "" of none; one that died a moment ago may still be named."""
        content = self.remote.read(self._lease) if self.remote is not None else None
        found = Holder.parse(content) if content is not None else None
        return "" if found is None or found.is_gone else str(found)

    def order_stop(self, *, now: bool) -> None:
        """Leave an order to stop for the driver, on whatever host it runs."""
        if self.remote is not None:
            for name in ORDERS[: 1 + now]:
                self.remote.write(f"{self._prefix}/{name}", b"")

    def withdraw_stop(self) -> None:
        if self.remote is not None:
            for name in ORDERS:
                self.remote.remove(f"{self._prefix}/{name}")


def _stays_here(name: str) -> bool:
    """Whether a name is that of a lock or an order, of what Tune writes, or of what is being written."""
    return name in LOCAL or name.startswith("tune/") or is_unfinished(name)
