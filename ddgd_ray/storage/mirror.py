"""A local folder and a prefix of the storage that are kept equal, so that another host can go on from them."""

import logging
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ddgd_ray.errors import StageError
from ddgd_ray.plain_files import is_plain_name
from ddgd_ray.storage.remote import Remote

log = logging.getLogger(__name__)

State = tuple[int, int]  # bytes, mtime in ns


def is_unfinished(name: str) -> bool:
    """Whether a name is that of a temporary file or of a checkpoint under way."""
    return any(part.startswith((".", "unfinished-")) for part in PurePosixPath(name).parts)


class Mirror:
    """The two copies. pull: from the storage; push: what has changed here; start and stop: pushes from a thread."""

    def __init__(
        self,
        remote: Remote,
        prefix: str,
        folder: Path,
        *,
        skip: Callable[[str], bool] = is_unfinished,
        only_at_end: Callable[[str], bool] = lambda name: False,
        orders: tuple[str, ...] = (),
        every_s: float = 2.0,
    ) -> None:
        """skip: names that stay here. only_at_end: names that the last push alone takes, such as growing logs.

        orders: empty files that other hosts put into the storage and that the thread makes here too.
        """
        self.remote, self.prefix, self.folder = remote, prefix, folder
        self._skip, self._only_at_end, self._orders, self._every_s = skip, only_at_end, orders, every_s
        self._there: dict[str, State] = {}
        self.has_remote = False
        """Whether the storage may hold anything under the prefix."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def pull(self, *, prefer_remote: bool) -> int:
        """The number of files fetched: those missing here or longer in the storage, with `prefer_remote` all of them."""
        wanted = []
        sizes = self.remote.sizes(self.prefix)
        self.has_remote = bool(sizes)
        for name, size in sizes.items():
            if self._skip(name) or not is_plain_name(name):
                continue
            local = self.folder / name
            if local.is_file() and local.stat().st_size >= size and not prefer_remote:
                self._there[name] = (size, 0)  # compared by the next push
            else:
                wanted.append(name)
        beside = {name: (self.folder / name).with_name(f".{uuid.uuid4().hex[:8]}") for name in wanted}
        try:
            self.remote.fetch((path, f"{self.prefix}/{name}") for name, path in beside.items())
            for name, path in beside.items():
                os.replace(path, self.folder / name)
                self._there[name] = _state(self.folder / name)
        finally:
            for path in beside.values():
                path.unlink(missing_ok=True)
        return len(wanted)

    def push(self, prefix: str = "", *, is_last: bool = False) -> int:
        """The number of files uploaded: those that have changed, among names that begin with `prefix`.

        Records (.json) go after the files that they speak of; what is gone here is removed from the storage.
        """
        with self._lock:
            here: dict[str, State] = {}
            for path in self.folder.rglob("*"):
                name = path.relative_to(self.folder).as_posix()
                if name.startswith(prefix) and not self._skip(name) and (is_last or not self._only_at_end(name)):
                    with suppress(FileNotFoundError):  # removed this moment
                        if path.is_file():
                            here[name] = _state(path)
            changed = [name for name in sorted(here) if self._there.get(name) != here[name]]
            self.has_remote = self.has_remote or bool(changed)
            for group in (
                [name for name in changed if not name.endswith(".json")],
                [n for n in changed if n.endswith(".json")],
            ):
                present = [name for name in group if (self.folder / name).is_file()]
                with suppress(FileNotFoundError):
                    self.remote.put((self.folder / name, f"{self.prefix}/{name}") for name in present)
                    self._there |= {name: here[name] for name in present}
            gone = [name for name in self._there if name.startswith(prefix) and not (self.folder / name).is_file()]
            for name in gone:
                self.remote.remove(f"{self.prefix}/{name}")
                del self._there[name]
            return len(changed)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"mirror-{self.prefix[-8:]}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._take_orders()  # first: a push may take long
            self._try_push(is_last=False)

    def _take_orders(self) -> None:
        with suppress(StageError):  # the storage does not answer: the next look may tell
            for name in self._orders:
                if not (self.folder / name).exists() and self.remote.read(f"{self.prefix}/{name}") is not None:
                    (self.folder / name).touch()

    def _try_push(self, *, is_last: bool) -> None:
        try:
            self.push(is_last=is_last)
        except (OSError, StageError, RuntimeError) as err:  # RuntimeError: the interpreter is shutting down
            log.warning("%s/%s is behind: %s", self.remote, self.prefix, err)

    def stop(self, *, push: bool = True) -> None:
        """End the thread, after a last push with `push`; a push that fails is a warning: results are elsewhere."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if push:
            self._try_push(is_last=True)


def _state(path: Path) -> State:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns)
