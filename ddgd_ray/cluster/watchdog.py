"""A watch over Ray's own processes. When one dies, Ray's client waits for a minute and ends the process with code 1."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ddgd_ray.errors import Stopped

log = logging.getLogger(__name__)

LOOK_S = 0.5
PATIENCE_S = 5.0
"""Seconds for which nobody listens at a port of a cluster until its process counts as gone: a head may be slow."""
END_S = 5.0
"""Seconds that Ray's other processes have to end."""


def _leave(what: str) -> None:
    """End this process as an interrupted sweep does. Its main thread may be inside Ray and never come back."""
    log.error("%s", what)
    fix = "see what killed it (memory? an administrator?), then run the same command again: it goes on from what is kept"
    with suppress(OSError, ValueError):
        sys.stderr.write(f"\n{Stopped(what, code='ray-died', fix=fix)}\n")
        sys.stderr.flush()
    ending = threading.Thread(target=_end_local_ray, daemon=True)
    ending.start()
    ending.join(END_S)
    os._exit(Stopped.exit_code)


@contextmanager
def watched(leave: Callable[[str], None] = _leave) -> Iterator[None]:
    """A block during which the death of Ray's processes ends this one at once, with exit code 75."""
    over = threading.Event()
    lost: dict[str, float] = {}

    def watch() -> None:
        while not over.wait(LOOK_S):
            gone = _gone(lost)
            if gone and not over.is_set():
                leave(f"{gone} died; everything finished is kept")
                return

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _node() -> Any:
    from ray._private import worker

    return worker._global_node


def _gone(lost: dict[str, float]) -> str:
    """The name of a process of Ray's that is gone, "" of none. lost: {address: since when nobody listens there}."""
    node = _node()
    if node is None:
        return ""
    for kind, name in (("raylet", "Ray's raylet on this machine"), ("gcs_server", "Ray's head process")):
        if any(info.process.poll() is not None for info in node.all_processes.get(kind, ())):
            return name
    if node.all_processes:
        return ""
    address = str(node.gcs_address)
    if _listens(address):
        lost.pop(address, None)
        return ""
    since = lost.setdefault(address, time.monotonic())
    return f"the Ray head at {address}" if time.monotonic() - since > PATIENCE_S else ""


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def _end_local_ray() -> None:
    """End the processes of a Ray that was started here: the ones that are left would wait for the one that is gone."""
    with suppress(Exception):
        node = _node()
        if node is not None and node.all_processes:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
