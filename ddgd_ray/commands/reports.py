"""What runs show: `report`, `compare`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddgd_ray.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from ddgd_ray.storage.store import Store


def report_command(args: argparse.Namespace) -> int:
    """The exit code. With --to and several runs, each run has a folder of its name there."""
    folders: list[Path] = args.run_folder
    code = 0
    names = [folder.name for folder in folders]
    if args.to is not None and len(set(names)) < len(names):
        raise SpecError("two of these runs have one name", where="ddgd-ray report --to", fix="report them one by one")
    for folder in folders:
        to = args.to / folder.name if args.to is not None and len(folders) > 1 else args.to
        code = max(code, _verify(folder, to) if args.verify else _report(folder, to, args))
    return code


def _report(folder: Path, to: Path | None, args: argparse.Namespace) -> int:
    from ddgd_ray.report.build import write_report
    from ddgd_ray.run.folder import RunFolder, open_store

    copy = RunFolder(folder.parent, folder.name).remote_copy
    copy.pull()
    store = open_store(folder.parent)
    if args.memories:
        _portray(folder, store, args)
    report = write_report(folder, store, to=to, all_pictures=args.all_pictures, with_page=True)
    print(report.markdown)
    for file in (report.page, *report.tables, report.results, *report.pictures):
        print(file)
    if to is None:
        copy.push()
    return 0


def _portray(folder: Path, store: "Store", args: argparse.Namespace) -> None:
    """Decode the memories of the arms that the page shows; what was decoded before is there already."""
    from ddgd_ray.report.memories import portrait_inputs
    from ddgd_ray.report.page import portrayed_arms
    from ddgd_ray.run.reading import read_run
    from ddgd_ray.stages.base import Context, StageCall
    from ddgd_ray.stages.publish import publish_call

    run = read_run(folder, store)
    store.prepare()
    for arm in portrayed_arms(run, args.all_pictures):
        found = portrait_inputs(run, arm)
        if found is not None:
            publish_call(StageCall(*found), store, Context(num_threads=os.cpu_count() or 1))


def _verify(folder: Path, to: Path | None) -> int:
    from ddgd_ray.report.verify import verify_run
    from ddgd_ray.run.folder import open_store

    found = verify_run(folder, open_store(folder.parent), to or folder / "report")
    for line in (*found.problems, *(f"note: {note}" for note in found.notes)):
        print(line)
    print(
        f"{folder.name}: {found.num_artifacts} artifacts, {found.num_files} files, {found.num_bytes / 1e6:.1f} MB "
        f"hashed again, {found.num_cells} cells of the report computed again: {len(found.problems)} problems"
    )
    return ArtifactError.exit_code if found.problems else 0


def compare_command(args: argparse.Namespace) -> int:
    from ddgd_ray.report.compare_runs import compare_runs
    from ddgd_ray.run.folder import open_store
    from ddgd_ray.run.reading import read_run
    from ddgd_ray.storage.store import make_writable, write_atomically

    first, second = (read_run(folder, open_store(folder.parent)) for folder in (args.first, args.second))
    compared = compare_runs(first, second)
    print(compared.as_markdown())
    if args.html is not None:
        make_writable("the page", args.html.parent, fix="give another --html FILE")
        write_atomically(args.html, compared.as_html())
        print(args.html)
    return 0
