"""A store behind a URL. Its truth is there; this host has a cache, laid out as a local store, that can be deleted any time.

Layout behind the URL: `manifests/<stage>/<key>.json`, written last and once; `files/<stage>/<key>/<copy>/`, where the manifest
names the copy; `leases/`; `kept/<key>/`, the checkpoints of what is being made; `runs/<name>/`; `damaged/` manifests that were
set aside.
"""

import functools
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, DamagedArtifact
from ddgd_ray.storage.addresses import local_folder
from ddgd_ray.storage.commit import crash_point, room_for, write_atomically
from ddgd_ray.storage.leases import Pace, heartbeat_lease, host_lease
from ddgd_ray.storage.manifest import MANIFEST, REMAKE, Artifact, read_manifest, write_manifest
from ddgd_ray.storage.mirror import Mirror
from ddgd_ray.storage.remote import Remote
from ddgd_ray.storage.soundness import check_before_use, compare_files, remember_compared
from ddgd_ray.storage.store import Store

log = logging.getLogger(__name__)

LISTED_S = 1.0  # how old an answer "not there" may be; longer where listing takes longer


class RemoteStore(Store):
    """A store whose artifacts are uploaded before they count, and fetched when a stage or a report opens one."""

    remote: Remote

    def __init__(self, remote: Remote, read_only: tuple[Path, ...] = (), pace: Pace = Pace()) -> None:  # noqa: B008  frozen
        super().__init__(local_folder(remote.url) / "store", read_only, pace)
        self.remote = remote
        self._listed: dict[str, tuple[float, frozenset[str]]] = {}
        self._mirrors: dict[str, Mirror] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return (RemoteStore, (self.remote, self.read_only, self.pace))  # on another node, its cache is that node's

    def __str__(self) -> str:
        return str(self.remote)

    def prepare(self) -> None:
        super().prepare()
        self.remote.prepare()

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact was published: "yes" stays true, "no" may be a second old."""
        if super().has(stage, key) or self._kept_manifest(stage, key).is_file():
            return True
        until, keys = self._listed.get(stage, (0.0, frozenset()))
        if key not in keys and time.monotonic() > until:
            started = time.monotonic()
            keys = frozenset(name.removesuffix(".json") for name in self.remote.names(f"manifests/{stage}"))
            now = time.monotonic()
            self._listed[stage] = (now + max(LISTED_S, 2 * (now - started)), keys)
        return key in keys

    def still_has(self, stage: str, key: str) -> bool:
        if any((root / stage / key / MANIFEST).is_file() for root in self.read_only):
            return True
        if self.remote.read(f"manifests/{stage}/{key}.json") is not None:
            return True
        self._forget(stage, key)
        return False

    def _forget(self, stage: str, key: str) -> None:
        """Remove what this host has of an artifact that is not behind the URL any more: it is of no use to the others."""
        shutil.rmtree(self._place(stage, key), ignore_errors=True)
        self._kept_manifest(stage, key).unlink(missing_ok=True)
        self._listed.pop(stage, None)

    def keys(self, stage: str) -> list[str]:
        there = {name.removesuffix(".json") for name in self.remote.names(f"manifests/{stage}")}
        return sorted(there.union(super().keys(stage)))

    def stages(self) -> list[str]:
        return self.remote.names("manifests")

    def _kept_manifest(self, stage: str, key: str) -> Path:
        """The file that keeps a manifest once it was read: metrics are asked for far more often than files."""
        return self.root / "known" / stage / f"{key}.json"

    def get(self, stage: str, key: str) -> Artifact | None:
        found = super().get(stage, key)
        if found is not None:
            return found
        known = self._kept_manifest(stage, key)
        try:
            content: bytes | None = known.read_bytes()
        except FileNotFoundError:
            content = self.remote.read(f"manifests/{stage}/{key}.json")
            if content is None:
                return None
            read_manifest(content.decode(errors="replace"), stage, key, f"{self.remote}/manifests/{stage}/{key}.json")
            known.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(known, content, sync=False)
        assert content is not None
        manifest = read_manifest(content.decode(errors="replace"), stage, key, str(known))
        return Artifact(self._place(stage, key), manifest, functools.partial(self._fetch, manifest))

    def _fetch(self, manifest: dict[str, Any]) -> None:
        """Bring the files of an artifact here, each compared by SHA-256 on its way. Raises DamagedArtifact.

        Hashing is faster than any network.
        """
        stage, key, files = manifest["stage"], manifest["key"], manifest["files"]
        target = self._place(stage, key)
        if (target / MANIFEST).is_file():
            return
        there = f"files/{stage}/{key}/{manifest['copy']}"
        with self.scratch(key) as scratch, room_for(scratch, sum(entry["bytes"] for entry in files.values())):
            try:
                self.remote.fetch((scratch / name, f"{there}/{name}") for name in files)
            except FileNotFoundError as err:
                self._kept_manifest(stage, key).unlink(missing_ok=True)  # the manifest there may be another one by now
                raise DamagedArtifact(f"a file is missing: {err}", where=f"{self.remote}/{there}", fix=REMAKE) from err
            compare_files(Artifact(scratch, manifest))
            write_manifest(scratch, manifest)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(scratch, target)
            except OSError:
                if not (target / MANIFEST).is_file():
                    shutil.rmtree(target)
                    os.rename(scratch, target)
        remember_compared(target, manifest)
        log.info("%s %s fetched, %d files", key[:8], stage, len(files))

    def _commit(self, scratch: Path, manifest: dict[str, Any]) -> Artifact:
        stage, key, copy = manifest["stage"], manifest["key"], uuid.uuid4().hex[:12]
        manifest = {**manifest, "copy": copy}
        there = f"files/{stage}/{key}/{copy}"
        crash_point("before-upload")
        self.remote.put((scratch / name, f"{there}/{name}") for name in manifest["files"])
        crash_point("after-upload")
        content = json.dumps(manifest, sort_keys=True, allow_nan=False).encode()
        is_first = self.remote.create(f"manifests/{stage}/{key}.json", content)
        crash_point("after-remote-publish")
        if is_first:
            shutil.rmtree(self._place(stage, key), ignore_errors=True)  # of an older copy
            self._kept_manifest(stage, key).unlink(missing_ok=True)
            return super()._commit(scratch, manifest)
        self._count_dropped(stage, key)
        self.remote.discard(there)
        published = self.get(stage, key)
        assert published is not None
        return published

    def _move_aside(self, stage: str, key: str, reason: str) -> None:
        """Drop the local copy; when the one behind the URL is damaged too, take its manifest away: it is made again."""
        folder, name = self._place(stage, key), f"manifests/{stage}/{key}.json"
        if folder.exists():
            shutil.rmtree(folder)
            log.warning("%s %s: the local copy is damaged: %s; fetched again", key[:8], stage, reason)
        self._kept_manifest(stage, key).unlink(missing_ok=True)
        self._listed.pop(stage, None)
        try:
            found = self.get(stage, key)
            if found is None:
                return
            check_before_use(found)
        except DamagedArtifact as err:
            content = self.remote.read(name)
            if content is None:
                raise ArtifactError(f"a checkpoint of the package is damaged: {reason}", fix="install it again") from err
            self.remote.write(f"damaged/{stage}/{key}.{uuid.uuid4().hex[:8]}.json", content)
            self.remote.remove(name)
            self._kept_manifest(stage, key).unlink(missing_ok=True)
            log.warning("%s %s is damaged in %s: %s; set aside, made again when needed", key[:8], stage, self, err.what)

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        with host_lease(self.root / "locks" / key), heartbeat_lease(self.remote, f"leases/{key}", self.pace):
            try:
                yield
            finally:
                mirror = self._mirrors.pop(key, None)
                if mirror is not None:
                    mirror.stop()

    def keep(self, key: str, *, is_helper: bool = False) -> Path:
        """The local folder for what a stage keeps, with what another host kept in it.

        Changes are uploaded every few seconds until the lease ends; those of a helper when it pushes them.
        """
        folder = super().keep(key)
        if key not in self._mirrors:
            mirror = Mirror(self.remote, f"kept/{key}", folder)
            if mirror.pull(prefer_remote=False):
                log.info("%s: going on from what another host kept", key[:8])
            if not is_helper:
                mirror.start()
            self._mirrors[key] = mirror
        return folder

    def push_kept(self, key: str, prefix: str = "") -> None:
        if key in self._mirrors:
            self._mirrors[key].push(prefix)

    def drop_kept(self, key: str) -> None:
        mirror = self._mirrors.pop(key, None)
        if mirror is not None:
            mirror.stop(push=False)
        if mirror is None or mirror.has_remote:
            self.remote.discard(f"kept/{key}")
        super().drop_kept(key)

    def in_progress(self) -> list[str]:
        names = self.remote.names("leases")
        return sorted({name[:16] for name in names if "." not in name and not name.startswith("run-")})
