"""The log of one job, `RUN/logs/STAGE-KEY.log`: where it ran, its output, its traceback and its peak memory.

Attempts of a job follow each other in one file. A process that dies leaves at least the head of its attempt, and, where a fault
of its own ended it (a segmentation fault, an abort), Python's word about it.
"""

import faulthandler
import logging
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ddgd_ray.errors import DdgdError
from ddgd_ray.plan.jobs import Job
from ddgd_ray.storage.store import Store

FOLDER = "logs"
LINE = "%(asctime)s %(levelname)s %(filename)s:%(lineno)d %(message)s"
TAIL_BYTES = 1_000_000
HEAD = "== attempt"
FAULT = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)


def log_name(job: Job) -> str:
    """The path of the job's log in the folder of its run: `logs/STAGE-KEY.log`."""
    return f"{FOLDER}/{job.stage}-{job.id[:12]}.log"


def log_file(name: str, store: Store, run: str) -> Path:
    """The file of this log on this host. Where the store is behind a URL, each host has folders of the runs beside its copy."""
    return store.root.parent / run / name


def send_log(name: str, store: Store, run: str) -> None:
    """Copy this log to the run's place behind a URL; nothing where all hosts share the run's folder."""
    if store.remote is not None:
        with suppress(OSError, DdgdError):  # a log that cannot be copied is no reason to lose the outcome
            store.remote.write(f"runs/{run}/{name}", log_file(name, store, run).read_bytes())


@contextmanager
def job_log(path: Path, head: Mapping[str, object], *, takes_output: bool) -> Iterator[None]:
    """Write what happens inside to the end of `path`: what this package logs and, if it takes output, stdout and stderr.

    head: named facts for the first line of the attempt. takes_output: for a process that does this job alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("ddgd_ray")
    with path.open("a", buffering=1) as file:
        facts = {"host": socket.gethostname(), "pid": os.getpid(), **head}
        named = " ".join(f"{name} {value}" for name, value in facts.items())
        file.write(f"{HEAD} at {time.strftime('%Y-%m-%d %H:%M:%S')}: {named}; oom_kills {oom_kills()}\n")
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter(LINE))
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(min(logging.INFO, logger.level or logging.INFO))
        _forget_peak()
        try:
            with _output_to(file.fileno()) if takes_output else nullcontext():
                logger.propagate = before[1] and not takes_output  # else each line comes by stderr once more
                yield
        finally:
            logger.setLevel(before[0])
            logger.propagate = before[1]
            logger.removeHandler(handler)
            file.write(f"peak memory {peak_bytes() / 1e6:.0f} MB\n")


@contextmanager
def _output_to(descriptor: int) -> Iterator[None]:
    """Let stdout and stderr of this process, those of C code too, go to an open file."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(number) for number in (1, 2)]
    for stream in streams:
        stream.flush()
    for number in (1, 2):
        os.dup2(descriptor, number)
    faulthandler.enable(descriptor)  # a fault is told where the job is logged
    try:
        yield
    finally:
        for stream in streams:
            with suppress(OSError, ValueError):
                stream.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        faulthandler.enable(2)


def fault_in(path: Path) -> str:
    """Python's word on the fault that ended the last attempt, such as `Segmentation fault`; "" where there is none."""
    found = FAULT.findall(_last_attempt(path))
    return found[-1] if found else ""


def oom_kills_at_start(path: Path) -> int | None:
    """The count of `oom_kills` when the last attempt began; None where the log does not say."""
    found = re.match(r".*; oom_kills (\d+)$", _last_attempt(path).partition("\n")[0])
    return int(found[1]) if found else None


def _last_attempt(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    start = text.rfind(HEAD)
    return text[start:] if start >= 0 else text


def oom_kills() -> int:
    """The number of processes that the kernel of this host has killed for want of memory since it booted; 0 if unknown."""
    with suppress(OSError, StopIteration), Path("/proc/vmstat").open() as file:
        return int(next(line for line in file if line.startswith("oom_kill ")).split()[1])
    return 0


def _forget_peak() -> None:
    """Let the kernel count the peak of this process anew; a process does many jobs."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most main memory that this process has held since its peak was forgotten."""
    with suppress(OSError, StopIteration), Path("/proc/self/status").open() as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
