"""Look at runs: `status`, `report`, `sync`."""

import argparse
import json
import os
import signal
from collections import Counter


def status_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.engine.tracker import waiting
    from ddgd_ray.report.write import read_run

    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    folder.place.pull()
    sweep, records = read_run(args.run_folder)
    store = open_store(args.run_folder.parent)
    states = Counter(record["state"] for record in records)
    evaluators = {item["key"]: store.has(item["stage"], item["key"]) for record in records for item in record["evaluators"]}
    status = {
        "name": sweep["name"],
        "preset": sweep["spec"]["preset"],
        "trials": {state: states[state] for state in ("done", "failed", "planned")},
        "evaluations": {"done": sum(evaluators.values()), "known": len(evaluators)},
        "running": store.in_progress(),
        "waiting_for_tracker": len(waiting(folder)),
    }
    if args.json:
        print(json.dumps(status))
        return 0
    for name, value in status.items():
        shown = ", ".join(f"{inner} {count}" for inner, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:20} {', '.join(shown) if isinstance(shown, list) else shown}")
    return 0


def report_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.report.write import write_report

    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    folder.place.pull()
    report = write_report(args.run_folder, open_store(args.run_folder.parent))
    print(report.markdown)
    for file in (*report.tables, report.results, *report.pictures):
        print(file)
    folder.place.push()
    return 0


def sync_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine import tracker
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.report.write import read_run

    read_run(args.run_folder)
    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    uri = args.tracking_uri or tracker.default_uri(args.run_folder.parent)
    if args.follow:
        os.nice(10)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep; it closes the outbox when it stops
    left = tracker.ship_all(folder, open_store(args.run_folder.parent), uri, follow_pid=args.follow)
    print(f"{left} trials are left in the outbox" if left else f"all trials are in {uri}")
    return 5 if left else 0
