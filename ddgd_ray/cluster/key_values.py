"""Short texts that processes of a cluster leave for each other in Ray's own key-value table.

Processes on several hosts need no folder in common for it, and no process of ours has to keep the texts.
"""

import hashlib
import pickle
from typing import Any

from ddgd_ray.storage.store import Store

NAMESPACE = "ddgd"


def put(key: str, text: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, text or " ", namespace=NAMESPACE)


def get(key: str) -> str:
    """The text under this key; "" when there is none."""
    from ray.experimental.internal_kv import _internal_kv_get

    return (_internal_kv_get(key, namespace=NAMESPACE) or b"").decode()


def keys(prefix: str) -> list[str]:
    """All keys that begin with `prefix`."""
    from ray.experimental.internal_kv import _internal_kv_list

    return [key.decode() for key in _internal_kv_list(prefix, namespace=NAMESPACE)]


def remove(key: str) -> bool:
    """True when the key was there. Of several processes that remove one key at once, one alone gets True."""
    from ray.experimental.internal_kv import _internal_kv_del

    return bool(_internal_kv_del(key, namespace=NAMESPACE))


def remove_all(prefix: str) -> None:
    for key in keys(prefix):
        remove(key)


def packed(value: object) -> str:
    """A value as a text to put under a key."""
    return pickle.dumps(value).hex()


def unpacked(text: str) -> Any:
    """The value that `packed` made this text of."""
    return pickle.loads(bytes.fromhex(text))


def job_key(trial_id: str) -> str:
    """The key of the job that one of Tune's trials is to do; it is there until a process has begun the job."""
    return f"job/{trial_id}"


def store_name(store: Store) -> str:
    """A name that tells this store from those of others on the cluster, who may make artifacts of the same keys just now."""
    place = str(store.root.absolute()) if store.remote is None else store.remote.url
    return hashlib.sha256(place.encode()).hexdigest()[:12]
