"""Tar files whose bytes depend on names and contents alone: no times, owners or modes of this machine."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        yield archive


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    archive.addfile(_entry(name, len(content)), io.BytesIO(content))


def pack(folder: Path, target: Path, top: str) -> None:
    """Every file of `folder` as TOP/NAME, sorted by name."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    with open_archive(target) as archive:
        for name, path in files:
            with path.open("rb") as file:
                archive.addfile(_entry(f"{top}/{name}", path.stat().st_size), file)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the owner's names are empty
    entry.size, entry.mode = size, 0o644
    return entry
