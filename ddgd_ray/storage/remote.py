"""Storage behind a URL (fsspec: S3, Google Cloud, Azure, ...): whole objects, time limits, repeated tries, one clear error."""

import functools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ddgd_ray.errors import DdgdError, StageError
from ddgd_ray.redact import redact
from ddgd_ray.storage.commit import is_full
from ddgd_ray.storage.shared_files import FolderFiles

log = logging.getLogger(__name__)

SLOWEST = 1_000_000  # bytes/s that a transfer is given time for
AT_ONCE = 8  # transfers
SETTLE_S = 1.0  # until a write is seen by all, where a store knows no conditional one
EXTRAS = {"s3": "ddgd-ray[s3]", "s3a": "ddgd-ray[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, DdgdError)  # trying again changes nothing
PATIENCE_S = 60.0  # no further try of a call after it
FINAL_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "InvalidRegionError")

Result = TypeVar("Result")


class Remote:
    """Objects below a URL, by name: `manifests/encode/...`, and so SharedFiles. Each call ends within a bounded time, or raises
    StageError."""

    def __init__(self, url: str, *, timeout_s: float = 30.0, tries: int = 9, is_conditional: bool = True) -> None:
        """timeout_s: seconds of one try, and one more for each MB. is_conditional: the store can create without replacing."""
        self.url, self.timeout_s, self.tries, self.is_conditional = url.rstrip("/"), timeout_s, tries, is_conditional

    def __reduce__(self) -> tuple[object, ...]:
        again = functools.partial(Remote, timeout_s=self.timeout_s, tries=self.tries, is_conditional=self.is_conditional)
        return (again, (self.url,))

    def __str__(self) -> str:
        return redact(self.url)

    @functools.cached_property
    def opened(self) -> tuple[Any, str]:
        """The file system of fsspec and the path in it. Raises StageError."""
        import fsspec

        protocol = urlsplit(self.url).scheme
        settings = {"auto_mkdir": True} if protocol in ("file", "local") else {"use_listings_cache": False}
        try:
            fs, base = fsspec.core.url_to_fs(self.url, **settings)
        except (ImportError, ValueError) as err:
            fix = f"pip install {EXTRAS.get(protocol, 'the fsspec package of ' + protocol)!r}"
            raise StageError(f"cannot be opened: {err}", code="storage", where=str(self), fix=fix) from err
        return fs, base.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self.opened[1]}/{name}"

    @property
    def _is_local(self) -> bool:
        return urlsplit(self.url).scheme in ("file", "local")

    @property
    def _as_folder(self) -> FolderFiles:
        """The same names as files, where the URL is a folder's: fsspec could leave half a file there."""
        return FolderFiles(Path(self.opened[1]), sync=True)

    def prepare(self) -> None:
        """Write and remove an object, and find out whether one can be created without replacing. Raises StageError."""
        probe = f"probe-{uuid.uuid4().hex[:8]}"
        tries, self.tries = self.tries, min(2, self.tries)  # nobody wants to wait a minute for a misspelled address
        try:
            self.create(probe, b"first")
            if self.is_conditional and self.create(probe, b"second"):
                self.is_conditional = False
                log.warning("%s ignores conditional writes: a lease takes a second longer", self)
            self.remove(probe)
        except FileNotFoundError as err:
            raise StageError(f"no such place: {err}", code="storage", where=str(self), fix="create the bucket first") from err
        finally:
            self.tries = tries

    def create(self, name: str, data: bytes) -> bool:
        """Whether the name was free and now has this content; the first of several writers wins."""
        if self._is_local:
            return self._as_folder.create(name, data) or self.read(name) == data
        if self.is_conditional:
            try:
                self._call("create", name, lambda: self.opened[0].pipe_file(self._path(name), data, mode="create"), len(data))
                return True
            except FileExistsError:
                return self.read(name) == data  # a first try of ours may have arrived though its answer did not
            except StageError as err:
                if not isinstance(err.__cause__, NotImplementedError | TypeError):
                    raise
                self.is_conditional = False
        if self.read(name) is not None:
            return False
        self.write(name, data)
        time.sleep(SETTLE_S)
        return self.read(name) == data

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._call("read", name, lambda: self.opened[0].cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        if self._is_local:
            self._as_folder.write(name, data)
            return
        self._call("write", name, lambda: self.opened[0].pipe_file(self._path(name), data), len(data))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call("remove", name, lambda: self.opened[0].rm_file(self._path(name)))

    def remove_tree(self, prefix: str) -> None:
        if self._is_local or self.sizes(prefix):
            with suppress(FileNotFoundError):
                self._call("remove", prefix, lambda: self.opened[0].rm(self._path(prefix), recursive=True))

    def discard(self, prefix: str) -> None:
        """Remove what nobody needs any more, as remove_tree does; when that fails, it is left behind with a warning."""
        try:
            self.remove_tree(prefix)
        except StageError as err:
            log.warning("left behind: %s", err)

    def names(self, prefix: str) -> list[str]:
        """Names of the objects right below the prefix, in order."""
        try:
            found = self._call("list", prefix, lambda: self.opened[0].ls(self._path(prefix), detail=False))
        except FileNotFoundError:
            return []
        return sorted(name for name in (path.rstrip("/").rpartition("/")[2] for path in found) if not name.startswith("."))

    def sizes(self, prefix: str) -> dict[str, int]:
        """{name below the prefix: bytes} of every object there."""
        start = self._path(prefix).rstrip("/")
        try:
            found = self._call("list", prefix, lambda: self.opened[0].find(start, detail=True))
        except FileNotFoundError:
            return {}
        cut = len(start.lstrip("/")) + 1
        return {path.lstrip("/")[cut:]: int(entry["size"]) for path, entry in found.items()}

    def put(self, files: Iterable[tuple[Path, str]]) -> None:
        """Upload (local file, name) pairs, several at once."""
        self._transfer("upload", self._put, list(files))

    def _put(self, local: Path, name: str) -> None:
        if self._is_local:
            Path(self._path(name)).parent.mkdir(parents=True, exist_ok=True)
        size = local.stat().st_size
        self._call("upload", name, lambda: self.opened[0].put_file(str(local), self._path(name)), size)

    def fetch(self, files: Iterable[tuple[Path, str]]) -> None:
        """Download into (local file, name) pairs, several at once. Raises FileNotFoundError for a missing one."""
        self._transfer("download", self._fetch, list(files))

    def _fetch(self, local: Path, name: str) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        fs, path = self.opened[0], self._path(name)
        size = int(self._call("look up", name, lambda: fs.info(path))["size"])
        self._call("download", name, lambda: fs.get_file(path, str(local)), size)

    def _transfer(self, what: str, one: Callable[[Path, str], None], files: list[tuple[Path, str]]) -> None:
        if len(files) <= 1:
            for local, name in files:
                one(local, name)
            return
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix=what) as pool:
            for done in [pool.submit(one, local, name) for local, name in files]:
                done.result()

    def _call(self, what: str, name: str, action: Callable[[], Result], num_bytes: int = 0) -> Result:
        """The result of the action. Tries that fail or hang are repeated, each after twice the pause of the one before."""
        started = time.monotonic()
        for number in range(1, self.tries + 1):
            try:
                return in_time(action, self.timeout_s + num_bytes / SLOWEST)
            except FINAL:
                raise
            except Exception as err:
                if is_full(err):
                    raise  # of this machine
                problem = err
            is_final = isinstance(problem, PermissionError | NotImplementedError | TypeError)
            is_over = number == self.tries or time.monotonic() - started > PATIENCE_S
            if is_final or type(problem).__name__ in FINAL_NAMES or is_over:
                break
            log.warning("%s: %s %s, try %d: %s", self, what, name, number, self._text(problem))
            time.sleep(min(8.0, 0.125 * 2**number) * random.uniform(0.75, 1.25))  # many workers do not come back at once
        waited = time.monotonic() - started
        raise StageError(
            f"cannot {what} {name}: {self._text(problem)} ({number} tries in {waited:.0f} s)",
            code="storage",
            where=str(self),
            fix="check the address, the network and the credentials; what is published stays, run the same command again",
        ) from problem

    def _text(self, err: Exception) -> str:
        """The text of an error, without what the URL hides."""
        text = f"{type(err).__name__}: {err}".replace(self.url, str(self))
        user = urlsplit(self.url).netloc.rpartition("@")[0]
        return text.replace(user, "***") if user else text


def in_time(action: Callable[[], Result], limit_s: float) -> Result:
    """The result of the action. Raises TimeoutError after `limit_s`; then the action goes on in a thread nobody waits for."""
    done: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(action())
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=run, name="storage", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    if errors:
        raise errors[0]
    return done[0]
