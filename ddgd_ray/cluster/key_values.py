"""Notes between processes of a cluster, in its own table: they need no folder that all of them see."""

import hashlib
import pickle
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddgd_ray.stages.base import stop_now_file
from ddgd_ray.storage.store import Store

NAMESPACE = "ddgd"
LOOK_S = 1.0


def tell(name: str, text: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(name, text or " ", namespace=NAMESPACE)


def told(name: str) -> str:
    """Empty where there is no such note."""
    from ray.experimental.internal_kv import _internal_kv_get

    return (_internal_kv_get(name, namespace=NAMESPACE) or b"").decode()


def names(prefix: str) -> list[str]:
    from ray.experimental.internal_kv import _internal_kv_list

    return [name.decode() for name in _internal_kv_list(prefix, namespace=NAMESPACE)]


def drop(name: str) -> bool:
    """Whether it was there: of several that drop it, one is told so."""
    from ray.experimental.internal_kv import _internal_kv_del

    return bool(_internal_kv_del(name, namespace=NAMESPACE))


def packed(value: object) -> str:
    """A value as the text of a note."""
    return pickle.dumps(value).hex()


def unpacked(text: str) -> Any:
    return pickle.loads(bytes.fromhex(text))


def job_note(trial_id: str) -> str:
    """Of the job that one of Tune's trials is to do: there until a process has taken it up."""
    return f"job/{trial_id}"


def store_name(store: Store) -> str:
    """Tells a store from those of others who use the cluster: they may make artifacts of the same keys at the same time."""
    place = str(store.root.absolute()) if store.remote is None else store.remote.url
    return hashlib.sha256(place.encode()).hexdigest()[:12]


class StopRelay:
    """Where the store is behind a URL, other hosts do not see the run's stop file: they are told what it says."""

    def __init__(self, store: Store, stop_file: Path) -> None:
        self._stop_file, self._name = stop_file, _name(store, stop_file)
        self._said = ""
        if self._name:
            drop(self._name)

    def look(self) -> None:
        order = _order(self._stop_file) if self._name else ""
        if order != self._said:
            self._said = order
            tell(self._name, order)


@contextmanager
def stop_file_here(store: Store, stop_file: Path | None) -> Iterator[Path | None]:
    """The file to look at on this host: the run's own, or one that is made when the cluster is told of an order to stop."""
    name = _name(store, stop_file) if stop_file is not None else ""
    if stop_file is None or not name:
        yield stop_file
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / stop_file.parent.name / stop_file.name
        here.parent.mkdir()
        ended = threading.Event()

        def follow() -> None:
            while not ended.is_set():
                order = told(name).strip()
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
    if stop_now_file(stop_file).exists():
        return "now"
    return "soon" if stop_file.exists() else ""


def _name(store: Store, stop_file: Path) -> str:
    """Empty where all hosts see the file itself."""
    if store.remote is None:
        return ""
    return f"stop/{store_name(store)}/{stop_file.parent.name}"
