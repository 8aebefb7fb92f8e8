"""Admission: which jobs may run at once, and where. Pure: executors tell it the nodes, the conductor asks it for each job.

Ray alone lets wide jobs starve behind narrow ones and waits for ever for what no node has. Here a job that PATIENCE others
have passed gets a reservation: what is reserved counts as taken for all jobs but the one that waits for it.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from ddgd_ray.cluster.placement import Allocation, Amounts, ClusterCapacity, Demand, Node
from ddgd_ray.errors import ClusterError
from ddgd_ray.plan.jobs import Job
from ddgd_ray.spec.sweep_spec import AmountsSpec, ResourcesSpec, StageName

PATIENCE = 4
COORDINATOR: Amounts = {"memory": 1.0}  # one byte: a process that only waits for workers; Ray refuses one that asks for nothing
UNITS = {"memory": ("GB", 1e9)}

log = logging.getLogger(__name__)


def amounts_of(spec: AmountsSpec) -> Amounts:
    """The amounts that one worker asks Ray for."""
    amounts = {"CPU": spec.cpus, "GPU": spec.gpus, "memory": spec.memory_gb * 1e9}
    if spec.accelerator:
        amounts[f"accelerator_type:{spec.accelerator}"] = 0.001
    return {name: amount for name, amount in amounts.items() if amount}


def demand_of(stage: str, resources: ResourcesSpec) -> Demand:
    """The demand of a job of this stage."""
    spec = resources.of(stage)
    if spec.workers == 1:
        return Demand(amounts_of(spec))
    return Demand(amounts_of(spec), spec.workers, resources.placement, COORDINATOR)


def is_spread_over_cluster(stage: str, resources: ResourcesSpec) -> bool:
    """A job of this stage is made by tasks of its own, as many at once as the empty cluster holds."""
    return stage == "encode" and resources.encode == "cluster"


@dataclass
class _Waiting:
    """A job that did not fit. num_passed: jobs that have started since. reserved: what is kept for it, () before PATIENCE."""

    num_passed: int = 0
    reserved: tuple[Allocation, ...] = ()


class Admission:
    """`fits` allocates what a job needs, or refuses it; `retain` says, before each round of asking, which jobs still run."""

    def __init__(self, nodes: Iterable[Node], resources: ResourcesSpec, patience: int = PATIENCE) -> None:
        """Raises ClusterError when jobs of some stage could never run, and says what could."""
        self._resources, self._patience = resources, patience
        self._allocations: dict[str, tuple[Allocation, ...]] = {}
        self._waiting: dict[str, _Waiting] = {}  # {job id: ...}, who has waited longest first
        self._asked: set[str] = set()
        self._has_started = False
        self._most: int | None = None  # tasks of a stage that is spread over the nodes
        self.set_nodes(nodes)
        for stage in get_args(StageName):
            refuse_what_never_fits(stage, self.demand(stage), self.nodes)

    def demand(self, stage: str) -> Demand:
        """The demand of a job of this stage; a stage that is spread over the cluster takes all of it."""
        demand = demand_of(stage, self._resources)
        if is_spread_over_cluster(stage, self._resources):
            if self._most is None:
                self._most = ClusterCapacity.empty(self.nodes).most(demand.each, COORDINATOR)
            if self._most:
                return Demand(demand.each, self._most, "spread", COORDINATOR)
        return demand

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Take note of the nodes that are alive now. Reservations on the old ones are made anew when their jobs ask again."""
        self.nodes = {node.id: node for node in nodes}
        self._most = None
        self._free = ClusterCapacity.empty(self.nodes)
        for allocations in self._allocations.values():
            self._free.take(allocations)
        for waiting in self._waiting.values():
            waiting.reserved = ()

    def allocations(self, job_id: str) -> tuple[Allocation, ...]:
        """The allocations of a running job: one for each worker and, last, that of the process that waits for them."""
        return self._allocations.get(job_id, ())

    def retain(self, running: Collection[str]) -> None:
        """Begin a new round: free what all jobs but these hold.

        A job that waits but was not asked for in the round before, in which none could start, does not wait any more.
        """
        for job_id in [one for one in self._allocations if one not in running]:
            self._free.take(self._allocations.pop(job_id), sign=1)
        if self._asked and not self._has_started:
            self._waiting = {job_id: waiting for job_id, waiting in self._waiting.items() if job_id in self._asked}
        self._asked, self._has_started = set(), False

    def fits(self, job: Job) -> bool:
        """True when `job` may start now; its allocations are then taken."""
        self._asked.add(job.id)
        demand = self.demand(job.stage)
        allocations = self._open_to(job.id, self._free).place(demand)
        if allocations is None:
            self._make_wait(job.id, demand)
            return False
        self._has_started = True
        self._allocations[job.id] = allocations
        self._free.take(allocations)
        self._waiting.pop(job.id, None)
        for waiting in self._waiting.values():
            waiting.num_passed += 1
        return True

    def _open_to(self, job_id: str, capacity: ClusterCapacity) -> ClusterCapacity:
        """The capacity without what is reserved for jobs that have waited longer than this one."""
        reserved: list[Allocation] = []
        for other, waiting in self._waiting.items():
            if other == job_id:
                break
            reserved += waiting.reserved
        if not reserved:
            return capacity
        rest = capacity.copy()
        rest.take(tuple(reserved))
        return rest

    def _make_wait(self, job_id: str, demand: Demand) -> None:
        """Take note that a job waits; reserve what it needs once enough others have passed it."""
        waiting = self._waiting.setdefault(job_id, _Waiting())
        if waiting.num_passed < self._patience or waiting.reserved:
            return
        waiting.reserved = self._open_to(job_id, ClusterCapacity.empty(self.nodes)).place(demand) or ()
        if waiting.reserved:
            log.info("%s has waited while %d others started: room is kept for it", job_id[:8], waiting.num_passed)


def refuse_what_never_fits(stage: str, demand: Demand, nodes: Mapping[str, Node]) -> None:
    """Raises ClusterError when even the empty cluster has no room for the demand; Ray would wait for ever."""
    empty = ClusterCapacity.empty(nodes)
    if empty.place(demand) is not None:
        return
    num = empty.most(demand.each, demand.coordinator)
    workers = f"{demand.num} workers with {shown(demand.each)} each" if demand.num > 1 else shown(demand.each)
    nearest = f"resources.workers: {num}" if num else f"{_nearest(demand.each, nodes)} a worker"
    raise ClusterError(
        f"{stage} asks for {workers}, which never fits; the cluster offers {_offers(demand.each, nodes)}",
        code="infeasible",
        where="resources",
        fix=f"the nearest that fits is {nearest}; or join a larger cluster with --address",
    )


def shown(amounts: Amounts) -> str:
    """Amounts as text, for example `1 CPU, 0.5 GPU, 8 GB memory, a node with H100`."""
    parts = []
    for name, amount in amounts.items():
        unit, size = UNITS.get(name, ("", 1))
        if name.startswith("accelerator_type:"):
            parts.append(f"a node with {name.partition(':')[2]}")
        else:
            parts.append(f"{amount / size:g} {unit} {name}" if unit else f"{amount:g} {name}")
    return ", ".join(parts) or "nothing"


def _offers(each: Amounts, nodes: Mapping[str, Node]) -> str:
    """The offers of all nodes as text, in the amounts that were asked for; equal nodes are counted."""
    kinds: dict[str, int] = {}
    for node in nodes.values():
        has = [name.partition(":")[2] for name in node.offers if name.startswith("accelerator_type:")]
        amounts = {name: round(node.offers.get(name, 0), 1) for name in each if not name.startswith("accelerator_type:")}
        text = shown(amounts) + (f" ({', '.join(has)})" if has else "")
        kinds[text] = kinds.get(text, 0) + 1
    return "; ".join(f"{num} node{'s' if num > 1 else ''} with {text}" for text, num in kinds.items()) or "no node"


def _nearest(each: Amounts, nodes: Mapping[str, Node]) -> str:
    """The amounts asked for, lowered to what the nearest node offers: it lacks the fewest kinds of amounts, then the least."""

    def lacks(node: Node) -> tuple[int, float]:
        missing = {
            name: amount - node.offers.get(name, 0) for name, amount in each.items() if amount > node.offers.get(name, 0)
        }
        return len(missing), sum(lack / each[name] for name, lack in missing.items())

    if not nodes:
        return "nothing"
    best = min(nodes.values(), key=lacks)
    return shown({name: min(amount, best.offers.get(name, 0)) for name, amount in each.items() if best.offers.get(name, 0)})
