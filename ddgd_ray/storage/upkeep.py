"""Upkeep of a store: compare everything with its manifests, and remove what nobody will use again."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from ddgd_ray.errors import DamagedArtifact
from ddgd_ray.storage.manifest import check_identity
from ddgd_ray.storage.remote_store import RemoteStore
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Store


@dataclass(frozen=True)
class CheckedArtifact:
    """One artifact after a full comparison. problem: "" when every byte is as published; otherwise it was set aside."""

    stage: str
    key: str
    problem: str


def verify_all(store: Store) -> Iterator[CheckedArtifact]:
    """Every artifact of the stages that were made here, read in full; behind a URL, everything is fetched for it."""
    for stage in store.stages():
        for key in store.keys(stage):
            try:
                found = store.get(stage, key)
                if found is not None:
                    check_identity(found)
                    compare_files(found)
                problem = ""
            except DamagedArtifact as err:
                problem = err.what
                store.set_aside(stage, key, problem)
            yield CheckedArtifact(stage, key, problem)


def collect_garbage(store: Store, *, damaged: bool = False) -> dict[str, int]:
    """{what: number removed}: scratch of dead processes, checkpoints of what is published, uploads that came to nothing.

    damaged: also what was set aside. Keys that are being made are left alone.
    """
    published = {key for stage in store.stages() for key in store.keys(stage)}
    kept = [folder for folder in (store.root / "kept").glob("*") if folder.name in published]
    for folder in kept:
        shutil.rmtree(folder, ignore_errors=True)
    removed = {"scratch": store.clean_scratch(), "checkpoints": len(kept)}
    if damaged:
        removed["damaged"] = len(list((store.root / "damaged").glob("*")))
        shutil.rmtree(store.root / "damaged", ignore_errors=True)
    if isinstance(store, RemoteStore):
        removed["uploads"] = _remove_orphans(store)
        if damaged:
            removed["damaged"] += len(store.remote.sizes("damaged"))
            store.remote.remove_tree("damaged")
    return removed


def _remove_orphans(store: RemoteStore) -> int:
    """The number of copies removed that no manifest names, of writers that died or came second."""
    copies = {tuple(name.split("/")[:3]) for name in store.remote.sizes("files")}
    busy = set(store.in_progress())  # after the listing: whoever has files in it holds a lease by now, or has published
    orphans = []
    for stage, key, copy in copies:
        if key[:16] in busy:
            continue
        content = store.remote.read(f"manifests/{stage}/{key}.json")
        if content is None or f'"{copy}"'.encode() not in content:
            orphans.append(f"files/{stage}/{key}/{copy}")
    for orphan in orphans:
        store.remote.remove_tree(orphan)
    return len(orphans)
