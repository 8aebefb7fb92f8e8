"""MLflow's server over a run's own database, as a child process: a free port, until it answers, and gone with all its children.

Only this machine reaches it unless another host is asked for. mlflow itself is not imported here.
"""

import errno
import ipaddress
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from ddgd_ray.errors import SpecError, StageError

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 3 processes in place of 9, up in half the time
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
READY_S = 120.0
STOP_S = 5.0
POLL_S = 0.1
LOG = "ui.log"

Command = Callable[[Path, str, int], list[str]]


def server_command(run_dir: Path, host: str, port: int) -> list[str]:
    from ddgd_ray.tracking.tracker import default_uri

    artifacts = str(run_dir / "mlartifacts")
    store = [
        "--backend-store-uri",
        default_uri(run_dir),
        "--default-artifact-root",
        artifacts,
        "--artifacts-destination",
        artifacts,
    ]
    return [sys.executable, "-m", "mlflow", "server", *store, "--host", host, "--port", str(port), "--workers", "1"]


def find_run_dir(path: Path) -> tuple[Path, str]:
    """The folder that holds mlflow.db, and the name of the run if `path` is one. Raises StageError when there is none yet."""
    for run_dir, name in ((path, ""), (path.parent, path.name)):
        if (run_dir / "mlflow.db").is_file():
            _refuse_other(run_dir / "mlflow.db")
            return run_dir, name
    is_run = (path / "sweep.json").is_file()
    what = "there is no MLflow database (mlflow.db) yet" if path.is_dir() else "there is no such folder"
    fix = (
        f"ddgd-ray mlflow sync {path} makes it" if is_run else "run a sweep first, or give the folder that its --run-dir named"
    )
    raise StageError(what, code="no-database", where=str(path), fix=fix)


def _refuse_other(database: Path) -> None:
    if not _ask(database, "select name from sqlite_master where name = 'experiments'", ()):
        what = "this is no database of MLflow's, or an empty one"
        raise StageError(what, code="no-database", where=str(database), fix="run a sweep, or `ddgd-ray mlflow sync RUN`")


def experiment_page(run_dir: Path, name: str) -> str:
    """The path of the experiment of that name in the UI; of all of them when there is none."""
    found = _ask(run_dir / "mlflow.db", "select experiment_id from experiments where name = ?", (name,)) if name else []
    return f"/#/experiments/{found[0][0]}/runs" if found else "/"


def _ask(database: Path, query: str, values: tuple[str, ...]) -> list[tuple[object, ...]]:
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as err:
        raise StageError(
            f"cannot be read: {err}", code="no-database", where=str(database), fix="is it a copy cut off?"
        ) from err


def free_port(host: str, port: int, tell: Callable[[str], None]) -> int:
    """`port`, or another one when it is taken, which is told with the process that holds it. Raises SpecError for a host that
    is not this machine's, or a port that it may not use."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (socket.gaierror, OverflowError, UnicodeError) as err:
        raise SpecError(f"{host} is no address of this machine: {err}", where="--host", fix="--host 127.0.0.1") from err
    if not 0 <= port < 65536:
        raise SpecError(f"expected 0 to 65535, got {port}", where="--port", fix="--port 0 chooses a free one")
    try:
        return _bound(family, host, port)
    except PermissionError as err:
        raise SpecError(f"port {port} is not for everybody: {err.strerror}", where="--port", fix="--port 5000") from err
    except OSError as err:
        if err.errno != errno.EADDRINUSE:
            raise SpecError(f"cannot listen at {host}: {err.strerror}", where="--host", fix="--host 127.0.0.1") from err
    other = _bound(family, host, 0)
    tell(f"port {port} is used by {holder(port)}; taking {other}")
    return other


def _bound(family: int, host: str, port: int) -> int:
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last connections are closing is free
        probe.bind((host, port))
        probe.listen(1)
        return int(probe.getsockname()[1])


def holder(port: int) -> str:
    """Who listens at a port: `pid 12 (name)`; other users' processes are not to be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr
                and connection.laddr.port == port
                and connection.status == psutil.CONN_LISTEN
                and connection.pid
            ):
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.Error, OSError):
        pass  # not told: it serves the message alone
    return "another process"


def serve(
    run_dir: Path,
    *,
    host: str,
    port: int,
    page: str = "/",
    tell: Callable[[str], None] = print,
    command: Command = server_command,
) -> None:
    """Serve until Ctrl-C, SIGTERM or the terminal is closed. Raises StageError when the server does not come up or dies."""
    chosen = free_port(host, port, tell)
    shown = f"[{host}]" if ":" in host else host
    if not is_loopback(host):
        tell(f"warning: whoever reaches {host} can read and change these runs: MLflow's server asks for no password")
    with _log(run_dir) as log, _stopped_by_signals() as stopped:
        server = subprocess.Popen(
            command(run_dir, host, chosen),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=run_dir,
            env=os.environ | SETTINGS,
            start_new_session=True,  # Ctrl-C is for us; the whole group is ended by us
        )
        try:
            _wait_until_ready(server, f"http://{shown}:{chosen}/health", stopped, log.name)
            if not stopped.is_set():
                tell(f"MLflow    http://{shown}:{chosen}{page}\nlog       {log.name}\nCtrl-C ends it")
            while not stopped.wait(POLL_S):
                if server.poll() is not None:
                    raise _died(server, log.name)
        finally:
            end_group(server)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait_until_ready(server: "subprocess.Popen[bytes]", url: str, stopped: threading.Event, log: str) -> None:
    end = time.monotonic() + READY_S
    while not stopped.wait(POLL_S):
        if server.poll() is not None:
            raise _died(server, log)
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, ValueError):  # not up yet
            pass
        if time.monotonic() > end:
            raise StageError(f"MLflow's server does not answer within {READY_S:.0f} s", where=log, fix="its log says why")


def _died(server: "subprocess.Popen[bytes]", log: str) -> StageError:
    lines = Path(log).read_text(errors="replace").strip().splitlines()[-5:]
    last = "".join(f"\n    {line[:300]}" for line in lines)
    return StageError(f"MLflow's server ended with code {server.returncode}:{last}", where=log, fix="its log says why")


def end_group(server: "subprocess.Popen[bytes]") -> None:
    """The server and whatever it started: asked to end, then made to."""
    try:
        family = psutil.Process(server.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # its children may live on in its group, unknown to us
        family = []
    is_gone = server.poll() is not None
    for number, wait_s in ((signal.SIGTERM, 0.0 if is_gone else STOP_S), (signal.SIGKILL, 1.0)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        end = time.monotonic() + wait_s
        while time.monotonic() < end and (server.poll() is None or any(map(_runs, family))):
            time.sleep(0.02)
        if not is_gone and server.poll() is not None and not any(map(_runs, family)):
            break
    server.wait()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # nobody may be there to take note of its end
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _log(run_dir: Path) -> Iterator[IO[bytes]]:
    try:
        file: IO[bytes] = (run_dir / LOG).open("wb")
    except OSError:  # somebody else's runs can be looked at too
        file = tempfile.NamedTemporaryFile(prefix="ddgd-ui-", suffix=".log", delete=False)  # noqa: SIM115
    with file:
        yield file


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    stopped = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stopped.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
