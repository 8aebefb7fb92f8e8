"""Checkpoints of a stage under way: written whole or not at all, read only when every byte is as it was written.

Layout: `step-00000500/` holds one safetensors file a part and `manifest.json` with their SHA-256.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from ddgd_ray.stages.base import Context
from ddgd_ray.storage.store import MANIFEST, crash_point, file_sha256, write_atomically

log = logging.getLogger(__name__)

KEPT = 2
LOOK_S = 0.5
AGREE_S = 2.0
MESSAGE_BYTES = 64 << 20
MAX_STEPS = 20  # between agreements; reading the answer waits for the device: not after every step
State = dict[str, Tensor]


class Checkpoints:
    """The newest checkpoints of one stage in `folder`, which rank 0 alone sees; without a folder, nothing is kept.

    The other ranks send rank 0 what they keep, and get back what they go on with: no folder has to be shared between hosts.
    """

    def __init__(self, folder: Path | None, *, every: int, rank: int = 0, num_ranks: int = 1) -> None:
        """every: steps between checkpoints; 0: a checkpoint only when there is an order to stop."""
        self.folder = folder
        self.every, self.rank, self.num_ranks = every, rank, num_ranks

    def is_due(self, step: int) -> bool:
        """Whether the state after step `step` (from 0) is to be kept."""
        return self.folder is not None and self.every > 0 and (step + 1) % self.every == 0

    def save(self, num_steps: int, parts: Mapping[str, State]) -> None:
        """Keeps the state after `num_steps` steps. parts: the files of this rank, no name twice; all ranks must call."""
        assert self.folder is not None
        names = _gathered(sorted(parts), self.num_ranks)
        if self.rank:
            for name in names[self.rank]:
                _send(memoryview(save(_on_host(parts[name]))), 0)
            return
        target = self.folder / f"step-{num_steps:08d}"
        unfinished = self.folder / f"unfinished-{num_steps:08d}"
        unfinished.mkdir(parents=True, exist_ok=True)
        for name, state in parts.items():
            save_file(_on_host(state), unfinished / f"{name}.safetensors")
        for rank in range(1, self.num_ranks):
            for name in names[rank]:
                (unfinished / f"{name}.safetensors").write_bytes(_receive(rank))
        files = {}
        for path in sorted(unfinished.glob("*.safetensors")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.name] = file_sha256(path)
        write_atomically(unfinished / MANIFEST, json.dumps({"num_steps": num_steps, "files": files}))
        crash_point("before-checkpoint")
        shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
        os.rename(unfinished, target)
        self._prune()

    def newest(self) -> tuple[int, Path] | None:
        """Steps done and folder of the newest sound checkpoint; a damaged one is named in the log and passed over."""
        found = None
        if self.folder is not None and self.rank == 0:
            sound = (path for path in sorted(self.folder.glob("step-*"), reverse=True) if _is_sound(path))
            found = next(((int(path.name.partition("-")[2]), path) for path in sound), None)
        if self.num_ranks > 1:  # all ranks go on from the same step
            answer = [found]
            dist.broadcast_object_list(answer)
            found = answer[0]
        return found

    def read(self, checkpoint: Path, names: Sequence[str]) -> list[State]:
        """The named parts of a checkpoint, in the order of `names`, which may differ between ranks; all ranks must call."""
        asked = _gathered(names, self.num_ranks)
        if self.rank:
            return [load(bytes(_receive(0))) for _ in names]
        for rank in range(1, self.num_ranks):
            for name in asked[rank]:
                _send(np.memmap(_file(checkpoint, name), np.uint8, "r"), rank)
        return [load_file(_file(checkpoint, name)) for name in names]

    def _prune(self) -> None:
        assert self.folder is not None
        outdated = sorted(self.folder.glob("step-*"))[:-KEPT]
        for path in (*outdated, *self.folder.glob("unfinished-*")):
            shutil.rmtree(path, ignore_errors=True)


class StopOrders:
    """The order to stop, seen by all ranks at the same step."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._looked = ctx, 0.0
        self._step = self._next = 0

    def has_come(self, step: int) -> bool:
        """Whether all ranks are to stop after this step; all must ask after every step.

        One rank alone looks at the order twice a second; several ranks agree about every two seconds.
        """
        now = time.monotonic()
        if self._ctx.num_ranks == 1:
            if now - self._looked < LOOK_S:
                return False
            self._looked = now
            return self._ctx.is_told_to_stop
        if step < self._next:
            return False
        step_s = (now - self._looked) / max(1, step - self._step)
        num_steps = min(MAX_STEPS, max(1, int(AGREE_S / max(step_s, 1e-9)))) if self._step else 1
        agreed = torch.tensor([float(self._ctx.is_told_to_stop), num_steps], device=self._ctx.device)
        dist.broadcast(agreed, src=0)
        self._looked, self._step = now, step
        order, num_steps = agreed.tolist()
        self._next = step + int(num_steps)
        return bool(order)


def _file(checkpoint: Path, name: str) -> Path:
    return checkpoint / f"{name}.safetensors"


def _on_host(state: State) -> State:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def _is_sound(checkpoint: Path) -> bool:
    try:
        files: dict[str, str] = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        log.warning("checkpoint %s is passed over: its manifest cannot be read (%s)", checkpoint, err)
        return False
    for name, sha256 in files.items():
        path = checkpoint / name
        if not path.is_file() or file_sha256(path) != sha256:
            log.warning("checkpoint %s is passed over: %s is missing or damaged", checkpoint, name)
            return False
    return True


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def without_prefix(prefix: str, state: Mapping[str, Tensor]) -> State:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def optimizer_state(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> State:
    """The optimizer's tensors as {parameter.entry: tensor}, for parameters by name; nothing before its first step."""
    return {
        f"{name}/{entry}": value for name, parameter in named.items() for entry, value in optimizer.state[parameter].items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        name, _, entry = key.rpartition("/")
        # Adam's step count stays on the host unless the optimizer is fused
        is_count_on_host = entry == "step" and not optimizer.param_groups[0].get("fused")
        optimizer.state[named[name]][entry] = value.clone() if is_count_on_host else value.to(named[name].device).clone()


def _gathered(names: Sequence[str], num_ranks: int) -> list[Sequence[str]]:
    """The names that each rank has, by rank."""
    found: list[Any] = [names] * num_ranks
    if num_ranks > 1:
        dist.all_gather_object(found, list(names))
    return found


def _send(data: "memoryview | NDArray[np.uint8]", to: int) -> None:
    """Sends bytes to another rank over gloo or NCCL, a message of bounded size at a time."""
    device = _device()
    dist.send(torch.tensor([len(data)], device=device), to)
    for start in range(0, len(data), MESSAGE_BYTES):
        part = torch.from_numpy(np.array(data[start : start + MESSAGE_BYTES], np.uint8))
        dist.send(part.to(device), to)


def _receive(source: int) -> bytearray:
    """The bytes that another rank sends by `_send`."""
    device = _device()
    size = torch.zeros(1, dtype=torch.int64, device=device)
    dist.recv(size, source)
    data = bytearray(int(size))
    for start in range(0, len(data), MESSAGE_BYTES):
        part = torch.empty(min(MESSAGE_BYTES, len(data) - start), dtype=torch.uint8, device=device)
        dist.recv(part, source)
        data[start : start + len(part)] = part.cpu().numpy().tobytes()
    return data


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
