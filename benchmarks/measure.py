"""What all benchmarks share: interleaved timing, the device's name, and the JSON object printed last."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Result:
    """ratio: ours over baseline, bigger is better. ours, baseline: medians in `unit`. parts: seconds or shares, by name."""

    ratio: float
    ours: float
    baseline: float
    unit: str
    device: str
    parts: Mapping[str, Any] = field(default_factory=dict)

    def print(self, as_json: bool) -> None:
        """A line for the reader unless only JSON is wanted, then the JSON object."""
        if not as_json:
            print(f"ours {self.ours:.4g}, baseline {self.baseline:.4g} {self.unit}: {self.ratio:.2f} x on {self.device}")
        print(json.dumps(asdict(self)))


def parser(doc: str) -> argparse.ArgumentParser:
    """--quick for a check that it runs, --json for the JSON object alone, --device."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="smaller and shorter: shows that it runs, not how fast")
    made.add_argument("--json", action="store_true", help="print the JSON object alone")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's queue empty before and after."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def alternate(works: Mapping[str, Callable[[], object]], device: str, *, rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each, measured turn about so that a machine that slows down slows all of them."""
    for _ in range(warmup):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(timed(work, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
