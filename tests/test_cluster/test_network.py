"""Networks that fail: messages that Ray loses, and nodes in network namespaces of their own, one of them cut off.

As a user runs it: the command line, with a Ray of its own. Each test compares with a calm run in this process.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from tests.published import published
from tests.test_conduct.test_drills import told

NODE = ("--num-cpus=1", "--num-gpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block")
NETWORK = "10.213.77"


def sweep_command(tiny_file: Path, runs: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "ddgd_ray.cli", "sweep", str(tiny_file), "--run-dir", str(runs), "--no-tracking", *more]


def times_done(folder: Path) -> Counter[str]:
    """{job: how often a worker ended it well}, from the run's books."""
    lines = [json.loads(line) for line in (folder / "spend.jsonl").read_text().splitlines()]
    return Counter(line["job"] for line in lines if line.get("state") == "done")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lost_messages_are_sent_again_and_nothing_is_done_twice(tiny: Any, tiny_file: Path, tmp_path: Path) -> None:
    calm = run_sweep(tiny(), tmp_path / "calm", run_in_process)
    losses = {"num_failures": 5, "req_failure_prob": 25, "resp_failure_prob": 25}
    environment = {**os.environ, "RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": losses})}
    command = sweep_command(tiny_file, tmp_path / "lossy")
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(tmp_path / "lossy" / "tiny") == told(calm.folder.path)
    assert set(times_done(tmp_path / "lossy" / "tiny").values()) == {1}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_networks() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"ddgd-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", name)
    return made


@contextmanager
def network(size: int) -> Iterator[list[str]]:
    """Namespaces NETWORK.1, .2, ... on one bridge; at the end all that runs in them is killed."""
    bridge = f"ddgd{os.getpid() % 100_000}"
    names = [f"{bridge}-{place}" for place in range(size)]
    with ExitStack() as stack:
        ip("link", "add", bridge, "type", "bridge")
        stack.callback(ip, "link", "del", bridge)
        ip("link", "set", bridge, "up")
        for place, name in enumerate(names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            stack.callback(kill_all, name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", bridge, "up")
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{NETWORK}.{place + 1}/24", "dev", "eth0")
            ip(*inside, "link", "set", "eth0", "up")
            ip(*inside, "link", "set", "lo", "up")
        yield names


def kill_all(name: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
    if found:
        subprocess.run(["kill", "-9", *found], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_make_networks(), reason="needs the right to make network namespaces")
def test_a_node_that_is_cut_off_costs_no_result_and_repeats_none(tiny: Any, tiny_file: Path, tmp_path: Path) -> None:
    """Cut off while a worker starts there: Ray never says that its job is lost.

    Processes there live on and still write to the shared folder: what they publish late counts once.
    """
    calm = run_sweep(tiny({"finetune.steps": 60}), tmp_path / "calm", run_in_process)
    asked = {"resources.gpus": 1, "resources.max_failures": 0, "finetune.steps": 60}
    runs, head = tmp_path / "runs", f"{NETWORK}.1:6379"
    ray = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as sessions, network(3) as names:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "DDGD_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        environment |= {"RAY_health_check_failure_threshold": "2", "RAY_health_check_timeout_ms": "3000"}
        nodes = []
        for place, name in enumerate(names):
            where = ("--head", "--port=6379", f"--temp-dir={sessions}", "--include-dashboard=false")
            words = [ray, "start", *(where if place == 0 else (f"--address={head}",)), *NODE]
            started = ["ip", "netns", "exec", name, *words, f"--node-ip-address={NETWORK}.{place + 1}"]
            with (tmp_path / f"node-{place}.log").open("w") as log:
                nodes.append(subprocess.Popen(started, env=environment, stdout=log, stderr=subprocess.STDOUT))
            wait_for(lambda log=log: "Ray runtime started" in Path(log.name).read_text(), nodes[-1], log.name)
        command = ["ip", "netns", "exec", names[0], *sweep_command(tiny_file, runs, "--address", head)]
        command += [word for name, value in asked.items() for word in ("--set", f"{name}={value}")]
        with (tmp_path / "sweep.log").open("w") as log:
            driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: any((runs / "store").glob("sample/*/manifest.json")), driver, log.name)
        earlier = workers_of(names[2])
        wait_for(lambda: bool(workers_of(names[2]) - earlier), driver, log.name)
        before = published(runs)
        ip("link", "set", names[2], "down")
        assert driver.wait(400) == 0, (tmp_path / "sweep.log").read_text()
        after = published(runs)
    for node in nodes:
        node.wait(30)
    assert {path: after[path] for path in before} == before
    assert told(runs / "tiny") == told(calm.folder.path)
    assert set(times_done(runs / "tiny").values()) == {1}
    events = (runs / "tiny" / "sweep.log").read_text()
    assert "node" in events


def workers_of(name: str) -> set[int]:
    """Processes of a namespace that Ray has given a job to."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
    found = (process for process in psutil.process_iter(["cmdline"]) if str(process.pid) in pids)
    return {process.pid for process in found if "JobTrainable" in " ".join(process.info["cmdline"] or [])}


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[bytes], log: str) -> None:
    """Until it is, while the process that brings it about lives."""
    end = time.monotonic() + 300
    while not is_there():
        assert process.poll() is None, Path(log).read_text()
        assert time.monotonic() < end, Path(log).read_text()
        time.sleep(0.1)
