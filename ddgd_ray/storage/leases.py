"""The right to make one thing, held by one process at a time: on one host, or among many that share a folder or a bucket.

On one host the kernel keeps it (`flock`). Among hosts a lease is a small file or object with the holder's token and a counter
that its holder raises every few seconds. Nobody compares clocks: a lease is stale when an observer has seen the same counter
for `stale_s` seconds of his own monotonic clock, or at once when the holder was a process of the same host that is gone.
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
from pathlib import Path
from typing import Protocol

from ddgd_ray.errors import StageError
from ddgd_ray.storage.commit import crash_point, create_atomically

log = logging.getLogger(__name__)

SHARED_FILESYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "gluster", "glusterfs", "9p", "afs", "pvfs2")


@dataclass(frozen=True)
class Pace:
    """Seconds between two heartbeats, until an unchanged lease counts as left behind, and between two looks of who waits."""

    beat_s: float = 5.0
    stale_s: float = 30.0
    poll_s: float = 0.5


class Board(Protocol):
    """Where leases hang: names and small contents that all hosts see."""

    def create(self, name: str, data: bytes) -> bool:
        """Whether the name was free and is now ours."""

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


class FolderBoard:
    """Leases as files of a folder, on any file system with hard links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, name: str, data: bytes) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        return create_atomically(self.folder / name, data, sync=False)  # after a power cut nobody holds anything

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        temporary = self.folder / f".{name}.{uuid.uuid4().hex[:8]}"
        temporary.write_bytes(data)
        os.replace(temporary, self.folder / name)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


@functools.cache
def this_host() -> str:
    """Host, its boot and the process namespace: within one of these, process numbers mean the same processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def started_at(pid: int) -> str:
    """When a process of this host started, in ticks since boot; "" when there is none. Numbers are used again."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]  # a zombie is dead, though nobody has asked for its exit code


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. counter: heartbeats so far."""

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
        """Whether it was a process of this host that is no more."""
        return self.host == this_host() and (started_at(self.pid) or "gone") != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


class Lease:
    """A lease on `name`, with heartbeats while it is held. clock: monotonic seconds of the observer."""

    def __init__(
        self,
        board: Board,
        name: str,
        pace: Pace = Pace(),
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.board, self.name, self.pace, self._clock, self._sleep = board, name, pace, clock, sleep
        self.holder: Holder | None = None
        """Who held it at the last look."""
        self.is_lost = False
        """Somebody took it over because we stalled."""
        self.is_alive = False
        """A heartbeat of the holder was seen."""
        self._me = Holder.me()
        self._seen: bytes | None = None
        self._since = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> bool:
        """One try, without waiting: True when it is ours now."""
        mine = self._me.as_bytes()
        crash_point("before-lease")
        if self.board.create(self.name, mine):
            crash_point("after-lease")
            return True
        content = self.board.read(self.name)
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
        """Of several observers one takes the lease over: who creates the mark that names its last content."""
        mark = f"{self.name}.taken.{hashlib.sha256(content).hexdigest()[:16]}"
        if not self.board.create(mark, self._me.as_bytes()):
            if unchanged_s >= 2 * self.pace.stale_s:  # who made the mark died before the next line
                self.board.remove(mark)
                self._since = self._clock() - self.pace.stale_s
            return False
        is_unchanged = self.board.read(self.name) == content
        if is_unchanged:
            crash_point("before-take-over")
            self.board.write(self.name, self._me.as_bytes())
            crash_point("after-take-over")
            log.warning("%s: %s left its lease behind, taken over", self.name[:8], self.holder or "an unknown process")
        self.board.remove(mark)
        return is_unchanged

    def acquire(self, *, unless_alive: bool = False) -> bool:
        """Wait until it is ours; with `unless_alive`, only until its holder gives a sign of life: then False."""
        while not self.look():
            if self.is_alive and unless_alive:
                return False
            self._sleep(self.pace.poll_s)
        self._thread = threading.Thread(target=self._beat, name=f"lease-{self.name[:8]}", daemon=True)
        self._thread.start()
        return True

    def beat(self) -> bool:
        """One heartbeat; False when the lease is no longer ours."""
        content = self.board.read(self.name)
        holder = Holder.parse(content) if content is not None else None
        if holder is None or holder.token != self._me.token:
            self.is_lost = True
            log.warning("%s: our lease was taken over by %s while we stalled", self.name[:8], holder or "somebody")
            return False
        self._me = Holder(**{**asdict(self._me), "counter": self._me.counter + 1})
        crash_point("before-heartbeat")
        self.board.write(self.name, self._me.as_bytes())
        crash_point("after-heartbeat")
        return True

    def _beat(self) -> None:
        while not self._stop.wait(self.pace.beat_s):
            try:
                if not self.beat():
                    return
            except (OSError, StageError) as err:  # storage is slow or away: the next beat may get through
                log.warning("%s: a heartbeat failed: %s", self.name[:8], err)

    def release(self) -> None:
        """Free it, unless it is somebody else's by now."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self.pace.stale_s)
        try:
            content = self.board.read(self.name)
            holder = Holder.parse(content) if content is not None else None
            if holder is not None and holder.token == self._me.token:
                self.board.remove(self.name)
        except (OSError, StageError) as err:  # it goes stale by itself; the work is done
            log.warning("%s: its lease could not be freed: %s", self.name[:8], err)


@contextmanager
def heartbeat_lease(board: Board, name: str, pace: Pace) -> Iterator[Lease]:
    lease = Lease(board, name, pace)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def host_lease(path: Path) -> Iterator[None]:
    """flock: freed by the kernel when its holder dies. Holds on one host, or where the file system passes flock on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def needs_heartbeats(folder: Path) -> bool:
    """Whether other hosts may work in this folder: its file system is a network's, or DDGD_LEASES=heartbeat says so."""
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
