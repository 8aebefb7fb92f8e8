"""A batch of labelled rows, grouped by class on the host and sent to the device in one copy that the host does not wait for.

Shapes: B batch, P classes of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrivals:
    """A batch, class by class; the class with the most rows to lose stands first, so that those of a turn are a prefix.

    members: rows of the batch by class. surplus: rows that each class must lose. On the device: order_B, the rows in this
    order; label_B, group_B and nth_B, a row's class, its place in `members`, and how many of its class stand before it;
    birth_B, its insertion number; classes_P; before_P and after_P, insertions into the class without and with this batch.
    """

    members: dict[int, list[int]]
    surplus: list[int]
    order_B: Tensor
    label_B: Tensor
    group_B: Tensor
    nth_B: Tensor
    birth_B: Tensor
    classes_P: Tensor
    before_P: Tensor
    after_P: Tensor


def arrivals(labels: Sequence[int], surplus_of: dict[int, int], seen: dict[int, int], device: torch.device) -> Arrivals:
    """The batch with these labels, class by class.

    surplus_of: rows to lose. seen: insertions into each class before this batch.
    """
    found = members_of(labels)
    members = {label: found[label] for label in sorted(found, key=lambda label: (-surplus_of[label], label))}
    place = [(row, label, group, nth) for group, (label, rows) in enumerate(members.items()) for nth, row in enumerate(rows)]
    order, own, groups, nths = (list(column) for column in zip(*place, strict=True))
    births = [seen[label] + nth for _, label, _, nth in place]
    before = [seen[label] for label in members]
    after = [seen[label] + len(rows) for label, rows in members.items()]
    columns = sent(device, order, own, groups, nths, births, list(members), before, after)
    return Arrivals(members, [surplus_of[label] for label in members], *columns)


def members_of(labels: Sequence[int]) -> dict[int, list[int]]:
    """The rows of a batch by class, both in ascending order."""
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        members[label].append(row)
    return members


def staged(host: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, by a copy that the host does not wait for: for that, CUDA needs pinned memory."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def sent(device: torch.device, *columns: Sequence[int]) -> tuple[Tensor, ...]:
    """The columns on the device as int64, all in one copy."""
    packed = torch.tensor([number for column in columns for number in column], dtype=torch.int64)
    return staged(packed, device).split([len(column) for column in columns])
