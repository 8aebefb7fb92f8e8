"""Wide jobs under Ray, with GPUs that Ray is only told about: they start beside narrow ones, stop, and leave nothing behind.

Each test starts a cluster of its own in a process of its own: minutes on busy cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

HEAD = """
import json, os, sys, threading, time
from pathlib import Path
os.environ.update(RAY_AUTH_MODE="disabled", DDGD_DEVICE="cpu", OMP_NUM_THREADS="1", DDGD_CACHE=sys.argv[1] + "/cache")
from ddgd_ray.cluster.connect import SETTINGS
os.environ.update(SETTINGS)
import ray
from ray.util import placement_group_table
from ddgd_ray.cluster.tune import run_with_tune
from ddgd_ray.run.folder import open_store
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.spec.sweep import read_sweep
from tests.published import published

folder, events, started = Path(sys.argv[1]), [], time.monotonic()
quiet = dict(include_dashboard=False, object_store_memory=100_000_000)

def sweep(overrides):
    return read_sweep(Path(sys.argv[2]), overrides)

def emit(event):
    if event.job:
        events.append([event.kind, event.job.stage, event.job.label, round(time.monotonic() - started, 1), event.text[:300]])

def free():
    deadline = time.monotonic() + 20
    while ray.available_resources().get("GPU") != ray.cluster_resources().get("GPU") and time.monotonic() < deadline:
        time.sleep(0.2)
    groups = [group["state"] for group in placement_group_table().values()]
    return {"free": ray.available_resources().get("GPU"), "all": ray.cluster_resources().get("GPU"),
            "groups": [state for state in groups if state != "REMOVED"]}

def tell(**found):
    print(json.dumps({"events": events, **found}), flush=True)
    os._exit(0)
"""
ONE_ARM = {"controls": (), "seeds.distill": (0,), "vary": {"finetune.memory_real.pop": ("max_similarity",)}}
WIDE = {"resources.stages": {"finetune": {"workers": 2, "gpus": 1}, "evaluate": {"gpus": 0.5}}}


def told(script: str, tmp_path: Path, tiny_file: Path, *more: str, timeout_s: float = 560) -> dict[str, Any]:
    """What the script told as its last line."""
    command = [sys.executable, "-c", HEAD + textwrap.dedent(script), str(tmp_path), str(tiny_file), *more]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as sessions:  # sockets need a short path
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": sessions}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)
    assert done.stdout.strip(), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wide_fine_tuning_loses_a_worker_goes_on_and_leaves_all_gpus_free(tmp_path: Path, tiny_file: Path) -> None:
    """Train starts both workers anew, from the checkpoint; the ledger counts no attempt."""
    found = told(
        f"""
        import psutil
        ray.init("local", num_cpus=4, num_gpus=2, **quiet)
        killed = []
        def kill():
            while not killed:
                time.sleep(0.1)
                if list((folder / "runs" / "store" / "kept").glob("*/step-*/manifest.json")):
                    for process in psutil.Process().children(recursive=True):
                        if "RayTrainWorker" in process.name() + " ".join(process.cmdline()):
                            process.kill()
                            killed.append(process.pid)
                            break
        threading.Thread(target=kill, daemon=True).start()
        asked = {{**{ONE_ARM!r}, **{WIDE!r}, "finetune.steps": 60, "resources.checkpoint_steps": 10}}
        result = run_sweep(sweep(asked), folder / "runs", run_with_tune, emit=emit)
        tell(code=result.exit_code, killed=len(killed), causes=result.causes, **free())
        """,
        tmp_path,
        tiny_file,
    )
    assert found["killed"] == 1
    assert found["code"] == 0, found
    assert [event[0] for event in found["events"] if event[1] == "finetune"] == ["start", "done"]
    assert found["free"] == found["all"] == 2
    assert found["groups"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wide_fine_tuning_that_is_told_to_stop_keeps_a_checkpoint_and_leaves_all_gpus_free(
    tmp_path: Path, tiny_file: Path
) -> None:
    found = told(
        f"""
        ray.init("local", num_cpus=4, num_gpus=2, **quiet)
        def on_start(conductor):
            def stop():
                while not list((folder / "runs" / "store" / "kept").glob("*/step-*/manifest.json")):
                    time.sleep(0.1)
                conductor.stop("interrupted")
            threading.Thread(target=stop, daemon=True).start()
        asked = {{**{ONE_ARM!r}, **{WIDE!r}, "finetune.steps": 20_000, "resources.checkpoint_steps": 10}}
        result = run_sweep(sweep(asked), folder / "runs", run_with_tune, emit=emit, on_start=on_start)
        kept = sorted(path.name for path in (folder / "runs" / "store" / "kept").glob("*/step-*"))
        tell(code=result.exit_code, kept=kept, **free())
        """,
        tmp_path,
        tiny_file,
    )
    assert found["code"] == 75
    assert [event[0] for event in found["events"] if event[1] == "finetune"] == ["start", "lost"]
    assert found["kept"]
    assert found["free"] == found["all"] == 2
    assert found["groups"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_nodes_one_of_them_lost_nothing_lost_nothing_repeated(tmp_path: Path, tiny_file: Path) -> None:
    found = told(
        """
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, num_gpus=1, **quiet))
        lost = cluster.add_node(num_cpus=1, num_gpus=1, **quiet)
        cluster.add_node(num_cpus=1, num_gpus=1, **quiet)
        ray.init(address=cluster.address, log_to_driver=False)
        before = {}
        def listen(event):
            emit(event)
            if event.kind == "done" and event.job.stage == "finetune" and not before:
                before.update(published(folder / "runs"))
                threading.Timer(0.1, lambda: cluster.remove_node(lost, allow_graceful=False)).start()
        asked = {"controls": (), "resources.gpus": 1, "resources.max_failures": 0, "finetune.steps": 60}
        result = run_sweep(sweep(asked), folder / "runs", run_with_tune, emit=listen)
        alive = sum(node["Alive"] for node in ray.nodes())
        after = published(folder / "runs")
        same = all(after.get(path) == when for path, when in before.items())
        tell(code=result.exit_code, alive=alive, same=same, num_before=len(before), causes=result.causes, **free())
        """,
        tmp_path,
        tiny_file,
    )
    assert found["alive"] == 2
    assert found["code"] == 0, found
    assert found["same"]
    done = [event[2] for event in found["events"] if event[0] == "done"]
    assert len(done) == len(set(done)), "a job was done twice"
    assert found["free"] == found["all"] == 2
    assert found["groups"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_spread_over_two_pinned_nodes_fine_tune_and_leave_all_gpus_free(tmp_path: Path, tiny_file: Path) -> None:
    """Two nodes with a GPU each, workers spread over both, evaluators of half a GPU beside."""
    found = told(
        f"""
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, num_gpus=1, **quiet))
        cluster.add_node(num_cpus=2, num_gpus=1, **quiet)
        ray.init(address=cluster.address, log_to_driver=False)
        asked = {{**{WIDE!r}, "controls": ("random_real",), "seeds.distill": (0,), "resources.placement": "spread"}}
        result = run_sweep(sweep(asked), folder / "runs", run_with_tune, emit=emit)
        tell(code=result.exit_code, causes=result.causes, **free())
        """,
        tmp_path,
        tiny_file,
    )
    assert found["code"] == 0, found
    assert found["free"] == found["all"] == 2
    assert found["groups"] == []
