"""Admission: who may start, seen with nodes and jobs of words alone."""

import random
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from ddgd_ray.cluster.admission import COORDINATOR, Admission, amounts_of
from ddgd_ray.cluster.placement import Allocation, ClusterCapacity, Demand, Node, NodeCapacity
from ddgd_ray.errors import ClusterError
from ddgd_ray.spec.sweep_spec import ResourcesSpec, StageName


@dataclass(frozen=True)
class Work:
    """As much of a job as admission looks at."""

    id: str
    stage: str = "evaluate"


def node(name: str = "a", cpus: float = 8, gpus: int = 0, memory_gb: float = 64, **more: float) -> Node:
    return Node(
        name,
        {"CPU": cpus, "GPU": gpus, "memory": memory_gb * 1e9}
        | {key.replace("_type_", "_type:"): value for key, value in more.items()},
    )


def admission(nodes: list[Node], patience: int = 4, **resources: Any) -> Admission:
    return Admission(nodes, ResourcesSpec.model_validate(resources), patience)


def started(admitted: Admission, works: list[Work], running: set[str]) -> list[str]:
    """Ask for each of them in one round after another, as the queue does, until none may start."""
    names = []
    while True:
        admitted.retain(running)
        work = next((work for work in works if admitted.fits(work)), None)  # type: ignore[arg-type]
        if work is None:
            return names
        works.remove(work)
        running.add(work.id)
        names.append(work.id)


def works(stage: str, num: int) -> list[Work]:
    return [Work(f"{stage}{place}", stage) for place in range(num)]


def test_as_many_jobs_run_as_the_cluster_has_cores() -> None:
    assert len(started(admission([node(cpus=3)]), works("evaluate", 5), set())) == 3


def test_a_job_that_ended_makes_room() -> None:
    admitted, running = admission([node(cpus=1)]), set[str]()
    jobs = works("evaluate", 2)
    assert started(admitted, jobs, running) == ["evaluate0"]
    running.clear()
    assert started(admitted, jobs, running) == ["evaluate1"]


def test_fractions_share_one_gpu_and_a_whole_job_needs_one_that_is_free() -> None:
    admitted = admission([node(gpus=2)], stages={"evaluate": {"gpus": 0.5}, "sample": {"gpus": 1}})
    running = set[str]()
    assert len(started(admitted, works("evaluate", 2), running)) == 2
    assert started(admitted, works("sample", 2), running) == ["sample0"]


def test_three_quarters_do_not_fit_into_two_halves() -> None:
    """One GPU is free in sum, but half of each."""
    admitted = admission([node("a", gpus=1), node("b", gpus=1)], stages={"evaluate": {"gpus": 0.5}, "sample": {"gpus": 0.75}})
    jobs = works("evaluate", 3)
    running: set[str] = set()
    started(admitted, jobs, running)
    running.discard("evaluate0")
    admitted.retain(running)
    assert sum(sum(free.gpus) for free in admitted._free.nodes.values()) == 1.0
    assert started(admitted, works("sample", 1), running) == []


def test_halves_are_put_together_so_that_whole_gpus_stay_free() -> None:
    admitted = admission([node("a", gpus=1), node("b", gpus=1)], stages={"evaluate": {"gpus": 0.5}})
    started(admitted, works("evaluate", 2), set())
    assert {one.node for work in works("evaluate", 2) for one in admitted.allocations(work.id)} == {"a"}


def test_memory_and_gpu_types_are_counted() -> None:
    nodes = [node("a", gpus=1, memory_gb=16), node("b", gpus=1, memory_gb=64, accelerator_type_H100=1)]
    admitted = admission(nodes, stages={"evaluate": {"memory_gb": 20}, "sample": {"gpus": 1, "accelerator": "H100"}})
    running: set[str] = set()
    assert len(started(admitted, works("evaluate", 4), running)) == 3
    assert len(started(admitted, works("sample", 2), running)) == 1
    assert [one.node for one in admitted.allocations("sample0")] == ["b"]


@pytest.mark.parametrize(("placement", "nodes_used"), [("pack", 1), ("spread", 4)])
def test_workers_are_packed_or_spread(placement: str, nodes_used: int) -> None:
    nodes = [node(name, gpus=4) for name in "abcd"]
    admitted = admission(nodes, placement=placement, stages={"finetune": {"workers": 4, "gpus": 1}})
    started(admitted, works("finetune", 1), set())
    *workers, coordinator = admitted.allocations("finetune0")
    assert len(workers) == 4
    assert len({one.node for one in workers}) == nodes_used
    assert coordinator.amounts == COORDINATOR


def test_packing_prefers_the_node_that_holds_all() -> None:
    nodes = [node("a", gpus=1), node("b", gpus=3), node("c", gpus=8)]
    admitted = admission(nodes, stages={"finetune": {"workers": 3, "gpus": 1}})
    started(admitted, works("finetune", 1), set())
    assert {one.node for one in admitted.allocations("finetune0")} == {"b"}


def race(patience: int, num_narrow: int = 200, seed: int = 0) -> int:
    """How many narrow jobs of an endless stream start before a wide one that waits since the beginning."""
    admitted = admission(
        [node("a", cpus=64, gpus=4)], patience, stages={"finetune": {"workers": 4, "gpus": 1}, "evaluate": {"gpus": 1}}
    )
    order, running = random.Random(seed), set[str]()
    narrow, wide = works("evaluate", num_narrow), [Work("wide", "finetune")]
    assert admitted.fits(narrow.pop())  # type: ignore[arg-type]
    running.add(f"evaluate{num_narrow - 1}")
    count = 0
    while True:
        admitted.retain(running)
        for queue in (narrow, wide):  # the queue's order: evaluators are always asked first
            if queue and admitted.fits(queue[0]):  # type: ignore[arg-type]
                running.add(queue.pop(0).id)
                count += queue is narrow
                break
        else:
            running.discard(order.choice(sorted(running)))
        if not wide or not narrow:
            return count


def test_narrow_jobs_cannot_starve_a_wide_one() -> None:
    """Without patience running out, a whole stream of narrow jobs passes it."""
    assert race(patience=10**9) == 199
    assert max(race(patience=4, seed=seed) for seed in range(20)) <= 4 + 5


def test_jobs_that_want_something_else_pass_the_one_that_waits() -> None:
    admitted = admission(
        [node("a", cpus=64, gpus=2)],
        0,
        stages={"finetune": {"workers": 2, "gpus": 1}, "sample": {"gpus": 1}, "evaluate": {"gpus": 0}},
    )
    running: set[str] = set()
    started(admitted, works("sample", 1), running)
    order = [*works("finetune", 1), Work("later", "sample"), *works("evaluate", 3)]
    assert started(admitted, order, running) == ["evaluate0", "evaluate1", "evaluate2"]
    running.discard("sample0")
    assert started(admitted, order, running) == ["finetune0"]


def test_what_is_promised_on_a_lost_node_is_promised_elsewhere() -> None:
    nodes = [node("a", gpus=2), node("b", gpus=2)]
    admitted = admission(nodes, 0, stages={"finetune": {"workers": 2, "gpus": 1}, "sample": {"gpus": 1}})
    running: set[str] = set()
    started(admitted, works("sample", 3), running)
    lost = admitted.allocations("sample0")[0].node
    wide = works("finetune", 1)
    assert started(admitted, wide, running) == []
    admitted.set_nodes([one for one in nodes if one.id != lost])
    running = {work.id for work in works("sample", 3) if admitted.allocations(work.id)[0].node != lost}
    assert started(admitted, [*wide, Work("new", "sample")], running) == []
    assert started(admitted, wide, set()) == ["finetune0"]
    assert lost not in {one.node for one in admitted.allocations("finetune0")}


def test_every_job_ends_and_nothing_is_overbooked_whatever_comes() -> None:
    """300 random jobs on three unlike nodes; no node's free amounts go below zero."""
    nodes = [node("a", 4, 1), node("b", 8, 2), node("c", 16, 4, accelerator_type_H100=1)]
    stages = {
        "finetune": {"workers": 3, "gpus": 1},
        "sample": {"gpus": 0.75},
        "evaluate": {"gpus": 0.25},
        "features": {"cpus": 5},
        "encode": {"gpus": 2, "accelerator": "H100"},
    }
    admitted = admission(nodes, 2, stages=stages)
    order = random.Random(3)
    queues = {stage: [] for stage in stages}
    for place in range(300):
        stage = order.choice(list(stages))
        queues[stage].append(Work(f"{stage}{place}", stage))
    running: set[str] = set()
    num_done = 0
    while any(queues.values()) or running:
        admitted.retain(running)
        for queue in queues.values():
            if queue and admitted.fits(queue[0]):
                running.add(queue.pop(0).id)
                break
        else:
            assert running, "nothing runs and nothing may start"
            running.discard(order.choice(sorted(running)))
            num_done += 1
        for free in admitted._free.nodes.values():
            assert min([*free.amounts.values(), *free.gpus]) > -1e-6
    assert num_done == 300


def test_what_can_never_run_is_refused_with_what_could() -> None:
    with pytest.raises(ClusterError, match="4 workers with 1 CPU, 1 GPU each.*2 nodes with 8 CPU, 1 GPU") as caught:
        admission([node("a", gpus=1), node("b", gpus=1)], stages={"finetune": {"workers": 4, "gpus": 1}})
    assert "resources.workers: 2" in caught.value.fix
    with pytest.raises(ClusterError, match="evaluate asks for 1 CPU, 4 GPU") as caught:
        admission([node(gpus=2)], stages={"evaluate": {"gpus": 4}})
    assert "1 CPU, 2 GPU a worker" in caught.value.fix
    with pytest.raises(ClusterError, match="200 GB memory, a node with A100.*64 GB memory"):
        admission([node(gpus=1)], stages={"sample": {"memory_gb": 200, "accelerator": "A100"}})


def test_an_encode_over_the_cluster_takes_as_many_tasks_as_fit() -> None:
    admitted = admission([node("a", gpus=2), node("b", gpus=3)], encode="cluster", stages={"encode": {"gpus": 1}})
    assert admitted.demand("encode").num == 5


@pytest.mark.parametrize(("asked", "num"), [({"gpus": 1, "cpus": 8}, 1000), ({"cpus": 1}, 16_000)])
def test_a_thousand_gpus_are_counted_and_placed_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, float], num: int
) -> None:
    find, num_calls = NodeCapacity.find, [0]

    def counted(capacity: NodeCapacity, amounts: Any) -> tuple[int, ...] | None:
        num_calls[0] += 1
        return find(capacity, amounts)

    monkeypatch.setattr(NodeCapacity, "find", counted)
    nodes = [node(f"node-{place}", cpus=128, gpus=8) for place in range(125)]
    admitted = admission(nodes, encode="cluster", stages={"encode": asked})
    assert [admitted.fits(work) for work in works("encode", 2)] == [True, False]  # type: ignore[arg-type]
    assert len(admitted.allocations("encode0")) == num + 1
    # to count, to check, to place, and a look at each node for every other stage
    assert num_calls[0] < 4 * num + len(nodes) * len(get_args(StageName))


@pytest.mark.parametrize("seed", range(20))
def test_the_most_that_fits_is_found_by_trying_one_more_each_time(seed: int) -> None:
    pick = random.Random(seed).choice
    names = [f"node-{place}" for place in range(pick([1, 2, 4]))]
    empty = ClusterCapacity.empty({name: node(name, pick([1, 3, 8]), pick([0, 1, 4]), pick([1, 2])) for name in names})
    each = {"CPU": pick([0.5, 1, 2]), "GPU": pick([0, 0.25, 0.75, 2]), "memory": pick([0, 1e9])}
    num = 0
    while empty.place(Demand(each, num + 1, "spread", COORDINATOR)) is not None:
        num += 1
    assert empty.most(each, COORDINATOR) == num


def test_amounts_are_named_as_ray_names_them() -> None:
    spec = ResourcesSpec(cpus=2, gpus=0.5, memory_gb=3, accelerator="L40S").of("evaluate")
    assert amounts_of(spec) == {"CPU": 2, "GPU": 0.5, "memory": 3e9, "accelerator_type:L40S": 0.001}


def test_a_node_gives_the_fullest_gpu_that_holds_a_fraction() -> None:
    capacity = NodeCapacity({"GPU": 3})
    for share, place in ((0.5, 0), (0.75, 1), (0.25, 1), (0.5, 0)):
        gpus = capacity.find({"GPU": share})
        assert gpus == (place,)
        capacity.take(Allocation("", {"GPU": share}, gpus))
    assert capacity.find({"GPU": 2}) is None
    assert ClusterCapacity({"a": capacity}).place(Demand({"GPU": 1}, num=2)) is None
