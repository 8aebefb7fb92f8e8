"""The sweep files that come with the package: `ablations` lists and copies them."""

import argparse
import shlex
import shutil
from pathlib import Path

from ddgd_ray.commands.output import absolute, echo
from ddgd_ray.errors import SpecError, StageError


def add_ablations(added: argparse.ArgumentParser) -> None:
    added.add_argument("names", nargs="*", metavar="NAME", help="such as memory (default: all)")
    added.add_argument("--to", type=absolute, metavar="FOLDER", help="copy them and the search spaces here, to change them")


def ablations_command(args: argparse.Namespace) -> int:
    from ddgd_ray.spec.load import nearest
    from ddgd_ray.spec.shipped import shipped_files

    files = {path.stem: path for path in shipped_files("ablations")}
    unknown = [name for name in args.names if name.removesuffix(".yaml") not in files]
    if unknown:
        what = f"no such sweep file: {unknown[0]}; there are {', '.join(files)}"
        raise SpecError(what, where="ddgd-ray ablations", fix=f"did you mean {nearest(unknown[0], files)}?")
    chosen = [files[name.removesuffix(".yaml")] for name in args.names] or list(files.values())
    if args.to is None:
        width = max(len(path.name) for path in chosen)
        for path in chosen:
            echo(f"ablations/{path.name:{width}}  {_title(path)}")
        echo("\nddgd-ray sweep ablations/NAME.yaml runs one; --to FOLDER copies them")
        return 0
    _copy([*chosen, *shipped_files("search_spaces")], args.to)
    echo(f"cd {shlex.quote(str(args.to))} && ddgd-ray sweep ablations/{chosen[0].name}")
    return 0


def _title(path: Path) -> str:
    """The question that a file answers: its first comment up to the question mark."""
    first = path.read_text().splitlines()[0]
    question, mark, _ = first.lstrip("# ").partition("?")
    return f"{question}{mark}" if first.startswith("#") else ""


def _copy(files: list[Path], to: Path) -> None:
    """Copy files into FOLDER/ablations and FOLDER/search_spaces. Raises SpecError before one that was changed is replaced."""
    targets = {path: to / path.parent.name / path.name for path in files}
    changed = [target for path, target in targets.items() if target.exists() and target.read_bytes() != path.read_bytes()]
    if changed:
        what = f"there is another file of this name: {changed[0]}"
        raise SpecError(what, code="exists", where="--to", fix="move it away, or choose another folder")
    try:
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            echo(str(target))
    except OSError as err:
        raise StageError(f"cannot be written: {err.strerror}", where=str(to), fix="choose another folder: --to FOLDER") from err
