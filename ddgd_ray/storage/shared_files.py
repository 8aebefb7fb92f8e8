"""Small files that several hosts see, by name: of a shared folder here, of a bucket in remote.py."""

import os
from pathlib import Path
from typing import Protocol

from ddgd_ray.storage.commit import create_atomically, write_atomically


class SharedFiles(Protocol):
    """Names such as `leases/KEY` and their small contents. Leases and the notes of a cluster's nodes are kept in them."""

    def create(self, name: str, data: bytes) -> bool:
        """Whether the name was free and now has this content; of several writers one gets True."""

    def read(self, name: str) -> bytes | None:
        """The content, or None where there is no such name."""

    def write(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None:
        """A name that is not there stays away without an error."""


class FolderFiles:
    """SharedFiles in a folder at the same path on all hosts, on any file system with hard links."""

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        """sync: what is written survives a power cut; leases need not: after one, nobody holds anything."""
        self.folder, self._sync = folder, sync

    def __str__(self) -> str:
        return str(self.folder)

    def create(self, name: str, data: bytes) -> bool:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return create_atomically(path, data, sync=self._sync)

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            os.listdir(path.parent)  # makes a network file system look again
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, sync=self._sync)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
