"""Several nodes that share a URL and no folder: each has a cache of its own, as hosts with a bucket between them do.

Each test starts a cluster of its own in a process of its own: minutes on busy cores.
"""

from pathlib import Path

import pytest

from tests.test_cluster.test_wide import ONE_ARM, WIDE, told

CLUSTER = """
import subprocess
from ray.cluster_utils import Cluster
from ddgd_ray.storage.remote import Remote
url, remote = sys.argv[3], Remote(sys.argv[3])
hosts = [str(folder / name) for name in ("driver", "second")]
nodes = [dict(num_cpus=2, num_gpus=1, env_vars={"DDGD_CACHE": host}, **quiet) for host in hosts]
os.environ["DDGD_CACHE"] = hosts[0]
cluster = Cluster(initialize_head=True, head_node_args=nodes[0])
cluster.add_node(**nodes[1])
ray.init(address=cluster.address, log_to_driver=False)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wide_stages_over_two_hosts_stop_by_an_order_from_a_third_and_go_on(
    s3_bucket: str, tmp_path: Path, tiny_file: Path
) -> None:
    """Local memories: each rank has a part of the checkpoint. The latents are made by Ray Data on both hosts."""
    local = {"finetune.memory_scope": "local", "finetune.local_ranks": 2, "resources.checkpoint_steps": 10}
    asked = {**ONE_ARM, **WIDE, **local, "resources.placement": "spread", "resources.encode": "cluster", "finetune.steps": 400}
    found = told(
        CLUSTER
        + f"""
def checkpoints():
    return sorted({{name.split("/")[1] for name in remote.sizes("kept") if "/step-" in name and name.endswith(".json")}})

said = []
def on_start(conductor):
    def stop():
        while not checkpoints():
            time.sleep(0.2)
        elsewhere = {{**os.environ, "DDGD_CACHE": str(folder / "third")}}
        command = [sys.executable, "-m", "ddgd_ray.cli", "stop", url + "/tiny"]
        said.append(subprocess.run(command, env=elsewhere, capture_output=True, text=True).stdout)
    threading.Thread(target=stop, daemon=True).start()

first = run_sweep(sweep({asked!r}), url, run_with_tune, emit=emit, on_start=on_start)
stopped_at, kept = time.time(), checkpoints()
second = run_sweep(sweep({asked!r}), url, run_with_tune, emit=emit)
store = open_store(url)
tune = [call for record in second.records for call in record.trial.build if call.stage == "finetune"][0]
store.usable(*tune.ref)
lines = (store.get(*tune.ref).path / "curves.jsonl").read_text().splitlines()
times = [json.loads(line)["time"] for line in lines]
steps = [json.loads(line)["step"] for line in lines]
tell(codes=[first.exit_code, second.exit_code], said=said, kept=kept, causes=[first.causes, second.causes],
     went_on=times[0] < stopped_at < times[-1], steps=steps, left=remote.names("kept") + remote.names("train"), **free())
""",
        tmp_path,
        tiny_file,
        s3_bucket + "/hosts",
    )
    assert found["codes"] == [75, 0], found
    assert "told the sweep of process" in found["said"][0]
    assert found["kept"]
    assert found["went_on"]
    assert found["steps"] == sorted(set(found["steps"]))
    assert found["left"] == []
    assert found["free"] == found["all"] == 2
    assert found["groups"] == []
