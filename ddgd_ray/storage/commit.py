"""Files that become visible whole or not at all, and for good; and the points at which the kill tests pull the plug.

DDGD_CRASH_AT=<n> leaves the process, as a power cut would, at the n-th commit point that it passes, counted from 1; with a name
in place of a number, at the first point of that name. DDGD_CRASH_COUNT=<file> gets one line a point: process, number, name.
"""

import errno
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddgd_ray.errors import StageError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# what numpy, safetensors and torch say of a full disk: they drop the error number
FULL_TEXTS = ("No space left on device", "requested and", "failed writing file", "File too large")

_passed = itertools.count(1)


def crash_point(name: str) -> None:
    """Leave the process here when DDGD_CRASH_AT names this point; the module's text says how. Every commit point calls this."""
    wanted, count = os.environ.get("DDGD_CRASH_AT"), os.environ.get("DDGD_CRASH_COUNT")
    if not wanted and not count:
        return
    number = next(_passed)
    if count:
        with open(count, "a") as file:
            file.write(f"{os.getpid()} {number} {name}\n")
    if wanted in (name, str(number)):
        os._exit(137)


def sync_file(path: Path) -> None:
    _sync(path, "file")


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk: what was created, renamed or removed in it survives a power cut."""
    _sync(folder, "folder")


def _sync(path: Path, kind: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        crash_point(f"before-sync-{kind}")
        os.fsync(descriptor)
        crash_point(f"after-sync-{kind}")
    finally:
        os.close(descriptor)


def sync_tree(root: Path, files: list[Path]) -> None:
    for path in files:
        sync_file(path)
    for folder in {path.parent for path in files} | {root}:
        sync_folder(folder)


def write_atomically(path: Path, content: str | bytes, *, sync: bool = True) -> None:
    """Write a file of which readers see the old content or the new one, never a part. Raises StageError: disk full.

    sync: the new content survives a power cut.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _write_beside(path, data, sync)
    try:
        crash_point("before-replace")
        os.replace(temporary, path)
        crash_point("after-replace")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_atomically(path: Path, data: bytes, *, sync: bool = True) -> bool:
    """Whether this call made the file: False when it is there already. Readers see all of it or none; of two writers one wins.

    sync: the file survives a power cut.
    """
    temporary = _write_beside(path, data, sync)
    try:
        crash_point("before-create")
        os.link(temporary, path)  # fails where rename would replace; on NFS too
        crash_point("after-create")
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_beside(path: Path, data: bytes, sync: bool = True) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with room_for(path.parent, len(data)), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                crash_point("before-sync-file")
                os.fsync(file.fileno())
                crash_point("after-sync-file")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextmanager
def room_for(folder: Path, need_bytes: int = 0) -> Iterator[None]:
    """A block in which "disk full" becomes a StageError with what is needed, what is there, and where.

    need_bytes: 0 when nobody knows how much it will be; then the error names what `folder` holds so far.
    """
    try:
        yield
    except Exception as err:
        if not is_full(err):
            raise
        raise disk_full(err, folder, need_bytes) from err


def is_full(err: Exception) -> bool:
    if isinstance(err, StageError):
        return False
    by_number = isinstance(err, OSError) and err.errno in FULL
    return by_number or any(text in str(err) for text in FULL_TEXTS)


def disk_full(err: Exception, folder: Path, need_bytes: int) -> StageError:
    have = shutil.disk_usage(folder).free
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if not need_bytes else 0
    need = f"{need_bytes:,} bytes" if need_bytes else f"more than the {written:,} bytes written so far"
    reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
    return StageError(
        f"{reason}: need {need}, have {have:,} bytes",
        code="disk-full",
        where=str(folder),
        fix="free space there, lift the quota or file size limit, or choose another --run-dir; then run the same command again",
    )


def make_writable(what: str, *folders: Path, fix: str = "choose another --run-dir") -> None:
    """Create the folders, and write into the first one to see that this works. Raises StageError that names `what`."""
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        probe = folders[0] / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_text("")
        probe.unlink()
    except OSError as err:
        raise StageError(f"{what} cannot be written: {err.strerror}", where=str(folders[0]), fix=fix) from err
