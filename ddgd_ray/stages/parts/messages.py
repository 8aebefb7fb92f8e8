"""Bytes from one rank to another, over gloo or NCCL, a message of bounded size at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

MESSAGE = 64 << 20  # bytes


def gathered(names: Sequence[str], num_ranks: int) -> list[Sequence[str]]:
    """What each rank has."""
    found: list[Any] = [names] * num_ranks
    if num_ranks > 1:
        dist.all_gather_object(found, list(names))
    return found


def send(data: "memoryview | NDArray[np.uint8]", to: int) -> None:
    """Bytes to another rank, a message of bounded size at a time."""
    device = _device()
    dist.send(torch.tensor([len(data)], device=device), to)
    for start in range(0, len(data), MESSAGE):
        part = torch.from_numpy(np.array(data[start : start + MESSAGE], np.uint8))
        dist.send(part.to(device), to)


def receive(source: int) -> bytearray:
    device = _device()
    size = torch.zeros(1, dtype=torch.int64, device=device)
    dist.recv(size, source)
    data = bytearray(int(size))
    for start in range(0, len(data), MESSAGE):
        part = torch.empty(min(MESSAGE, len(data) - start), dtype=torch.uint8, device=device)
        dist.recv(part, source)
        data[start : start + len(part)] = part.cpu().numpy().tobytes()
    return data


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
