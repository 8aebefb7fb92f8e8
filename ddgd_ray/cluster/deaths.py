"""The cause of a worker process's death, as far as the job's log, the kernel of its node and Ray can tell it."""

import logging
import re
import socket
from pathlib import Path
from typing import NamedTuple

from ddgd_ray.cluster.placement import Node
from ddgd_ray.conduct.job_log import fault_in, oom_kills, oom_kills_at_start

ANSWER_S = 30.0  # a process has to start on the node; Ray takes up to 25 s to see that a node is dead
EXIT = re.compile(r"Worker exits with an exit code (\d+)")
RAY_OUT_OF_MEMORY = ("OutOfMemoryError", "running low on memory")

log = logging.getLogger(__name__)


class Traces(NamedTuple):
    """What a death has left on the node: Python's word on a fault, and processes that the kernel killed since the job began."""

    fault: str = ""
    num_oom_kills: int = 0


def traces_in(file: Path) -> Traces:
    """The traces of the death that ended the last attempt in this log; to be called on the job's node."""
    before = oom_kills_at_start(file)
    return Traces(fault_in(file), 0 if before is None else oom_kills() - before)


def cause_of_death(word_of_ray: str, file: Path, node: Node | None) -> str:
    """A sentence on why a worker process died. file: its job's log on the node. node: None where it is this machine."""
    where = (node.name or node.id[:8]) if node is not None else socket.gethostname()
    return f"the worker process died on {where}: {words_of(word_of_ray, _traces(file, node))}"


def words_of(word_of_ray: str, traces: Traces = Traces()) -> str:  # noqa: B008  immutable
    """The cause in words: a fault, an exit code, a signal, or want of memory."""
    found = EXIT.search(word_of_ray)
    if traces.fault:
        return f"it crashed ({traces.fault})"
    if any(text in word_of_ray for text in RAY_OUT_OF_MEMORY):
        return "Ray ended it, because the node had hardly any main memory left"
    if "receives a SIGTERM" in word_of_ray:
        return "it was ended by SIGTERM"
    if found:
        return f"it left with exit code {found[1]}"
    if traces.num_oom_kills > 0:
        return "the kernel killed it (SIGKILL), because the node had no main memory left"
    return "it was killed (SIGKILL), or left by os._exit; the kernel has killed nothing for want of memory meanwhile"


def _traces(file: Path, node: Node | None) -> Traces:
    """The traces on the job's node; none when it does not answer within ANSWER_S seconds.

    A node is asked even where it is this machine: its processes die before Ray knows that it is dead, and who answers is alive.
    """
    if node is None:
        return traces_in(file)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        look = ray.remote(traces_in).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        return Traces(*ray.get(look.remote(file), timeout=ANSWER_S))
    except Exception:
        log.warning("node %s does not tell of the death", node.id[:8], exc_info=True)
        return Traces()
