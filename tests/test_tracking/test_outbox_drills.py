"""Whatever a tracking server does, it ends up with exactly the rows of a calm run.

MLflow's own server runs behind a proxy that can be down, refuse, fail, dawdle, or lose the answer to what was carried out.
"""

import http.client
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.commands.sweeps import TRACKER_WAIT_S
from ddgd_ray.tracking import tracker
from ddgd_ray.tracking.mlflow import connect
from ddgd_ray.tracking.tracker import SYNC_TRIES

SERVER = Path(__file__).with_name("mlflow_server.py")
NAMES = iter(f"drill-{number}" for number in range(1000))


@dataclass
class Proxy:
    """fault: gets the number of the request, since it was set, and its body; names what is to go wrong, "" for nothing."""

    backend: int
    database: Path
    files: Path
    fault: Callable[[int, bytes], str] = lambda number, body: ""
    num_requests: int = 0
    port: int = 0
    codes: list[int] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, fault: Callable[[int, bytes], str]) -> None:
        self.fault, self.num_requests = fault, 0


def handler_of(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            proxy.num_requests += 1
            fault = proxy.fault(proxy.num_requests, body)
            self.close_connection = True
            if fault == "dead":
                return
            if fault.isdigit():
                self.send_error(int(fault))
                return
            if fault == "slow":
                time.sleep(0.2)
            if fault == "hang":
                time.sleep(60)
            backend = http.client.HTTPConnection("127.0.0.1", proxy.backend, timeout=60)
            with closing(backend):
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection",)}
                backend.request(self.command, self.path, body, headers)
                answer = backend.getresponse()
                content = answer.read()
            if fault == "lost":
                return
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Disposition"):
                if answer.getheader(name):
                    self.send_header(name, str(answer.getheader(name)))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tracked: Any) -> Iterator[Proxy]:
    proxy = Proxy(free_port(), tracked.database(), tracked.scratch / "files")
    proxy.files.mkdir()
    backend = subprocess.Popen(
        [sys.executable, str(SERVER), str(proxy.database), str(proxy.files), str(proxy.backend)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    front = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(proxy))
    front.daemon_threads = True
    proxy.port = front.server_address[1]
    threading.Thread(target=front.serve_forever, daemon=True).start()
    for _ in range(600):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", proxy.backend)) == 0:
                break
        time.sleep(0.1)
    yield proxy
    front.shutdown()
    backend.terminate()
    backend.wait()


@pytest.fixture(scope="module")
def calm(tracked: Any) -> Any:
    return tracked.calm("fifo-s0", "max-s0")


@pytest.fixture
def drill(tracked: Any, server: Proxy, calm: Any, rows_of: Any) -> Iterator[Callable[..., Any]]:
    """Sends two trials under a fault; then without it, and compares; returns what the fault left behind."""
    server.set(lambda number, body: "")

    def run(fault: Callable[[int, bytes], str]) -> Any:
        name = next(NAMES)
        folder = tracked.copy("fifo-s0", "max-s0", name=name)
        server.set(fault)
        left = tracked.send(folder, server.uri)
        server.set(lambda number, body: "")
        assert not tracked.send(folder, server.uri)
        found = rows_of(server.database, name, server.files)
        for what in calm:
            assert found[what] == calm[what], what
        return left

    yield run
    server.set(lambda number, body: "")


def test_a_server_that_is_down_from_the_start_gets_everything_later(drill: Any) -> None:
    left = drill(lambda number, body: "dead")
    assert (left.waiting, left.refused) == (3, 0)
    assert left.why


def test_a_server_that_dies_half_way_gets_the_rest_later(drill: Any) -> None:
    left = drill(lambda number, body: "dead" if number > 12 else "")
    assert left.waiting


def test_what_was_carried_out_without_an_answer_is_not_there_twice(drill: Any) -> None:
    drill(
        lambda number, body: "lost" if number in (3, 4, 8, 15, 30, 40) else ""
    )  # the experiment, the sweep's run, a trial's ...


def test_a_server_that_answers_500_for_a_while_gets_everything(drill: Any) -> None:
    assert not drill(lambda number, body: "500" if 6 <= number < 9 else "")


def test_a_wrong_password_refuses_no_record_for_good(drill: Any) -> None:
    left = drill(lambda number, body: "401")
    assert (left.waiting, left.refused) == (3, 0)
    assert "401" in left.why


def test_a_slow_server_gets_everything(drill: Any) -> None:
    assert not drill(lambda number, body: "slow")


def test_one_record_that_the_server_dislikes_does_not_hold_up_the_others(drill: Any) -> None:
    left = drill(lambda number, body: "400" if b"fifo-s0" in body and b'"params"' in body else "")
    assert (left.waiting, left.refused) == (0, 1)
    assert "400" in left.why


class Crash(BaseException):
    """The shipper's process ends."""


class Dying:
    """A client that passes calls on, and ends with the n-th, before it is made or after."""

    def __init__(self, client: Any, at: int = 0, *, is_after: bool = False) -> None:
        self.client, self.at, self.is_after, self.num_calls = client, at, is_after, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self.at and not self.is_after:
                raise Crash
            result = method(*args, **kwargs)
            if self.num_calls == self.at:
                raise Crash
            return result

        return call


def die_and_go_on(tracked: Any, rows_of: Any, *, stride: int, afters: Callable[[int], tuple[bool, ...]]) -> None:
    counting = Dying(connect(f"sqlite:///{tracked.database()}"))
    assert not tracked.send(tracked.copy("fifo-s0"), counting)
    assert counting.num_calls >= 20
    calm = tracked.calm("fifo-s0")
    for number in range(1, counting.num_calls + 1, stride):
        for is_after in afters(number):
            folder, database = tracked.copy("fifo-s0"), tracked.database()
            with pytest.raises(Crash):
                tracked.send(folder, Dying(connect(f"sqlite:///{database}"), number, is_after=is_after))
            assert tracker.waiting(folder)
            assert not tracked.send(folder, database)
            assert rows_of(database) == calm, (number, is_after)


def test_a_shipper_that_dies_leaves_nothing_twice_and_nothing_out(tracked: Any, rows_of: Any) -> None:
    die_and_go_on(tracked, rows_of, stride=5, afters=lambda number: (number % 2 == 0,))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_shipper_that_dies_at_any_call_leaves_nothing_twice_and_nothing_out(tracked: Any, rows_of: Any) -> None:
    die_and_go_on(tracked, rows_of, stride=1, afters=lambda number: (False, True))


def test_of_a_run_that_was_made_twice_one_is_left(tracked: Any, rows_of: Any) -> None:
    folder, database = tracked.copy("fifo-s0"), tracked.database()
    assert not tracked.send(folder, database)
    client = connect(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    key = "tiny/fifo-s0/convnet3_slim/ipc2/seed0"
    late = {"ddgd.key": key, "ddgd.trial_key": "tiny/fifo-s0", "ddgd.sweep": "tiny"}  # a request that had been given up
    client.create_run(experiment, start_time=1, tags=late)
    assert not tracked.send(folder, database)
    assert len(client.search_runs([experiment], f"tags.`ddgd.key` = '{key}'")) == 1
    assert len([row for row in rows_of(database)["runs"] if row[-1] == "active"]) == 3


@contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    """Another process holds the whole database for some time."""
    with closing(sqlite3.connect(database, check_same_thread=False, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(seconds, holder.execute, ("ROLLBACK",))
        release.start()
        try:
            yield
        finally:
            release.join()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_database_that_is_locked_for_half_a_minute_gets_everything(tracked: Any, rows_of: Any) -> None:
    folder, database = tracked.copy("fifo-s0", "max-s0"), tracked.database()
    with locked(database, 30.0):
        assert not tracked.send(folder, database, SYNC_TRIES)
    assert rows_of(database) == tracked.calm("fifo-s0", "max-s0")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["hang", "500", "401"])
def test_a_shipper_is_gone_ten_seconds_after_the_sweep_whatever_the_server_does(
    tracked: Any, server: Proxy, fault: str
) -> None:
    folder = tracked.copy(name=next(NAMES))
    server.set(lambda number, body: fault)
    shipper = tracker.start_shipper(folder, server.uri)
    time.sleep(10)
    started = time.monotonic()
    left = tracker.close(folder, shipper, TRACKER_WAIT_S)
    seconds = time.monotonic() - started
    server.set(lambda number, body: "")
    assert seconds < 10
    assert shipper.poll() is not None
    assert (left.waiting, left.refused) == (4, 0)
