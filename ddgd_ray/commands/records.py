"""Look at runs: `status`, `report`, `mlflow sync`."""

import argparse
import json
import logging
import os
import signal
from collections import Counter


def status_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.engine.tracker import waiting
    from ddgd_ray.report.write import read_run

    sweep, records = read_run(args.run_folder)
    store = open_store(args.run_folder.parent)
    states = Counter(record["state"] for record in records)
    evaluators = {item["key"]: store.has(item["stage"], item["key"]) for record in records for item in record["evaluators"]}
    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
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
    from ddgd_ray.engine.run_folder import open_store
    from ddgd_ray.report.write import write_report

    report = write_report(args.run_folder, open_store(args.run_folder.parent))
    print(report.markdown)
    for file in (*report.tables, report.results, *report.pictures):
        print(file)
    return 0


def sync_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine import tracker
    from ddgd_ray.engine.mlflow_runs import connect, is_refusal
    from ddgd_ray.engine.mlflow_tracker import Shipper
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.redact import RedactingFormatter, redact
    from ddgd_ray.report.write import read_run

    read_run(args.run_folder)
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("ddgd_ray").addHandler(handler)
    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    uri = tracker.uri_of(args.tracking_uri, args.run_folder.parent)
    is_server = uri.partition(":")[0] in ("http", "https", "databricks", "uc")
    store = open_store(args.run_folder.parent)
    if args.follow:
        os.nice(5)  # beside workers on every core, 10 leaves it too little to import MLflow within a short sweep
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep; it closes the outbox when it stops

    def shipper() -> Shipper:
        return Shipper(folder.path, store, connect(uri), is_server=is_server)

    left = tracker.ship_all(folder, shipper, is_refusal, follow_pid=args.follow)
    print(left if left else f"all trials are in {redact(uri)}")
    return 5 if left else 0
