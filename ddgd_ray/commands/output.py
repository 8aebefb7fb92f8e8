"""Where commands write, and where runs lie."""

import argparse
import os
import re
from pathlib import Path

from ddgd_ray.spec.shipped import find_file
from ddgd_ray.storage.addresses import is_url, local_folder


def run_dir_of(args: argparse.Namespace) -> Path:
    from ddgd_ray.conduct.sweep import default_run_dir

    return local_folder(args.run_dir or default_run_dir())


def given_url(args: argparse.Namespace) -> str:
    """The run directory where it is an address such as s3://BUCKET/FOLDER; "" for a folder."""
    found = re.fullmatch(r"([a-z0-9]{2,}):/{1,2}([^/].*)", str(args.run_dir or os.environ.get("DDGD_RUN_DIR", "")))
    return f"{found[1]}://{found[2]}" if found else ""  # a Path has lost one of the two slashes


def absolute(text: str) -> Path:
    """A path as it was typed, `~` filled in; of a run behind a URL, URL/NAME, its local folder."""
    if is_url(text):
        url, _, name = text.rstrip("/").rpartition("/")
        return local_folder(url) / name
    return Path(text).expanduser().absolute()


def sweep_file(text: str) -> Path:
    """A sweep file as it was typed, or the one of that name that comes with the package."""
    return find_file(Path(text))


def echo(text: str) -> None:
    print(text, flush=True)


def time_words(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
