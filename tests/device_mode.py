"""A device that every machine has: tensors on `meta` stand for those of a GPU, tensors on the host are real.

Kernels of `meta` compute shapes alone, so a whole step runs in a moment, and what a GPU would wait for cannot pass unseen: a
number that is read back has no value here, and copies and mixed devices are looked at one by one.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

COPIES = {"aten._to_copy.default", "aten.copy_.default"}


class DeviceMode(TorchDispatchMode):
    """Counts dispatches and copies between host and device; raises where an operation mixes both, as CUDA does.

    blocking: copies to the device that the host waits for, by the line of the package that asks for them. waits: copies from
    the device. num_calls: operations on device tensors, each at least one kernel or view.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocking: Counter[str] = Counter()
        self.num_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        on_device = [one for one in given if one.is_meta]
        # a number on the host goes with the kernel's arguments; a table does not
        on_host = [one for one in given if not one.is_meta and one.dim() > 0]
        name = str(func)
        if name in COPIES:
            self._look_at_copy(name, args, kwargs)
        elif on_device and on_host:
            raise AssertionError(f"{name} mixes device and host at {_place()}: {[tuple(one.shape) for one in given]}")
        self.num_calls += bool(on_device)
        return func(*args, **kwargs)

    def _look_at_copy(self, name: str, args: Any, kwargs: Any) -> None:
        source = args[1] if name.startswith("aten.copy_") else args[0]
        target = args[0].device if name.startswith("aten.copy_") else torch.device(kwargs.get("device") or source.device)
        asynchronous = kwargs.get("non_blocking", False) or (name.startswith("aten.copy_") and len(args) > 2 and args[2])
        if not source.is_meta and target.type == "meta" and not asynchronous:
            self.blocking[_place()] += 1


def _place() -> str:
    """The innermost line of the package that is being run."""
    import traceback

    own = [frame for frame in traceback.extract_stack() if "/ddgd_ray/" in frame.filename]
    return f"{own[-1].filename.rpartition('/ddgd_ray/')[2]}:{own[-1].lineno}" if own else "outside the package"


def lines(mode: DeviceMode) -> Iterator[str]:
    for place, number in mode.blocking.most_common():
        yield f"{number} x {place}"
