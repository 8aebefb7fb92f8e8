"""What the driver does when nodes go, without a cluster: nodes are a list."""

from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.engine import ray_driver
from ddgd_ray.engine.ray_driver import ClusterDriver
from ddgd_ray.engine.rooms import Node
from tests.test_engine.fake_store import FakeStore, conduct

NODES = [Node(name, {"CPU": 1.0, "memory": 8e9}, name) for name in ("left", "right")]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """Those that are alive."""
    alive = list(NODES)
    monkeypatch.setattr(ray_driver, "cluster_nodes", lambda: list(alive))
    monkeypatch.setattr(ray_driver, "check_nodes", lambda store, nodes: None)
    monkeypatch.setattr(ray_driver, "_release_unplaceable", lambda: None)
    monkeypatch.setattr(ray_driver, "LOOK_S", 0.0)
    return alive


def test_a_job_whose_node_is_gone_is_handed_out_again_though_ray_says_nothing(
    tiny: Any, tmp_path: Path, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, store = tiny(), FakeStore()
    conductor = conduct(sweep, tmp_path, store)
    driver = ClusterDriver(conductor, store, sweep.spec.resources)  # type: ignore[arg-type]
    jobs = [driver.next(), driver.next()]
    assert None not in jobs
    first, second = (job for job in jobs if job is not None)
    driver.trials.update({"a": first.id, "b": second.id})
    (lost,) = driver.admission.seats(first.id)
    nodes.remove(next(node for node in nodes if node.id == lost.node))
    assert driver.next() is None
    assert set(conductor.running) == {first.id, second.id}, "Ray has its time to tell"
    monkeypatch.setattr(ray_driver, "GONE_S", -1.0)
    driver.look()
    assert set(conductor.running) == {second.id}
    assert driver.trials == {"b": second.id}
    nodes[:] = NODES
    again = driver.next()
    assert again is not None
    assert again.id == first.id
