"""Files from outside: looked at before they are read, read within a bound, under names that stay below their folder."""

import errno
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

MAX_TEXT_BYTES = 64 << 20
"""The bound for records and other texts that a program wrote; the largest known is a tenth of it."""
_KINDS = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is a named pipe, no file",
    stat.S_IFSOCK: "is a socket, no file",
    stat.S_IFCHR: "is a device, no file",
    stat.S_IFBLK: "is a device, no file",
}


class NoPlainFile(OSError):
    """Something else than a regular file, or one that is too large; strerror says what it is."""


def what_else(mode: int) -> str:
    """What a thing is that is no regular file, such as "is a named pipe, no file", by its mode; "" for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "is no regular file")


def regular(path: Path | str) -> os.stat_result:
    """The state of a regular file, links followed. Raises OSError, NoPlainFile for anything else."""
    try:
        state = os.stat(path)
    except ValueError as err:  # a NUL in the name
        raise NoPlainFile(errno.EINVAL, "is no name of a file", str(path)) from err
    odd = what_else(state.st_mode)
    if odd:
        raise NoPlainFile(errno.EISDIR if stat.S_ISDIR(state.st_mode) else errno.EINVAL, odd, str(path))
    return state


def read_bytes(path: Path | str, most_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a regular file. Raises OSError; NoPlainFile for anything else, which might never end, or a larger file."""
    regular(path)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # it may have changed since the look
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise NoPlainFile(errno.EFBIG, f"has more than {most_bytes} bytes", str(path))
    return data


def read_text(path: Path | str, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises OSError as read_bytes, and UnicodeDecodeError."""
    return read_bytes(path, most_bytes).decode("utf-8-sig")


def read_json(path: Path | str, most_bytes: int = MAX_TEXT_BYTES) -> Any:
    """What a JSON file holds. Raises OSError as read_bytes, and ValueError for text that is no JSON."""
    try:
        return json.loads(read_text(path, most_bytes))
    except RecursionError as err:
        raise ValueError("is nested too deep") from err


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, links followed; a link that leads in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_plain_name(name: object) -> bool:
    """Whether a name such as `images/a.png` leads to a file below the folder it is joined to: relative, no `..`, no NUL."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts and name != "."
