"""Reaching a cluster, or hearing within seconds why not. No Ray is started here."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ddgd_ray.cluster import nodes as ray_nodes
from ddgd_ray.cluster.connect import (
    ask_versions,
    knock,
    read_runtime_env,
    refuse_other_versions,
    resolve,
    start_ray,
    token_source,
)
from ddgd_ray.cluster.nodes import answer_of, await_nodes, check_shared, look
from ddgd_ray.cluster.placement import Node
from ddgd_ray.errors import ClusterError, SpecError
from ddgd_ray.storage.shared_files import FolderFiles

NODES = [Node("1" * 56, {}, "host-a"), Node("2" * 56, {}, "host-b")]


def test_a_sweep_begins_when_all_nodes_that_run_jobs_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    head, *workers = Node("0", {"memory": 8e9}), Node("1", {"CPU": 8.0}), Node("2", {"CPU": 8.0})
    looks = [[head], [head, workers[0]], [head, *workers], [head]]
    monkeypatch.setattr(ray_nodes, "cluster_nodes", lambda: looks.pop(0))
    monkeypatch.setattr(ray_nodes, "LOOK_S", 0.0)
    assert await_nodes(2, lambda: False)
    assert looks == [[head]]


def test_nodes_that_never_join_are_told_of_and_not_waited_for_when_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "cluster_nodes", lambda: [Node("0", {}), Node("1", {"CPU": 8.0})])
    monkeypatch.setattr(ray_nodes, "JOIN_S", -1.0)
    with pytest.raises(ClusterError, match="1 of 4 nodes that run jobs have joined") as caught:
        await_nodes(4, lambda: False)
    assert caught.value.exit_code == 5
    assert not await_nodes(4, lambda: True)


def refusal(address: str) -> str:
    """What the user is told, in less than the 5 s that are promised."""
    started = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        knock(resolve(address), address)
    assert time.monotonic() - started < 5
    assert caught.value.exit_code == 5
    return str(caught.value)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Somebody who accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_port() -> Iterator[int]:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_port_where_nobody_listens_is_named_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert f"no answer from 127.0.0.1:{port}" in refusal(f"127.0.0.1:{port}")


def test_a_port_that_says_nothing_is_left_within_five_seconds(silent_port: int) -> None:
    assert "within 5 s" in refusal(f"127.0.0.1:{silent_port}")


def test_a_web_server_is_no_ray_head(web_port: int) -> None:
    assert "does not speak gRPC" in refusal(f"127.0.0.1:{web_port}")


@pytest.mark.parametrize("address", ["nonsense", "host:port", "127.0.0.1:99999999", "no-such-host.invalid:6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    assert address in refusal(address)


def test_ray_client_is_refused_with_the_way_that_works() -> None:
    assert "HOST:PORT of the head" in refusal("ray://127.0.0.1:10001")


def test_auto_without_a_cluster_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)  # other tests' clusters may run on this machine
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "no Ray cluster runs on this machine" in refusal("auto")


def test_the_command_line_answers_before_any_work(tiny_file: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "ddgd_ray.cli", "sweep", str(tiny_file), "--run-dir", str(tmp_path), "--no-tracking"]
    done = subprocess.run([*command, "--address", f"127.0.0.1:{port}"], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert f"error[cluster]: --address 127.0.0.1:{port}: no answer" in done.stderr
    assert not list((tmp_path / "store").glob("*/*/manifest.json"))


def test_another_ray_or_python_on_the_head_is_named_with_ours() -> None:
    import platform

    import ray

    refuse_other_versions({"ray_version": ray.__version__, "python_version": platform.python_version()}, "auto")
    with pytest.raises(ClusterError, match=f"the head has Ray 2.1.0 on Python 3.9.1, here is Ray {ray.__version__}"):
        refuse_other_versions({"ray_version": "2.1.0", "python_version": "3.9.1"}, "auto")


def test_the_token_is_named_by_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_source() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t" * 40)
    assert token_source() == str(tmp_path / ".ray" / "auth_token")
    (tmp_path / "other").write_text("t" * 40)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert token_source() == str(tmp_path / "other")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 40)
    assert token_source() == "RAY_AUTH_TOKEN"


def test_a_token_that_cannot_be_read_or_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH .*none: the token cannot be read: No such file"):
        token_source()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is token, but there is no token"):
        token_source()


def test_a_runtime_environment_is_read_and_its_values_are_not_shown(tmp_path: Path) -> None:
    value = os.urandom(8).hex()
    path = tmp_path / "env.yaml"
    path.write_text(f"env_vars: {{A_PASSWORD: x{value}, NUM: 3}}\nworking_dir: {tmp_path}\n")
    assert read_runtime_env(path)["env_vars"] == {"A_PASSWORD": f"x{value}", "NUM": "3"}
    path.write_text(f"env_vars: [x{value}]\n")
    with pytest.raises(SpecError) as caught:
        read_runtime_env(path)
    assert str(path) in str(caught.value)
    assert value not in str(caught.value)


def test_ray_is_not_asked_when_it_runs_already(ray_cluster: None) -> None:
    start_ray("127.0.0.1:1")  # where nobody is


def test_the_head_is_asked_for_its_versions_by_a_process_that_may_hang_or_die(ray_cluster: None) -> None:
    import ray

    head = ray.get_runtime_context().gcs_address
    knock(head, head)
    ask_versions(head, head)
    node = ray.nodes()[0]
    other = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    knock(other, other)  # it speaks gRPC, but it is no head
    with pytest.raises(ClusterError, match="does not answer as a Ray head does"):
        ask_versions(other, other)


class ThereIs:
    """Nodes that are asked on threads of this process: each sees a folder of its own."""

    def __init__(self, folders: Mapping[str, Path], version: str) -> None:
        self.folders, self.version = folders, version

    def __call__(self, board: FolderFiles, name: str, text: bytes, nodes: list[Node]) -> dict[str, str]:
        return {node.id: look(FolderFiles(self.folders[node.id]), name, text, node.id, self.version) for node in nodes}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddgd_ray.cluster import nodes as ray_nodes

    monkeypatch.setattr(ray_nodes, "SEEN_S", 0.3)


@pytest.mark.usefixtures("_impatient")
def test_nodes_that_share_a_folder_may_work(tmp_path: Path) -> None:
    from ddgd_ray import __version__

    ask = ThereIs(dict.fromkeys((node.id for node in NODES), tmp_path), __version__)
    check_shared(FolderFiles(tmp_path), str(tmp_path), NODES, ask)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_impatient")
def test_a_node_with_a_folder_of_its_own_is_named(tmp_path: Path) -> None:
    from ddgd_ray import __version__

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ask = ThereIs({NODES[0].id: tmp_path / "a", NODES[1].id: tmp_path / "b"}, __version__)
    with pytest.raises(ClusterError, match=r"1 of 2 nodes(.|\n)*host-b \(22222222\): it does not see") as caught:
        check_shared(FolderFiles(tmp_path / "a"), "runs/store", NODES, ask)
    assert "host-a" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.usefixtures("_impatient")
def test_a_node_whose_answer_does_not_come_back_is_named(tmp_path: Path) -> None:
    """A copy that is made once, or mounted read-only there, is not shared."""

    def ask(board: FolderFiles, name: str, text: bytes, nodes: list[Node]) -> dict[str, str]:
        board.write(answer_of(name, NODES[0].id), text)
        return dict.fromkeys((node.id for node in nodes), "")

    with pytest.raises(ClusterError, match=r"host-b .*what it writes cannot be seen here"):
        check_shared(FolderFiles(tmp_path), str(tmp_path), NODES, ask)


@pytest.mark.usefixtures("_impatient")
def test_a_node_with_another_version_of_ours_is_named(tmp_path: Path) -> None:
    ask = ThereIs(dict.fromkeys((node.id for node in NODES), tmp_path), "0.0.1")
    with pytest.raises(ClusterError, match=r"2 of 2 nodes(.|\n)*it has ddgd-ray .*, the driver 0\.0\.1"):
        check_shared(FolderFiles(tmp_path), str(tmp_path), NODES, ask)
