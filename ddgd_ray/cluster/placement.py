"""What is left of each node, GPU by GPU, and where a job's workers find room. Pure.

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
    """One machine of the cluster and all that it offers."""

    id: str
    offers: Amounts
    name: str = ""


@dataclass(frozen=True)
class Demand:
    """What a job holds at once: `num` workers with `each`. waiter: what the process holds that only waits for them."""

    each: Amounts
    num: int = 1
    placement: Placement = "pack"
    waiter: Amounts = field(default_factory=dict)


@dataclass(frozen=True)
class Seat:
    """A worker's place: a node, and which of its GPUs."""

    node: str
    amounts: Amounts
    gpus: tuple[int, ...] = ()


class Room:
    """What is left of one node. A GPU may be shared by fractions; more than one are whole ones."""

    def __init__(self, offers: Amounts) -> None:
        self.rest = {name: amount for name, amount in offers.items() if name != "GPU"}
        self.gpus = [1.0] * int(offers.get("GPU", 0))

    def copy(self) -> "Room":
        made = Room({})
        made.rest, made.gpus = dict(self.rest), list(self.gpus)
        return made

    def least(self, other: "Room") -> "Room":
        """What is left in both."""
        made = Room({})
        made.rest = {name: min(amount, other.rest[name]) for name, amount in self.rest.items()}
        made.gpus = [min(pair) for pair in zip(self.gpus, other.gpus, strict=True)]
        return made

    def find(self, amounts: Amounts) -> tuple[int, ...] | None:
        """The GPUs, none or more, that a worker with these amounts would get; None when it does not fit.

        A fraction goes to the GPU with the least left that holds it, as Ray does it.
        """
        if any(amount > self.rest.get(name, 0) + EPSILON for name, amount in amounts.items() if name != "GPU"):
            return None
        wanted = amounts.get("GPU", 0)
        if not wanted:
            return ()
        share = min(wanted, 1.0)
        holding = [place for place, left in enumerate(self.gpus) if left + EPSILON >= share]
        holding.sort(key=lambda place: self.gpus[place])
        num = max(1, round(wanted))
        return tuple(holding[:num]) if len(holding) >= num else None

    def take(self, seat: Seat, sign: int = -1) -> None:
        """Count a worker in; with sign 1, out."""
        for name, amount in seat.amounts.items():
            if name != "GPU":
                self.rest[name] = self.rest.get(name, 0) + sign * amount
        for place in seat.gpus:
            self.gpus[place] += sign * min(seat.amounts["GPU"], 1.0)

    @property
    def size(self) -> tuple[float, float]:
        """GPUs and CPUs that are left: what nodes are compared by."""
        return sum(self.gpus), self.rest.get("CPU", 0)


class Rooms:
    """All nodes of the cluster."""

    def __init__(self, rooms: dict[str, Room]) -> None:
        self.rooms = rooms

    @classmethod
    def empty(cls, nodes: Mapping[str, Node]) -> Self:
        return cls({node_id: Room(node.offers) for node_id, node in nodes.items()})

    def copy(self) -> "Rooms":
        return Rooms({node_id: room.copy() for node_id, room in self.rooms.items()})

    def least(self, other: "Rooms") -> "Rooms":
        return Rooms({node_id: room.least(other.rooms[node_id]) for node_id, room in self.rooms.items()})

    def take(self, seats: tuple[Seat, ...], sign: int = -1) -> None:
        """Workers on nodes that are gone count for nothing."""
        for seat in seats:
            if seat.node in self.rooms:
                self.rooms[seat.node].take(seat, sign)

    def place(self, demand: Demand) -> tuple[Seat, ...] | None:
        """Seats for all workers and, last, for the one that waits for them; None when they do not fit at once."""
        left = self.copy() if demand.num > 1 or demand.waiter else self
        choices = left._spread(demand.each) if demand.placement == "spread" else left._pack(demand.each, demand.num)
        seats: list[Seat] = []
        for seat in islice(choices, demand.num):
            seats.append(seat)
            if left is not self:
                left.rooms[seat.node].take(seat)
        if len(seats) < demand.num:
            return None
        if demand.waiter:
            node = seats[0].node if left.rooms[seats[0].node].find(demand.waiter) is not None else ""
            node = node or left._has_room(demand.waiter)
            if not node:
                return None
            seats.append(Seat(node, demand.waiter))
        return tuple(seats)

    def most(self, each: Amounts, waiter: Amounts) -> int:
        """How many workers fit at once beside the one that waits for them."""
        left, seats = self.copy(), []
        for seat in left._spread(each):
            left.rooms[seat.node].take(seat)
            seats.append(seat)
        while seats and not left._has_room(waiter):
            seat = seats.pop()
            left.rooms[seat.node].take(seat, sign=1)
        return len(seats)

    def _has_room(self, amounts: Amounts) -> str:
        """The first node that holds them, "" of none."""
        return next((node_id for node_id, room in self.rooms.items() if room.find(amounts) is not None), "")

    def _pack(self, each: Amounts, num: int) -> Iterator[Seat]:
        """On the node that has the least left of those that hold all `num`; if none does, where most of them fit.

        Each seat is to be taken before the next is asked for.
        """
        taken: set[str] = set()
        for num_left in range(num, 0, -1):
            found = self._fitting(each)
            if not found:
                return
            counts = {node_id: _count(self.rooms[node_id], each, num_left) if num_left > 1 else 1 for node_id in found}
            most = max(counts.values())
            best = (one for one in found if counts[one] == most)
            node_id = min(best, key=lambda one: (one not in taken, self.rooms[one].size, one))
            yield Seat(node_id, each, found[node_id])
            taken.add(node_id)

    def _spread(self, each: Amounts) -> Iterator[Seat]:
        """On the node with the fewest workers of this job, then with the most left, while there is room.

        Each seat is to be taken before the next is asked for. A node that is full is not asked again: workers may be thousands.
        """

        def ranked(node_id: str, num: int) -> tuple[int, float, float, str]:
            gpus, cpus = self.rooms[node_id].size
            return num, -gpus, -cpus, node_id

        queue = [ranked(node_id, 0) for node_id in self.rooms]
        heapify(queue)
        while queue:
            num, *_, node_id = heappop(queue)
            gpus = self.rooms[node_id].find(each)
            if gpus is not None:
                yield Seat(node_id, each, gpus)
                heappush(queue, ranked(node_id, num + 1))

    def _fitting(self, each: Amounts) -> dict[str, tuple[int, ...]]:
        found = {node_id: room.find(each) for node_id, room in self.rooms.items()}
        return {node_id: gpus for node_id, gpus in found.items() if gpus is not None}


def _count(room: Room, each: Amounts, most: int) -> int:
    """How many workers fit, `most` at most."""
    left = room.copy()
    for num in range(most):
        gpus = left.find(each)
        if gpus is None:
            return num
        left.take(Seat("", each, gpus))
    return most
