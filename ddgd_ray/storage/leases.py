"""Leases: the right to make one thing, held by one process of one host, or of many that share a folder or a bucket.

On one host the kernel keeps a lease (`flock`). Among hosts a lease is a small file or object with the token of its holder and a
counter that the holder raises every few seconds. Nobody compares clocks: a lease is stale when an observer has seen the same
counter for `stale_s` seconds of his own monotonic clock, or at once when the holder was a process of the same host that is
gone.
A lease saves work, it does not protect results: a holder that stalls and comes back finds that the first publication won.
"""

import fcntl
import functools
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ddgd_ray.errors import StageError
from ddgd_ray.storage.commit import crash_point
from ddgd_ray.storage.shared_files import SharedFiles

log = logging.getLogger(__name__)

SHARED_FILESYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "glusterfs", "9p", "afs", "pvfs2")


@dataclass(frozen=True)
class Pace:
    """Seconds: between two heartbeats, until an unchanged lease counts as left behind, and between two looks of a waiter."""

    beat_s: float = 5.0
    stale_s: float = 30.0
    poll_s: float = 0.5


@functools.cache
def this_host() -> str:
    """A name for host, boot and process namespace: where two names are equal, equal process numbers mean equal processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def started_at(pid: int) -> str:
    """Start of a process of this host in ticks since boot, "" when there is no such process. Numbers alone are used again."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]  # a zombie is dead, though nobody has asked for its exit code


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease. counter: its heartbeats so far."""

    token: str
    host: str
    pid: int
    started: str
    counter: int = 0

    @staticmethod
    def me() -> "Holder":
        return Holder(uuid.uuid4().hex, this_host(), os.getpid(), started_at(os.getpid()))

    @staticmethod
    def parse(content: bytes) -> "Holder | None":
        try:
            return Holder(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def is_gone(self) -> bool:
        """Whether the holder was a process of this host that has ended."""
        return self.host == this_host() and (started_at(self.pid) or "gone") != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


class Lease:
    """A lease kept in the file `name`, with heartbeats while it is held. clock: monotonic seconds of the observer."""

    def __init__(
        self,
        files: SharedFiles,
        name: str,
        pace: Pace = Pace(),
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.files, self.name, self.pace, self._clock, self._sleep = files, name, pace, clock, sleep
        self._short = PurePosixPath(name).name[:8]
        self.holder: Holder | None = None
        """The holder at the last look."""
        self.is_lost = False
        """Whether somebody took the lease over because this process stalled."""
        self.is_alive = False
        """Whether a heartbeat of the holder was seen."""
        self._me = Holder.me()
        self._seen: bytes | None = None
        self._since = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> bool:
        """Whether this process has the lease now: one try, without waiting."""
        mine = self._me.as_bytes()
        crash_point("before-lease")
        if self.files.create(self.name, mine):
            crash_point("after-lease")
            return True
        content = self.files.read(self.name)
        if content is None:
            return False  # freed this moment
        if content != self._seen:
            self.is_alive = self._seen is not None
            self._seen, self._since = content, self._clock()
        self.holder = Holder.parse(content)
        if self.holder is not None and self.holder.token == self._me.token:
            return True  # the answer to our first try was lost on the way
        unchanged_s = self._clock() - self._since
        is_gone = self.holder is not None and self.holder.is_gone
        return (is_gone or unchanged_s >= self.pace.stale_s) and self._take_over(content, unchanged_s)

    def _take_over(self, content: bytes, unchanged_s: float) -> bool:
        """Whether this observer took the lease over. Of several, one does: who creates the mark that names its last content."""
        mark = f"{self.name}.taken.{hashlib.sha256(content).hexdigest()[:16]}"
        if not self.files.create(mark, self._me.as_bytes()):
            if unchanged_s >= 2 * self.pace.stale_s:  # who made the mark died before the next line
                self.files.remove(mark)
                self._since = self._clock() - self.pace.stale_s
            return False
        is_unchanged = self.files.read(self.name) == content
        if is_unchanged:
            crash_point("before-take-over")
            self.files.write(self.name, self._me.as_bytes())
            crash_point("after-take-over")
            log.warning("%s: %s left its lease behind, taken over", self._short, self.holder or "an unknown process")
        self.files.remove(mark)
        return is_unchanged

    def acquire(self, *, unless_alive: bool = False) -> bool:
        """Wait for the lease; True once this process has it. unless_alive: False at the first sign of life of its holder."""
        while not self.look():
            if self.is_alive and unless_alive:
                return False
            self._sleep(self.pace.poll_s)
        self._thread = threading.Thread(target=self._beat, name=f"lease-{self._short}", daemon=True)
        self._thread.start()
        return True

    def beat(self) -> bool:
        """Whether the lease is still held by this process, after one heartbeat."""
        content = self.files.read(self.name)
        holder = Holder.parse(content) if content is not None else None
        if holder is None or holder.token != self._me.token:
            self.is_lost = True
            log.warning("%s: our lease was taken over by %s while we stalled", self._short, holder or "somebody")
            return False
        self._me = Holder(**{**asdict(self._me), "counter": self._me.counter + 1})
        crash_point("before-heartbeat")
        self.files.write(self.name, self._me.as_bytes())
        crash_point("after-heartbeat")
        return True

    def _beat(self) -> None:
        while not self._stop.wait(self.pace.beat_s):
            try:
                if not self.beat():
                    return
            except (OSError, StageError) as err:  # storage is slow or away: the next beat may get through
                log.warning("%s: a heartbeat failed: %s", self._short, err)

    def release(self) -> None:
        """Free the lease, unless somebody else has it by now."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self.pace.stale_s)
        try:
            content = self.files.read(self.name)
            holder = Holder.parse(content) if content is not None else None
            if holder is not None and holder.token == self._me.token:
                self.files.remove(self.name)
        except (OSError, StageError) as err:  # it goes stale by itself; the work is done
            log.warning("%s: its lease could not be freed: %s", self._short, err)


@contextmanager
def heartbeat_lease(files: SharedFiles, name: str, pace: Pace) -> Iterator[Lease]:
    lease = Lease(files, name, pace)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def host_lease(path: Path) -> Iterator[None]:
    """A block that one process of this host at a time runs, by flock: the kernel frees the lock when its holder dies.

    Other hosts are kept out where the file system passes flock on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def needs_heartbeats(folder: Path) -> bool:
    """Whether other hosts may work in this folder: its file system is a network's, or DDGD_LEASES=heartbeat."""
    return os.environ.get("DDGD_LEASES") == "heartbeat" or _is_shared(str(folder))


@functools.cache
def _is_shared(folder: str) -> bool:
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    mounts = {fields[1]: fields[2] for fields in (line.split() for line in lines) if len(fields) > 2}
    path = Path(folder)
    place = next((str(above) for above in (path, *path.parents) if str(above) in mounts), "/")
    kind = mounts.get(place, "").removeprefix("fuse.")
    return kind.startswith(SHARED_FILESYSTEMS)
