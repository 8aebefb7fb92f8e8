"""Look at runs, and stop them: `status`, `stop`, `mlflow sync`."""

import argparse
import json
import logging
import os
import signal
import time
from dataclasses import asdict

WATCH_S = 2.0


def status_command(args: argparse.Namespace) -> int:
    from ddgd_ray.watch.snapshot import snapshot

    if args.json:
        print(json.dumps(asdict(snapshot(args.run_folder))))
        return 0
    from rich.console import Console
    from rich.live import Live

    from ddgd_ray.watch.view import status_panel

    console, found = Console(), snapshot(args.run_folder)
    if not args.watch:
        console.print(status_panel(found))
        return 0
    with Live(status_panel(found), console=console, auto_refresh=False) as live:
        while found.holder:
            time.sleep(WATCH_S)
            found = snapshot(args.run_folder)
            live.update(status_panel(found), refresh=True)
    return 0


def stop_command(args: argparse.Namespace) -> int:
    from ddgd_ray.run.folder import RunFolder, open_store
    from ddgd_ray.run.reading import read_run

    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    folder.remote_copy.pull()
    here, elsewhere = folder.holder(), folder.remote_copy.holder()
    if not here and not elsewhere:
        read_run(args.run_folder, open_store(args.run_folder.parent))  # a damaged folder is not one that stands still
        print(f"{args.run_folder.name} is not running")
        return 0
    if here:
        folder.order_stop(now=args.now)
    else:
        folder.remote_copy.order_stop(now=args.now)
    print(f"told the sweep of {here or elsewhere} to stop; the same command continues it")
    return 0


def sync_command(args: argparse.Namespace) -> int:
    from ddgd_ray.redact import RedactingFormatter, redact
    from ddgd_ray.run.folder import RunFolder, open_store
    from ddgd_ray.run.reading import read_run
    from ddgd_ray.tracking import tracker
    from ddgd_ray.tracking.mlflow import connect, is_refusal
    from ddgd_ray.tracking.shipper import Shipper

    tracker.refuse_unfit(args.tracking_uri)
    store = open_store(args.run_folder.parent)
    read_run(args.run_folder, store)  # a damaged folder is told before anything is written, and not laid on the server
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("ddgd_ray").addHandler(handler)
    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    uri = tracker.uri_of(args.tracking_uri, args.run_folder.parent)
    is_server = uri.partition(":")[0] in ("http", "https", "databricks", "uc")
    if args.follow:
        os.nice(5)  # beside workers on every core, 10 leaves it too little to import MLflow within a short sweep
        for number in (signal.SIGINT, signal.SIGHUP):  # these are for the sweep; it closes the outbox when it stops
            signal.signal(number, signal.SIG_IGN)

    def shipper() -> Shipper:
        return Shipper(folder.path, store, connect(uri), is_server=is_server)

    undelivered = tracker.ship_all(folder, shipper, is_refusal, follow_pid=args.follow)
    print(undelivered if undelivered else f"all trials are in {redact(uri)}")
    return 5 if undelivered else 0
