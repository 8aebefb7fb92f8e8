"""Seconds that work takes on a machine that does nothing else: the clock, less what threads waited for a core.

Linux counts both for each thread; where it does not, the clock alone is read, and neighbours are measured with the work.
"""

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

TASKS = Path("/proc/self/task")


class QuietClock:
    """Times what runs inside its `with`, by threads of this process. num_threads: those that share the work.

    wall_s: by the clock. seconds: the same without the waiting for cores that others held.
    """

    wall_s = 0.0
    seconds = 0.0

    def __init__(self, num_threads: int) -> None:
        self.num_threads = max(1, num_threads)

    def __enter__(self) -> Self:
        self._before, self._cpu, self._started = _waited_ns(), time.process_time(), time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wall_s = time.monotonic() - self._started
        waited_s = sum(max(0, ns - self._before.get(thread, 0)) for thread, ns in _waited_ns().items()) / 1e9
        # threads meet after each operation: while one of them waits for a core, the others wait for it
        own_s = (time.process_time() - self._cpu) / min(self.num_threads, os.cpu_count() or 1)
        self.seconds = min(self.wall_s, max(self.wall_s - waited_s, own_s))


def _waited_ns() -> dict[str, int]:
    """{thread: nanoseconds that it was ready to run and had no core}."""
    found = {}
    try:
        for task in os.scandir(TASKS):
            try:
                found[task.name] = int((TASKS / task.name / "schedstat").read_text().split()[1])
            except (OSError, IndexError, ValueError):  # it has ended meanwhile, or this kernel keeps no account
                continue
    except OSError:
        return {}
    return found
