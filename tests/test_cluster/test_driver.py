"""What the driver does when nodes go: without a cluster, where nodes are a list, and with trials that never come back."""

import time
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.cluster import driver as ray_driver
from ddgd_ray.cluster import key_values
from ddgd_ray.cluster import nodes as ray_nodes
from ddgd_ray.cluster import tune as ray_tune
from ddgd_ray.cluster.driver import ClusterDriver
from ddgd_ray.cluster.key_values import job_key, remove
from ddgd_ray.cluster.nodes import NodeChecks
from ddgd_ray.cluster.placement import Node
from ddgd_ray.cluster.tune import _searcher, _stopper, run_with_tune
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.errors import StageError
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store
from tests.fake_store import FakeStore, conduct

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
    monkeypatch.setattr(key_values, "remove", lambda key: True)
    sweep, store = tiny(), FakeStore()
    conductor = conduct(sweep, tmp_path, store)
    driver = ClusterDriver(conductor, store, sweep.spec.resources)  # type: ignore[arg-type]
    jobs = [driver.next(), driver.next()]
    assert None not in jobs
    first, second = (job for job in jobs if job is not None)
    driver.trials.update({"a": first.id, "b": second.id})
    (lost,) = driver.admission.allocations(first.id)
    nodes.remove(next(node for node in nodes if node.id == lost.node))
    assert driver.next() is None
    assert set(conductor.jobs.running) == {first.id, second.id}, "Ray has its time to tell"
    monkeypatch.setattr(ray_driver, "GONE_S", -1.0)
    driver.look()
    assert set(conductor.jobs.running) == {second.id}
    assert driver.trials == {"b": second.id}
    nodes[:] = NODES
    again = driver.next()
    assert again is not None
    assert again.id == first.id


@pytest.fixture
def under_tune(tiny: Any, tmp_path: Path, nodes: list[Node], ray_cluster: None) -> tuple[ClusterDriver, Any, Any]:
    """A driver, and what Tune has of it: the searcher and the stopper."""
    sweep, store = tiny(), FakeStore()
    driver = ClusterDriver(conduct(sweep, tmp_path, store), store, sweep.spec.resources)  # type: ignore[arg-type]
    return driver, _searcher(driver), _stopper(driver)


def test_an_error_of_our_own_ends_the_sweep_with_its_name(under_tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would take it for the trial's, go on without the job, and wait for what needs it."""
    from ray.tune.search import Searcher

    driver, searcher, stopper = under_tune
    given = searcher.suggest("a")
    job_id = driver.trials["a"]
    down = StageError("no answer", code="storage", where="s3://bucket")

    def has(*ref: str) -> bool:
        raise down

    monkeypatch.setattr(driver.store, "has", has)
    searcher.on_trial_complete(trial_id="a", error=True)
    assert given["job"] == "a"
    assert driver.error is down
    assert job_id in driver.conductor.jobs.running
    assert searcher.suggest("b") == Searcher.FINISHED
    assert stopper.stop_all()


def test_nodes_are_looked_at_though_no_trial_starts_or_ends(
    under_tune: Any, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, searcher, stopper = under_tune
    searcher.suggest("a")
    (lost,) = driver.admission.allocations(driver.trials["a"])
    nodes.remove(next(node for node in nodes if node.id == lost.node))
    monkeypatch.setattr(ray_driver, "GONE_S", -1.0)
    assert not stopper.stop_all()
    assert driver.trials == {}


def test_a_sweep_that_is_told_to_stop_does_not_wait_for_processes_to_start(under_tune: Any) -> None:
    driver, searcher, stopper = under_tune
    searcher.suggest("started")
    searcher.suggest("waits")
    remove(job_key("started"))  # as its process does
    driver.conductor.folder.order_stop()
    assert not stopper.stop_all()
    assert set(driver.trials) == {"started"}
    searcher.on_trial_complete(trial_id="started", result=vars(Outcome("told to stop", is_lost=True)))
    assert stopper.stop_all()
    assert driver.error is None


def test_nodes_that_join_are_asked_beside_the_sweep_and_once_more_when_they_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"left": "", "right": "", "late": "no answer"}
    monkeypatch.setattr(ray_nodes, "problems_of", lambda store, nodes: {node.id: answers[node.id] for node in nodes})
    checks, both = NodeChecks(Store(tmp_path), NODES[:1]), [*NODES, Node("late", {"CPU": 1.0}, "late")]

    def sound_in_the_end() -> set[str]:
        checks.sound(both)
        assert checks._asking is not None
        checks._asking.join(10)
        return {node.id for node in checks.sound(both)}

    assert sound_in_the_end() == {"left", "right"}
    answers["late"] = ""
    assert sound_in_the_end() == {"left", "right"}, "not asked again so soon"
    monkeypatch.setattr(ray_nodes, "AGAIN_S", 0.0)
    assert sound_in_the_end() == {"left", "right", "late"}


def test_a_sweep_that_is_stopped_while_its_nodes_come_is_interrupted(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "start_ray", lambda address, runtime_env: None)
    monkeypatch.setattr(ray_nodes, "cluster_nodes", list)

    def execute(conductor: Any, store: Store, resources: ResourcesSpec) -> None:
        conductor.folder.order_stop()
        run_with_tune(conductor, store, resources, "auto", min_nodes=2)

    result = run_sweep(tiny(), tmp_path, execute)
    assert (result.stop_reason, result.exit_code) == ("interrupted", 75)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_ends_though_a_trial_that_was_given_up_never_does(
    tiny: Any, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"

    def work(job: Job, store: Store, resources: ResourcesSpec, publish: Any = None, *, stop_file: Any = None) -> Outcome:
        if job.stage == "finetune" and not mark.exists():
            mark.write_text(job.id)
            time.sleep(1000)
        for call in job.calls:
            with store.scratch(call.key) as out:
                (out / "curves.jsonl").write_text("")
                store.publish(out, call.spec, call.input_keys(), {"val_top1": 0.5, "top1_last": 0.5}, 1.0)
        return Outcome()

    given_up: list[str] = []

    def give_up(driver: ClusterDriver) -> None:
        stuck = mark.read_text() if mark.exists() else ""
        for trial in [trial for trial, job_id in driver.trials.items() if job_id == stuck and not given_up]:
            given_up.append(trial)
            driver.conductor.ended(driver.trials.pop(trial), Outcome("its node was lost", is_lost=True))

    monkeypatch.setattr(ClusterDriver, "look", give_up)
    started = time.monotonic()
    result = run_sweep(tiny(), tmp_path, run_with_tune_of(work))
    assert (result.exit_code, len(given_up)) == (0, 1)
    assert time.monotonic() - started < 100


def run_with_tune_of(work: Any) -> Any:
    def execute(conductor: Any, store: Store, resources: ResourcesSpec) -> None:
        run_with_tune(conductor, store, resources, work=work)

    return execute
