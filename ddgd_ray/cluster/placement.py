"""Free amounts of each node, GPU by GPU, and a place on the nodes for each worker of a job. Pure.

Amounts are named as Ray names them: CPU, GPU, memory (bytes), accelerator_type:H100 and so on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Literal, Self

EPSILON = 1e-6  # Ray counts in steps of 1e-4

Amounts = Mapping[str, float]
Placement = Literal["pack", "spread"]


@dataclass(frozen=True)
class Node:
    """One machine of the cluster and all that it offers, used or not."""

    id: str
    offers: Amounts
    name: str = ""


@dataclass(frozen=True)
class Demand:
    """The workers of a job, which hold their amounts at once: `num` of them with `each`.

    coordinator: amounts of one more process, which starts the workers and waits for them; {} where the job has none.
    """

    each: Amounts
    num: int = 1
    placement: Placement = "pack"
    coordinator: Amounts = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """The part of a node that one worker holds. gpus: indices of the node's GPUs that it uses."""

    node: str
    amounts: Amounts
    gpus: tuple[int, ...] = ()


class NodeCapacity:
    """Amounts that are free on one node. A GPU may be shared by workers that ask for fractions of one.

    A free amount falls below zero where more is subtracted than there is: by what is reserved for a job that still waits.
    """

    def __init__(self, offers: Amounts) -> None:
        self.amounts = {name: amount for name, amount in offers.items() if name != "GPU"}
        self.gpus = [1.0] * int(offers.get("GPU", 0))
        """The free share of each GPU."""

    def copy(self) -> "NodeCapacity":
        twin = NodeCapacity({})
        twin.amounts, twin.gpus = dict(self.amounts), list(self.gpus)
        return twin

    def find(self, amounts: Amounts) -> tuple[int, ...] | None:
        """Indices of the GPUs that a worker with these amounts would use, maybe none; None when the worker does not fit.

        A fraction goes to the GPU with the smallest free share that holds it, as Ray does it.
        """
        if any(amount > self.amounts.get(name, 0) + EPSILON for name, amount in amounts.items() if name != "GPU"):
            return None
        wanted = amounts.get("GPU", 0)
        if not wanted:
            return ()
        share = min(wanted, 1.0)
        holding = [index for index, free in enumerate(self.gpus) if free + EPSILON >= share]
        holding.sort(key=lambda index: self.gpus[index])
        num = max(1, round(wanted))
        return tuple(holding[:num]) if len(holding) >= num else None

    def take(self, allocation: Allocation, sign: int = -1) -> None:
        """Subtract what a worker holds from what is free; with sign 1, add it."""
        for name, amount in allocation.amounts.items():
            if name != "GPU":
                self.amounts[name] = self.amounts.get(name, 0) + sign * amount
        for index in allocation.gpus:
            self.gpus[index] += sign * min(allocation.amounts["GPU"], 1.0)

    @property
    def size(self) -> tuple[float, float]:
        """Free GPUs and free CPUs: nodes are compared by these."""
        return sum(self.gpus), self.amounts.get("CPU", 0)


class ClusterCapacity:
    """Amounts that are free on each node of the cluster: {node id: NodeCapacity}."""

    def __init__(self, nodes: dict[str, NodeCapacity]) -> None:
        self.nodes = nodes

    @classmethod
    def empty(cls, nodes: Mapping[str, Node]) -> Self:
        """The capacity of a cluster on which nothing runs."""
        return cls({node_id: NodeCapacity(node.offers) for node_id, node in nodes.items()})

    def copy(self) -> "ClusterCapacity":
        return ClusterCapacity({node_id: node.copy() for node_id, node in self.nodes.items()})

    def take(self, allocations: tuple[Allocation, ...], sign: int = -1) -> None:
        """Subtract what these workers hold; with sign 1, add it. Workers on nodes that are gone are passed over."""
        for allocation in allocations:
            if allocation.node in self.nodes:
                self.nodes[allocation.node].take(allocation, sign)

    def place(self, demand: Demand) -> tuple[Allocation, ...] | None:
        """An allocation for each worker and, last, for the coordinator; None when they do not all fit at once."""
        free = self.copy() if demand.num > 1 or demand.coordinator else self
        choices = free._spread(demand.each) if demand.placement == "spread" else free._pack(demand.each, demand.num)
        allocations: list[Allocation] = []
        for allocation in islice(choices, demand.num):
            allocations.append(allocation)
            if free is not self:
                free.nodes[allocation.node].take(allocation)
        if len(allocations) < demand.num:
            return None
        if demand.coordinator:
            first = allocations[0].node
            node_id = first if free.nodes[first].find(demand.coordinator) is not None else free._first_with(demand.coordinator)
            if not node_id:
                return None
            allocations.append(Allocation(node_id, demand.coordinator))
        return tuple(allocations)

    def most(self, each: Amounts, coordinator: Amounts) -> int:
        """The largest number of workers that fit at once beside their coordinator."""
        free, allocations = self.copy(), []
        for allocation in free._spread(each):
            free.nodes[allocation.node].take(allocation)
            allocations.append(allocation)
        while allocations and not free._first_with(coordinator):
            allocation = allocations.pop()
            free.nodes[allocation.node].take(allocation, sign=1)
        return len(allocations)

    def _first_with(self, amounts: Amounts) -> str:
        """The id of the first node on which these amounts are free; "" when there is none."""
        return next((node_id for node_id, node in self.nodes.items() if node.find(amounts) is not None), "")

    def _pack(self, each: Amounts, num: int) -> Iterator[Allocation]:
        """Allocations on the fullest node that holds all `num` workers; if none does, on the one that holds most of them.

        The caller takes each allocation before it asks for the next.
        """
        used: set[str] = set()
        for num_left in range(num, 0, -1):
            found = self._fitting(each)
            if not found:
                return
            counts = {node_id: _count(self.nodes[node_id], each, num_left) if num_left > 1 else 1 for node_id in found}
            most = max(counts.values())
            best = (one for one in found if counts[one] == most)
            node_id = min(best, key=lambda one: (one not in used, self.nodes[one].size, one))
            yield Allocation(node_id, each, found[node_id])
            used.add(node_id)

    def _spread(self, each: Amounts) -> Iterator[Allocation]:
        """Allocations as long as there is room, each on the node with the fewest workers of this job, then the emptiest.

        The caller takes each allocation before it asks for the next. A node that is full is not asked again: there may be
        thousands of workers.
        """

        def ranked(node_id: str, num: int) -> tuple[int, float, float, str]:
            gpus, cpus = self.nodes[node_id].size
            return num, -gpus, -cpus, node_id

        queue = [ranked(node_id, 0) for node_id in self.nodes]
        heapify(queue)
        while queue:
            num, *_, node_id = heappop(queue)
            gpus = self.nodes[node_id].find(each)
            if gpus is not None:
                yield Allocation(node_id, each, gpus)
                heappush(queue, ranked(node_id, num + 1))

    def _fitting(self, each: Amounts) -> dict[str, tuple[int, ...]]:
        """{node id: indices of GPUs} of the nodes on which one more worker fits."""
        found = {node_id: node.find(each) for node_id, node in self.nodes.items()}
        return {node_id: gpus for node_id, gpus in found.items() if gpus is not None}


def _count(node: NodeCapacity, each: Amounts, most: int) -> int:
    """The number of workers that fit on a node, `most` at most."""
    free = node.copy()
    for num in range(most):
        gpus = free.find(each)
        if gpus is None:
            return num
        free.take(Allocation("", each, gpus))
    return most
