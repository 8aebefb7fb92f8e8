"""The server of the UI: found, started on a free port, waited for, and gone with its children. A stand-in serves by default."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ddgd_ray import cli
from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.watch import mlflow_ui as ui

# serves /health after a while, has a child of its own, and ends only when it is made to
STAND_IN = """
import http.server, os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "300"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
open("environment", "w").write("\\n".join(f"{k}={v}" for k, v in os.environ.items()))
time.sleep(0.3)

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"OK")

http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Health).serve_forever()
"""
SERVE = """
import sys
from pathlib import Path
from ddgd_ray.watch import mlflow_ui as ui
run_dir, port, stand_in = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ui.serve(run_dir, host="127.0.0.1", port=port, tell=lambda text: print(text, flush=True),
         command=lambda run_dir, host, port: [sys.executable, stand_in, host, str(port)])
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """With a database as far as ours looks into it."""
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table experiments (experiment_id integer, name text)")
        connection.execute("insert into experiments values (0, 'Default'), (7, 'tiny')")
    connection.close()
    return tmp_path


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(run_dir: Path) -> Iterator[Start]:
    """Serve with the stand-in, in a process of its own; returns it once it has told its address."""
    started: list[subprocess.Popen[str]] = []

    def begin(port: int = 0, stand_in: str = STAND_IN) -> "subprocess.Popen[str]":
        (run_dir / "stand_in.py").write_text(stand_in)
        words = [sys.executable, "-c", SERVE, str(run_dir), str(port), str(run_dir / "stand_in.py")]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    pids = run_dir / "pids"
    for pid in pids.read_text().split() if pids.exists() else []:
        if psutil.pid_exists(int(pid)):
            os.kill(int(pid), signal.SIGKILL)


def address(process: "subprocess.Popen[str]") -> tuple[str, list[str]]:
    """The address that is told, and what was told before it."""
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found.group(), before
        before.append(line)
    raise AssertionError(f"no address: {before} {process.stderr and process.stderr.read()}")


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_the_address_is_told_when_the_server_answers(start: Start) -> None:
    url, _ = address(start())
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{url}health", timeout=5) as answer:
        assert answer.read() == b"OK"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_and_its_children(run_dir: Path, start: Start, number: int) -> None:
    process = start()
    address(process)
    pids = [int(pid) for pid in (run_dir / "pids").read_text().split()]
    assert all(map(is_running, pids))
    process.send_signal(number)
    assert process.wait(10) == 0
    assert not any(map(is_running, pids))


def test_a_server_that_will_not_end_is_made_to(run_dir: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "STOP_S", 0.2)
    deaf = "import signal, time, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(300)"
    server = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout is not None
    server.stdout.readline()
    ui.end_group(server)
    assert server.returncode == -signal.SIGKILL


def test_a_port_that_is_taken_is_told_with_its_holder_and_another_is_used(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url, before = address(start(port))
    assert not url.endswith(f":{port}/")
    assert f"port {port} is used by pid {os.getpid()} " in "".join(before)


def test_a_server_that_dies_is_an_error_with_the_end_of_its_log(start: Start) -> None:
    process = start(stand_in="import sys; print('the cause'); sys.exit(3)")
    _, error = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "ended with code 3" in error
    assert "the cause" in error


def test_the_server_runs_with_our_settings(run_dir: Path, start: Start) -> None:
    address(start())
    environment = (run_dir / "environment").read_text().splitlines()
    for setting in ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true"):
        assert setting in environment
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false" in environment


def test_the_command_serves_the_run_s_own_store_on_loopback(tmp_path: Path) -> None:
    words = ui.server_command(tmp_path, "127.0.0.1", 5001)
    assert words[words.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert words[words.index("--default-artifact-root") + 1] == str(tmp_path / "mlartifacts")
    assert words[words.index("--host") + 1] == "127.0.0.1"


def test_a_run_and_the_folder_of_runs_lead_to_one_database(run_dir: Path) -> None:
    (run_dir / "tiny").mkdir()
    assert ui.find_run_dir(run_dir) == (run_dir, "")
    assert ui.find_run_dir(run_dir / "tiny") == (run_dir, "tiny")
    assert ui.experiment_page(run_dir, "tiny") == "/#/experiments/7/runs"
    assert ui.experiment_page(run_dir, "none") == ui.experiment_page(run_dir, "") == "/"


def test_no_database_yet_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["ui", str(folder)])
        assert caught.value.code == 5
        error = capsys.readouterr().err
        assert error.startswith("error[no-database]")
        assert "help: " in error


def test_a_run_that_was_never_sent_is_told_how(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(StageError) as caught:
        ui.find_run_dir(tmp_path)
    assert f"ddgd-ray mlflow sync {tmp_path}" in caught.value.fix


@pytest.mark.parametrize("content", [b"", b"no database " * 100])
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(StageError):
        ui.find_run_dir(tmp_path)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 5000), ("no.such.host.invalid", 5000), ("127.0.0.1", 70000)])
def test_hosts_and_ports_that_cannot_be_are_refused(host: str, port: int) -> None:
    with pytest.raises(SpecError):
        ui.free_port(host, port, print)


def test_only_loopback_is_quiet_about_who_can_look() -> None:
    assert [host for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.0.2.1") if ui.is_loopback(host)] == [
        "127.0.0.1",
        "::1",
        "localhost",
    ]


@pytest.mark.slow
def test_mlflow_s_own_server_shows_the_run(tmp_path: Path) -> None:
    make = (
        "import sys; from mlflow.tracking import MlflowClient; client = MlflowClient(sys.argv[1]);"
        "client.create_run(client.create_experiment('tiny', artifact_location=sys.argv[2]))"
    )
    locations = [f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "mlartifacts").as_uri()]
    subprocess.run([sys.executable, "-c", make, *locations], check=True, capture_output=True, env=os.environ | ui.SETTINGS)
    words = [sys.executable, "-m", "ddgd_ray.cli", "ui", str(tmp_path / "tiny"), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url, _ = address(process)
        place, _, page = url.partition("/#")
        assert page.startswith("/experiments/")
        with urllib.request.urlopen(
            f"{place}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny", timeout=20
        ) as answer:
            assert b"tiny" in answer.read()
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        time.sleep(0.2)
        assert not [child for child in children if is_running(child.pid)]
    finally:
        process.kill()
        process.communicate()
