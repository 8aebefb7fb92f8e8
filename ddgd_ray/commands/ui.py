"""Look at runs in a browser: `ui`."""

import argparse

from ddgd_ray.commands.arguments import Count
from ddgd_ray.commands.output import absolute, echo, run_dir_of


def add_ui(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "folder", nargs="?", type=absolute, metavar="RUN", help="runs/NAME or the folder of runs (default: runs)"
    )
    added.add_argument(
        "--port", type=Count(0, 65535), default=5000, help="another one is taken when it is in use (default: 5000)"
    )
    added.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")


def ui_command(args: argparse.Namespace) -> int:
    from ddgd_ray.run.folder import open_store
    from ddgd_ray.run.reading import SWEEP_FILE, read_run
    from ddgd_ray.watch.mlflow_ui import experiment_page, find_run_dir, serve

    folder = args.folder or run_dir_of(args)
    if (folder / SWEEP_FILE).is_file():
        read_run(folder, open_store(folder.parent))  # a damaged run is told, not shown as it was when it was sent
    run_dir, name = find_run_dir(folder)
    serve(run_dir, host=args.host, port=args.port, page=experiment_page(run_dir, name), tell=echo)
    return 0
