"""The door to a cluster's nodes: what they offer, and whether all of them can work on this run."""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.cluster.placement import Node
from ddgd_ray.errors import ClusterError
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.shared_files import FolderFiles, SharedFiles
from ddgd_ray.storage.store import Store

NODES_S = 120.0  # a node may have to install the runtime environment first
AGAIN_S = 300.0  # until a node that could not work on this run is asked once more
JOIN_S = 1800.0  # machines of a cloud start, are set up and fetch their image first
LOOK_S = 2.0  # between looks at who has joined
SEEN_S = 10.0  # network file systems show new files after up to some seconds

log = logging.getLogger(__name__)


def cluster_nodes() -> list[Node]:
    """The nodes that are alive, with all they offer."""
    import ray

    return [Node(one["NodeID"], one["Resources"], one["NodeManagerHostname"]) for one in ray.nodes() if one["Alive"]]


def await_nodes(num: int, is_stopped: Callable[[], bool]) -> bool:
    """Wait until `num` nodes that offer CPUs have joined, and return True; False when told to stop before.

    A head that runs no jobs offers no CPUs and does not count. Raises ClusterError after JOIN_S seconds.
    """
    deadline, num_before = time.monotonic() + JOIN_S, -1
    while (num_joined := sum("CPU" in node.offers for node in cluster_nodes())) < num:
        if is_stopped():
            return False
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{num_joined} of {num} nodes that run jobs have joined within {JOIN_S / 60:.0f} minutes",
                code="nodes-missing",
                where=f"--min-nodes {num}",
                fix="see what became of the others: `ray status` on the head, `ray monitor cluster.yaml`, kubectl describe pod",
            )
        if num_joined != num_before:
            log.info("waiting for nodes: %d of %d have joined", num_joined, num)
            num_before = num_joined
        time.sleep(LOOK_S)
    return True


Ask = Callable[[SharedFiles, str, bytes, list[Node]], Mapping[str, str]]


class NodeChecks:
    """The nodes that can work on this run. New ones are asked in a thread of its own: an answer may take minutes."""

    def __init__(self, store: Store, nodes: list[Node]) -> None:
        """nodes: nodes that were checked already."""
        self._store = store
        self._sound = {node.id for node in nodes}
        self._refused: dict[str, float] = {}
        self._asking: threading.Thread | None = None

    def sound(self, nodes: list[Node]) -> list[Node]:
        """The nodes among these that are known to be able; others are asked, those that were not able again after AGAIN_S."""
        before = time.monotonic() - AGAIN_S
        new = [node for node in nodes if node.id not in self._sound and self._refused.get(node.id, -math.inf) < before]
        if new and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, args=(new,), name="node-check", daemon=True)
            self._asking.start()
        return [node for node in nodes if node.id in self._sound]

    def _ask(self, nodes: list[Node]) -> None:
        try:
            problems = problems_of(self._store, nodes)
        except Exception as err:
            log.exception("nodes that joined could not be checked")
            problems = {node.id: str(err) for node in nodes}
        for node in nodes:
            if not problems[node.id]:
                log.info("node %s (%s) joined", node.id[:8], node.name)
                self._sound.add(node.id)
                continue
            if node.id not in self._refused:
                log.warning("node %s (%s) cannot work on this run: %s", node.id[:8], node.name, problems[node.id])
            self._refused[node.id] = time.monotonic()


def check_nodes(store: Store, nodes: list[Node]) -> None:
    """Raises ClusterError that names the nodes which lack this package or do not see our storage."""
    files = _files_of(store)
    check_shared(files, str(files), nodes, ask_nodes)


def problems_of(store: Store, nodes: list[Node]) -> Mapping[str, str]:
    """{node id: what keeps this node from working on the run, or ""}."""
    return problems_on(_files_of(store), nodes, ask_nodes)


def _files_of(store: Store) -> SharedFiles:
    """The storage that the driver and the nodes should share."""
    return store.remote or FolderFiles(store.root / "scratch")  # behind a URL, what is there counts, not this cache


def check_shared(files: SharedFiles, where: str, nodes: list[Node], ask: Ask) -> None:
    """Raises ClusterError that names the nodes with problems."""
    problems = problems_on(files, nodes, ask)
    bad = [f"{node.name or 'node'} ({node.id[:8]}): {problems[node.id]}" for node in nodes if problems[node.id]]
    if bad:
        lines = "\n".join(f"    {line}" for line in bad)
        raise ClusterError(
            f"{len(bad)} of {len(nodes)} nodes cannot work on this run:\n{lines}",
            code="not-shared",
            where=where,
            fix="choose a --run-dir on storage that all nodes reach under the same path, or an s3:// address",
        )


def problems_on(files: SharedFiles, nodes: list[Node], ask: Ask) -> Mapping[str, str]:
    """{node id: the problem of this node, "" without one}.

    ask(files, name, text, nodes): has each node read the text under `name` and write it under its own name, and returns
    {node id: problem}.
    """
    text = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}".encode()
    name = f"shared-{time.time_ns()}"
    files.write(name, text)
    try:
        found = ask(files, name, text, nodes)
        problems = {node.id: found.get(node.id, "no answer") for node in nodes}
        for node in nodes:
            answer = answer_of(name, node.id)
            if not problems[node.id] and _wait_for(files, answer) != text:
                problems[node.id] = "what it writes cannot be seen here"
            files.remove(answer)
    finally:
        files.remove(name)
    return problems


def refuse_shards_apart(store: Store, resources: ResourcesSpec) -> None:
    """Raises ClusterError: ranks of one encode hand over their shards in a folder, which nodes with a URL do not share."""
    if store.remote is not None and resources.of("encode").workers > 1 and resources.encode != "cluster":
        raise ClusterError(
            f"encode asks for {resources.of('encode').workers} workers, which need a folder that all nodes share",
            where="resources",
            fix="with a URL and several nodes: resources.encode: cluster, which makes the latents on all of them",
        )


def answer_of(name: str, node_id: str) -> str:
    return f"{name}.{node_id[:16]}"


def look(files: SharedFiles, name: str, text: bytes, node_id: str, version: str) -> str:
    """The problem of the node that this runs on, "" without one."""
    if version != __version__:
        return f"it has ddgd-ray {__version__}, the driver {version}"
    found = _wait_for(files, name)
    if found != text:
        return "it does not see what the driver wrote: not the same storage"
    try:
        files.write(answer_of(name, node_id), text)
    except OSError as err:
        return f"it cannot write there: {err.strerror}"
    return ""


def _wait_for(files: SharedFiles, name: str) -> bytes | None:
    deadline = time.monotonic() + SEEN_S
    while (found := files.read(name)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def ask_nodes(files: SharedFiles, name: str, text: bytes, nodes: list[Node]) -> Mapping[str, str]:
    """{node id: problem}: what `look` returns on each node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, asked = ray.remote(look), {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        pinned: Any = task.options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        asked[node.id] = pinned.remote(files, name, text, node.id, __version__)
    deadline, found = time.monotonic() + NODES_S, {}
    for node_id, answer in asked.items():
        try:
            found[node_id] = ray.get(answer, timeout=max(1.0, deadline - time.monotonic()))
        except Exception as err:
            log.exception("node %s", node_id[:8])
            last = (str(err).strip().splitlines() or [""])[-1][:200]
            found[node_id] = f"ddgd-ray cannot be run there: {type(err).__name__}: {last}"
    return found
