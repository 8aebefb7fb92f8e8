"""Where commands write, and where runs lie."""

import argparse
from pathlib import Path


def run_dir_of(args: argparse.Namespace) -> Path:
    from ddgd_ray.engine.sweep import default_run_dir

    return (args.run_dir or default_run_dir()).expanduser().absolute()


def absolute(text: str) -> Path:
    """A path as it was typed, `~` filled in."""
    return Path(text).expanduser().absolute()


def echo(text: str) -> None:
    print(text, flush=True)
