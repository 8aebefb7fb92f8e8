"""An order to stop on its way from the driver's stop file to workers on hosts that do not see that file.

Where the store is a folder that all hosts share, every stage looks at the run's stop file itself, and nothing here is used.
Where it is behind a URL, the driver relays the order through Ray's table, and each worker looks at a file of its own host.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddgd_ray.cluster import key_values
from ddgd_ray.stages.base import stop_now_file
from ddgd_ray.storage.store import Store

LOOK_S = 1.0


class StopRelay:
    """The driver's side: `look` tells the cluster what the run's stop file says."""

    def __init__(self, store: Store, stop_file: Path) -> None:
        self._stop_file, self._key = stop_file, _key(store, stop_file)
        self._sent = ""
        if self._key:
            key_values.remove(self._key)  # of an earlier start

    def look(self) -> None:
        order = _order(self._stop_file) if self._key else ""
        if order != self._sent:
            self._sent = order
            key_values.put(self._key, order)


@contextmanager
def stop_file_here(store: Store, stop_file: Path | None) -> Iterator[Path | None]:
    """The file that a stage on this host should look at: the run's own, or one that follows what the driver relays."""
    key = _key(store, stop_file) if stop_file is not None else ""
    if stop_file is None or not key:
        yield stop_file
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / stop_file.parent.name / stop_file.name
        here.parent.mkdir()
        ended = threading.Event()

        def follow() -> None:
            while not ended.is_set():
                order = key_values.get(key).strip()
                if order:
                    here.touch()
                if order == "now":
                    stop_now_file(here).touch()
                ended.wait(LOOK_S)

        watch = threading.Thread(target=follow, name="stop-order", daemon=True)
        watch.start()
        try:
            yield here
        finally:
            ended.set()
            watch.join()


def _order(stop_file: Path) -> str:
    """`now`, `soon`, or "" without an order."""
    if stop_now_file(stop_file).exists():
        return "now"
    return "soon" if stop_file.exists() else ""


def _key(store: Store, stop_file: Path) -> str:
    """The key of this run's order; "" where all hosts see the file itself."""
    if store.remote is None:
        return ""
    return f"stop/{key_values.store_name(store)}/{stop_file.parent.name}"
