"""The tracker's outbox: trials wait on disk until a shipper process has sent them. Never on the sweep's path.

`outbox/NAME.json` waits, `outbox/sent/NAME.json` is sent, `outbox/closed` says that no more will come.
"""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ddgd_ray.engine.run_folder import RunFolder
from ddgd_ray.report.write import read_run
from ddgd_ray.store import Store

log = logging.getLogger(__name__)

CLOSED = "closed"
POLL_S = 1.0


def default_uri(run_dir: Path) -> str:
    return f"sqlite:///{(run_dir / 'mlflow.db').absolute()}"


def waiting(folder: RunFolder) -> list[Path]:
    return sorted(folder.outbox.glob("*.json"))


def start_shipper(folder: RunFolder, uri: str) -> subprocess.Popen[bytes]:
    """A process of its own, at low priority, that sends what comes into the outbox until it is closed."""
    (folder.outbox / CLOSED).unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "ddgd_ray.cli",
        "sync",
        str(folder.path),
        "--tracking-uri",
        uri,
        "--follow",
        str(os.getpid()),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (folder.path / "tracker.log").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)


def close(folder: RunFolder, shipper: subprocess.Popen[bytes], wait_s: float) -> int:
    """No more trials will come: give the shipper `wait_s` to finish; returns how many trials it left behind."""
    (folder.outbox / CLOSED).write_text("")
    try:
        shipper.wait(wait_s)
    except subprocess.TimeoutExpired:
        shipper.terminate()
    return len(waiting(folder))


def ship_all(folder: RunFolder, store: Store, uri: str, *, follow_pid: int = 0) -> int:
    """Send what waits; with `follow_pid`, keep at it until that process closes the outbox or is gone. Returns what is left."""
    shipper: Any = None
    (folder.outbox / "sent").mkdir(parents=True, exist_ok=True)
    while True:
        is_last = not follow_pid or (folder.outbox / CLOSED).exists() or not _is_alive(follow_pid)
        entries = waiting(folder)
        try:
            if shipper is None and (entries or is_last):
                from ddgd_ray.engine.mlflow_tracker import Shipper

                shipper = Shipper(folder.path, store, uri)
            for entry in entries:
                record = json.loads(entry.read_text())
                shipper.ship(record)
                os.replace(entry, folder.outbox / "sent" / entry.name)
            if is_last and not waiting(folder):
                shipper.finish(is_failed=any(record["state"] == "failed" for record in read_run(folder.path)[1]))
                return 0
        except Exception as err:  # whatever the server or the database says: the trial stays in the outbox
            log.warning("tracking: %s: %s", type(err).__name__, err)
            shipper = None
            if is_last:
                return len(waiting(folder))
        time.sleep(POLL_S)


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
