"""Folders and addresses.

A run directory behind a URL has a local folder, `$DDGD_CACHE/stores/<hash of the URL>/`, whose file `url` names the URL:
commands that take a folder work on either.
"""

import functools
import hashlib
import os
import re
from pathlib import Path

from ddgd_ray.errors import StageError
from ddgd_ray.plain_files import read_text

MARK = "url"
MAX_URL_BYTES = 4096
_PLAIN = re.compile(r"[^?#%]*")


def is_url(text: object) -> bool:
    return isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]+://", text) is not None


def local_folder(run_dir: "Path | str") -> Path:
    """The folder of a run directory on this machine: the path itself, absolute, or the folder that stands for a URL."""
    if not is_url(run_dir):
        return Path(run_dir).expanduser().absolute()
    url = str(run_dir).rstrip("/")
    folder = _cache() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:16]
    if not (folder / MARK).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / MARK, "w", opener=functools.partial(os.open, mode=0o600)) as file:  # it may hold a password
            file.write(url)
    return folder


def plain_link(folder: Path) -> Path:
    """A path to the folder without signs that mean something in an address (? # %): the folder itself, or a link to it.

    Where no link can be made it is the folder itself.
    """
    if _PLAIN.fullmatch(str(folder)):
        return folder
    link = _cache() / "links" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(folder)
    except FileExistsError:  # by another process, this moment
        pass
    except OSError:
        return folder
    return link


def _cache() -> Path:
    return Path(os.environ.get("DDGD_CACHE") or "~/.cache/ddgd-ray").expanduser().absolute()


def url_of(run_dir: Path) -> str:
    """The URL that a local folder stands for; "" when it is a run directory of its own."""
    try:
        return read_text(run_dir / MARK, MAX_URL_BYTES).strip()
    except PermissionError as err:
        fix = "run this as its owner, or choose another --run-dir"
        raise StageError(f"cannot be read: {err.strerror}", where=str(run_dir / MARK), fix=fix) from err
    except (OSError, ValueError):  # no run directory, or no file of ours: whoever needs the folder says what is wrong with it
        return ""
