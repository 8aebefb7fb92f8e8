"""Which jobs may run at once, and where. Pure: executors tell it the nodes, the conductor asks it for each job.

Ray alone lets wide jobs starve behind narrow ones and waits for ever for what no node has. Here a job that has been passed
PATIENCE times is promised its seats: nothing that would still hold them when those who sit there now have left may start.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import get_args

from ddgd_ray.cluster.placement import Amounts, Demand, Node, Rooms, Seat
from ddgd_ray.errors import ClusterError
from ddgd_ray.plan.jobs import Job
from ddgd_ray.spec.sweep_spec import AmountsSpec, ResourcesSpec, StageName

PATIENCE = 4
WAITER: Amounts = {"memory": 1.0}  # one byte: what a process holds that only waits for workers; Ray refuses nothing at all
UNITS = {"memory": ("GB", 1e9)}

log = logging.getLogger(__name__)


def amounts_of(spec: AmountsSpec) -> Amounts:
    """What one worker asks Ray for."""
    amounts = {"CPU": spec.cpus, "GPU": spec.gpus, "memory": spec.memory_gb * 1e9}
    if spec.accelerator:
        amounts[f"accelerator_type:{spec.accelerator}"] = 0.001
    return {name: amount for name, amount in amounts.items() if amount}


def demand_of(stage: str, resources: ResourcesSpec) -> Demand:
    """What a job of this stage holds while it runs."""
    spec = resources.of(stage)
    if spec.workers == 1:
        return Demand(amounts_of(spec))
    return Demand(amounts_of(spec), spec.workers, resources.placement, WAITER)


def is_spread_over_cluster(stage: str, resources: ResourcesSpec) -> bool:
    """Whether its parts are made by tasks of their own, as many at once as the empty cluster holds."""
    return stage == "encode" and resources.encode == "cluster"


@dataclass
class _Wait:
    """A job that did not fit. seats: what it was promised. beside: who has started since and must leave these free."""

    job_id: str
    num_passed: int = 0
    seats: tuple[Seat, ...] = ()
    beside: set[str] = field(default_factory=set)


class Admission:
    """`fits` seats a job or refuses it; `retain` says, before each round of asking, who still runs."""

    def __init__(self, nodes: Iterable[Node], resources: ResourcesSpec, patience: int = PATIENCE) -> None:
        """Raises ClusterError when jobs of some stage could never run, with what would."""
        self._resources, self._patience = resources, patience
        self._seats: dict[str, tuple[Seat, ...]] = {}
        self._waits: dict[str, _Wait] = {}
        self._asked: set[str] = set()
        self._has_started = False
        self._most: int | None = None  # tasks of a stage that is spread over the nodes
        self.set_nodes(nodes)
        for stage in get_args(StageName):
            refuse_what_never_fits(stage, self.demand(stage), self.nodes)

    def demand(self, stage: str) -> Demand:
        demand = demand_of(stage, self._resources)
        if is_spread_over_cluster(stage, self._resources):
            if self._most is None:
                self._most = Rooms.empty(self.nodes).most(demand.each, WAITER)
            if self._most:
                return Demand(demand.each, self._most, "spread", WAITER)
        return demand

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """The nodes that are there now. What was promised on others is promised anew."""
        self.nodes = {node.id: node for node in nodes}
        self._most = None
        self._free = Rooms.empty(self.nodes)
        for seats in self._seats.values():
            self._free.take(seats)
        for wait in self._waits.values():
            wait.seats = ()

    def seats(self, job_id: str) -> tuple[Seat, ...]:
        """Where a running job sits: its workers', and last that of the process that waits for them."""
        return self._seats.get(job_id, ())

    def retain(self, running: Collection[str]) -> None:
        """Free the seats of all jobs but these. A new round: who waits and was not asked for in vain is forgotten."""
        for job_id in [one for one in self._seats if one not in running]:
            self._free.take(self._seats.pop(job_id), sign=1)
            for wait in self._waits.values():
                wait.beside.discard(job_id)
        if self._asked and not self._has_started:
            self._waits = {job_id: wait for job_id, wait in self._waits.items() if job_id in self._asked}
        self._asked, self._has_started = set(), False

    def fits(self, job: Job) -> bool:
        """Whether `job` may start now; if so, its seats are taken."""
        self._asked.add(job.id)
        demand = self.demand(job.stage)
        seats = self._open_to(job.id).place(demand)
        if seats is None:
            self._make_wait(job.id, demand)
            return False
        self._has_started = True
        self._seats[job.id] = seats
        self._free.take(seats)
        self._waits.pop(job.id, None)
        for wait in self._waits.values():
            wait.num_passed += 1
            wait.beside.add(job.id)
        return True

    def _open_to(self, job_id: str) -> Rooms:
        """What is free and promised to nobody before this job."""
        free = self._free
        for wait in self._waits.values():
            if wait.job_id == job_id:
                break  # those behind it cannot hold it up
            if wait.seats:
                free = free.least(self._left_by(wait))
        return free

    def _left_by(self, wait: _Wait) -> Rooms:
        """The cluster once it holds the promised job and who started beside it, and all before it have left."""
        left = Rooms.empty(self.nodes)
        left.take(wait.seats)
        for job_id in wait.beside:
            left.take(self._seats.get(job_id, ()))
        return left

    def _make_wait(self, job_id: str, demand: Demand) -> None:
        wait = self._waits.setdefault(job_id, _Wait(job_id))
        if wait.num_passed < self._patience or wait.seats:
            return
        room = Rooms.empty(self.nodes)
        for other in self._waits.values():
            if other is wait:
                break
            if other.seats:
                room = room.least(self._left_by(other))
        wait.seats = room.place(demand) or ()
        wait.beside = set()
        if wait.seats:
            log.info("%s has waited while %d others started: room is kept for it", job_id[:8], wait.num_passed)


def refuse_what_never_fits(stage: str, demand: Demand, nodes: Mapping[str, Node]) -> None:
    """Raises ClusterError when not even the empty cluster has room; Ray would wait for ever."""
    empty = Rooms.empty(nodes)
    if empty.place(demand) is not None:
        return
    num = empty.most(demand.each, demand.waiter)
    workers = f"{demand.num} workers with {shown(demand.each)} each" if demand.num > 1 else shown(demand.each)
    nearest = f"resources.workers: {num}" if num else f"{_nearest(demand.each, nodes)} a worker"
    raise ClusterError(
        f"{stage} asks for {workers}, which never fits; the cluster offers {_offers(demand.each, nodes)}",
        code="infeasible",
        where="resources",
        fix=f"the nearest that fits is {nearest}; or join a larger cluster with --address",
    )


def shown(amounts: Amounts) -> str:
    """1 CPU, 0.5 GPU, 8 GB memory, an H100."""
    parts = []
    for name, amount in amounts.items():
        unit, size = UNITS.get(name, ("", 1))
        if name.startswith("accelerator_type:"):
            parts.append(f"a node with {name.partition(':')[2]}")
        else:
            parts.append(f"{amount / size:g} {unit} {name}" if unit else f"{amount:g} {name}")
    return ", ".join(parts) or "nothing"


def _offers(each: Amounts, nodes: Mapping[str, Node]) -> str:
    """Of each node, in the amounts that were asked for."""
    kinds: dict[str, int] = {}
    for node in nodes.values():
        has = [name.partition(":")[2] for name in node.offers if name.startswith("accelerator_type:")]
        amounts = {name: round(node.offers.get(name, 0), 1) for name in each if not name.startswith("accelerator_type:")}
        text = shown(amounts) + (f" ({', '.join(has)})" if has else "")
        kinds[text] = kinds.get(text, 0) + 1
    return "; ".join(f"{num} node{'s' if num > 1 else ''} with {text}" for text, num in kinds.items()) or "no node"


def _nearest(each: Amounts, nodes: Mapping[str, Node]) -> str:
    """What is asked for, lowered to what the node has that lacks the fewest kinds, then the least."""

    def lacks(node: Node) -> tuple[int, float]:
        missing = {
            name: amount - node.offers.get(name, 0) for name, amount in each.items() if amount > node.offers.get(name, 0)
        }
        return len(missing), sum(lack / each[name] for name, lack in missing.items())

    if not nodes:
        return "nothing"
    best = min(nodes.values(), key=lacks)
    return shown({name: min(amount, best.offers.get(name, 0)) for name, amount in each.items() if best.offers.get(name, 0)})
