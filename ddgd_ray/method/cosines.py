"""Cosines of rows to all slots of their own class, without a copy of the slots.

Shapes: K classes, S slots, D flat latent, B batch. `members`: rows of the batch by class; the rows stand class by class.
"""

from typing import Any, Protocol

import torch
from torch import Tensor


class Slots(Protocol):
    """Slots by class. unit_KSD: unit rows. num_pushes: pushes so far; a push only fills slots that were free before it."""

    unit_KSD: Tensor
    num_pushes: int


def own_cosines(unit_BD: Tensor, unit_KSD: Tensor, members: dict[int, list[int]]) -> Tensor:
    """Cosines (B, S) of rows that stand class by class: one product a class, with the class's slots where they lie."""
    parts = unit_BD.split([len(rows) for rows in members.values()])
    return torch.cat([part_BD @ unit_KSD[label].T for label, part_BD in zip(members, parts, strict=True)])


class OwnCosines(torch.autograd.Function):
    """The cosines of `own_cosines`, differentiable in the rows although the memory's tensor changes before the backward pass.

    Autograd would keep a copy of all slots of the classes: more traffic than the products themselves.
    """

    @staticmethod
    def forward(ctx: Any, unit_BD: Tensor, memory: Slots, members: dict[int, list[int]]) -> Tensor:
        ctx.memory, ctx.members, ctx.num_pushes = memory, members, memory.num_pushes
        return own_cosines(unit_BD, memory.unit_KSD, members)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        assert ctx.memory.num_pushes <= ctx.num_pushes + 1, "a second push may have overwritten rows that were looked at"
        parts = gradients[0].split([len(rows) for rows in ctx.members.values()])
        slots = (ctx.memory.unit_KSD[label] for label in ctx.members)
        return torch.cat([part_BS @ slots_SD for part_BS, slots_SD in zip(parts, slots, strict=True)]), None, None
