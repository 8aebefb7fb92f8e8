"""SHA-256 of files, remembered between runs: a data set of a million files is read once, not at every plan.

A row is keyed by absolute path, as bytes, and holds while size, time of change and inode stay the same. An edit that keeps all
three, such as one that sets the time back, cannot be seen: delete $DDGD_CACHE/hashes.sqlite (~/.cache/ddgd-ray by default)
after one.
A cache that cannot be read or written costs time and nothing else.
"""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ddgd_ray.errors import StageError
from ddgd_ray.plain_files import regular

log = logging.getLogger(__name__)

CHUNK = 4096  # files between two commits: what an interrupted plan has hashed stays known
PART = 32  # files a task of the pool looks at
NUM_VARIABLES = 900  # what SQLite takes in one query, whatever its version
NUM_BEGINNING = 12
SETTLED_NS = 2_000_000_000  # a file changed so recently may change again within one tick of its file system's clock
COLUMNS = "path, size, mtime_ns, inode, sha256, beginning"
TABLE = """CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT, beginning BLOB) WITHOUT ROWID"""


@dataclass(frozen=True)
class Content:
    """What a file holds. sha256: 64 hex digits. beginning: its first 12 bytes, which tell what kind of file it is."""

    sha256: str
    beginning: bytes


State = tuple[int, int, int]  # size, time of change in ns, inode
Result = TypeVar("Result")
_unsaved: dict[str, tuple[State, Content]] = {}  # for this process, where the cache cannot be written


def contents(paths: Sequence[str]) -> Iterator[Content]:
    """The content of each file, in order; the paths are absolute. Raises StageError for a file that cannot be read."""
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1)), "hash") as pool:
        for start in range(0, len(paths), CHUNK):
            yield from _chunk(list(paths[start : start + CHUNK]), pool)


def _chunk(paths: list[str], pool: ThreadPoolExecutor) -> list[Content]:
    states = dict(zip(paths, _each(pool, _state, paths), strict=True))
    known = _look_up(states)
    missing = [path for path in states if path not in known]
    if missing:
        now = time.time_ns()
        made = dict(zip(missing, _each(pool, _read, missing), strict=True))
        _remember({path: (states[path], made[path]) for path in missing if now - states[path][1] > SETTLED_NS})
        known |= made
    return [known[path] for path in paths]


def _each(pool: ThreadPoolExecutor, work: Callable[[str], Result], paths: list[str]) -> list[Result]:
    """The result of `work` for each path, in parallel, a few files a task: handing over one stat costs more than the stat."""

    def some(start: int) -> list[Result]:
        try:
            return [work(path) for path in paths[start : start + PART]]
        except OSError as err:
            raise StageError(
                f"cannot be read: {err.strerror}",
                code="data-missing",
                where=str(err.filename),
                fix="check path and permissions",
            ) from err

    return [result for part in pool.map(some, range(0, len(paths), PART)) for result in part]


def _state(path: str) -> State:
    stat = regular(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _read(path: str) -> Content:
    with open(path, "rb") as file:
        beginning = file.read(NUM_BEGINNING)
        file.seek(0)
        return Content(hashlib.file_digest(file, "sha256").hexdigest(), beginning)


def _look_up(states: dict[str, State]) -> dict[str, Content]:
    """{path: content} of the files that were hashed before and have not changed since."""
    rows = {path: _unsaved[path] for path in states if path in _unsaved}
    paths = list(states)
    try:
        with closing(_connect()) as database:
            for start in range(0, len(paths), NUM_VARIABLES):
                some = paths[start : start + NUM_VARIABLES]
                query = f"SELECT {COLUMNS} FROM files WHERE path IN ({','.join('?' * len(some))})"
                found = database.execute(query, [os.fsencode(path) for path in some])
                for path, size, mtime_ns, inode, sha256, beginning in found:
                    rows[os.fsdecode(path)] = ((size, mtime_ns, inode), Content(sha256, beginning))
    except (sqlite3.Error, OSError) as err:
        log.info("the cache of file hashes cannot be read: %s", err)
    return {path: content for path, (state, content) in rows.items() if state == states[path]}


def _remember(rows: dict[str, tuple[State, Content]]) -> None:
    values = [(os.fsencode(path), *state, content.sha256, content.beginning) for path, (state, content) in rows.items()]
    try:
        with closing(_connect()) as database, database:
            database.executemany(f"INSERT OR REPLACE INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)
    except (sqlite3.Error, OSError) as err:
        if not _unsaved:
            log.warning("%s cannot be written (%s): files are hashed again by the next command", _file(), err)
        _unsaved.update(rows)


def _file() -> Path:
    return Path(os.environ.get("DDGD_CACHE") or "~/.cache/ddgd-ray").expanduser() / "hashes.sqlite"


def _connect() -> sqlite3.Connection:
    """The database, which waits some seconds for other processes.

    It has a rollback journal: a write-ahead log is unsafe where homes are on NFS.
    """
    _file().parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(_file(), timeout=5)
    try:
        database.execute(TABLE)
    except BaseException:
        database.close()
        raise
    return database
