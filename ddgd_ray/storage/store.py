"""Published artifacts: folders named by the hash of everything that determines their content.

Layout of a store: `<stage>/<key>/` holds files and `manifest.json`; `scratch/` what is being made; `kept/<key>/` what a stage
under way keeps over a crash (checkpoints); `locks/` and `leases/` the right to make a key; `damaged/<key>.<n>` what was set
aside.
An artifact appears by one rename, manifest inside, so existing means complete.
"""

import itertools
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddgd_ray.errors import ArtifactError, DamagedArtifact
from ddgd_ray.plain_files import is_plain_name, read_bytes
from ddgd_ray.spec.stages import StageSpec
from ddgd_ray.storage.commit import crash_point, make_writable, room_for, sync_folder, sync_tree, write_atomically
from ddgd_ray.storage.leases import Pace, heartbeat_lease, host_lease, needs_heartbeats, started_at
from ddgd_ray.storage.manifest import (
    MANIFEST,
    REMAKE,
    Artifact,
    check_identity,
    file_sha256,
    key_of,
    key_of_identity,
    new_manifest,
    read_manifest,
    write_manifest,
)
from ddgd_ray.storage.shared_files import FolderFiles
from ddgd_ray.storage.soundness import check_before_use, compare_files

__all__ = [
    "MANIFEST",
    "Artifact",
    "Store",
    "crash_point",
    "file_sha256",
    "key_of",
    "key_of_identity",
    "make_writable",
    "write_atomically",
]

log = logging.getLogger(__name__)

NO_STAGES = {"scratch", "kept", "locks", "leases", "damaged", "known", "train"}  # folders of a store


class Store:
    """A writable root and read-only roots below it, such as the checkpoints that ship with the package."""

    num_dropped = 0
    """Copies of this object's writers that came second and were dropped."""
    remote: Any = None
    """The storage behind a URL that holds the truth of this store (remote.py); None where its own folder does."""

    def __init__(self, root: Path, read_only: tuple[Path, ...] = (), pace: Pace = Pace()) -> None:  # noqa: B008  frozen
        self.root, self.read_only, self.pace = root, read_only, pace

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self.root, self.read_only, self.pace))

    def __str__(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        """Create the folders and check that they can be written. Raises StageError."""
        make_writable("the store", self.root, self.root / "scratch", self.root / "locks")

    def _place(self, stage: str, key: str) -> Path:
        """The folder of an artifact in the writable layer. Raises ArtifactError for a name that leads elsewhere."""
        if not is_plain_name(f"{stage}/{key}") or "/" in key:  # refs come from records that others may have written
            fix = "delete the record that names it"
            raise ArtifactError(f"{f'{stage}/{key}'!r:.100} names no artifact", code="damaged", where=str(self), fix=fix)
        return self.root / stage / key

    def _folders(self, stage: str, key: str) -> list[Path]:
        return [self._place(stage, key), *(root / stage / key for root in self.read_only)]

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact was published: cheap, and blind to damage; `sound` looks closer."""
        return any(os.path.isfile(f"{root}/{stage}/{key}/{MANIFEST}") for root in (self.root, *self.read_only))  # asked often

    def still_has(self, stage: str, key: str) -> bool:
        """Whether the artifact is published now, never answered from memory: another host may have set it aside."""
        return self.has(stage, key)

    def keys(self, stage: str) -> list[str]:
        """The keys of everything that a stage has published, sorted."""
        found = {path.parent.name for root in (self.root, *self.read_only) for path in (root / stage).glob(f"*/{MANIFEST}")}
        return sorted(found)

    def stages(self) -> list[str]:
        """The stages that have published anything in the writable layer, sorted."""
        return sorted({path.parent.parent.name for path in self.root.glob(f"*/*/{MANIFEST}")} - NO_STAGES)

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artifact, or None. Raises DamagedArtifact when its manifest cannot be read or speaks of another key."""
        for folder in self._folders(stage, key):
            try:
                text = read_bytes(folder / MANIFEST).decode(errors="replace")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as err:
                raise DamagedArtifact(f"its manifest {err.strerror}", where=str(folder), fix=REMAKE) from err
            is_of_package = not folder.is_relative_to(self.root)
            return Artifact(folder, read_manifest(text, stage, key, str(folder)), may_link=is_of_package)
        return None

    def sound(self, stage: str, key: str) -> Artifact | None:
        """The artifact when its manifest and the sizes of its files are as published. Anything else is set aside, and None."""
        try:
            found = self.get(stage, key)
            if found is not None:
                check_identity(found)
                if found.fetch is None:  # what is fetched is compared on its way
                    compare_files(found, contents=False)
        except DamagedArtifact as err:
            self.set_aside(stage, key, str(err.what))
            return None
        return found

    def usable(self, stage: str, key: str) -> Artifact | None:
        """The artifact for a stage that reads it, compared with its manifest as soundness.check_before_use does.

        What is damaged is set aside, then DamagedArtifact is raised: who makes it can make it again.
        """
        try:
            found = self.get(stage, key)
            if found is not None:
                check_before_use(found)
        except DamagedArtifact as err:
            self.set_aside(stage, key, str(err.what))
            found = self.get(stage, key)  # a damaged local copy of what is sound elsewhere was fetched again
            if found is None:
                raise
            check_before_use(found)
        return found

    def set_aside(self, stage: str, key: str, reason: str) -> None:
        """Move a damaged artifact to `damaged/`, so that it is made again; nothing happens when it is sound by now.

        For a caller that does not hold the lease on the key. Raises ArtifactError for one that ships with the package.
        """
        with self.lease(key):
            try:
                found = self.get(stage, key)
                if found is not None:
                    check_before_use(found)  # another process was faster, and it was made again
            except DamagedArtifact:
                self._move_aside(stage, key, reason)

    def _move_aside(self, stage: str, key: str, reason: str) -> None:
        folder = self._place(stage, key)
        if not folder.exists():
            where = str(self._folders(stage, key)[-1])
            raise ArtifactError(f"a checkpoint of the package is damaged: {reason}", where=where, fix="install it again")
        (self.root / "damaged").mkdir(exist_ok=True)
        names = (self.root / "damaged" / f"{key}.{number}" for number in itertools.count())
        target = next(name for name in names if not name.exists())
        os.rename(folder, target)
        log.warning("%s %s is damaged: %s; moved to %s, made again when needed", key[:8], stage, reason, target)

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """A block that holds the right to make `key`; it waits while another process holds it."""
        with ExitStack() as held:
            held.enter_context(host_lease(self.root / "locks" / key))
            if needs_heartbeats(self.root):
                held.enter_context(heartbeat_lease(FolderFiles(self.root), f"leases/{key}", self.pace))
            yield

    @contextmanager
    def scratch(self, key: str) -> Iterator[Path]:
        """A fresh folder on the file system of the store, removed afterwards unless it was published."""
        folder = self.root / "scratch" / f"{key[:16]}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, key: str, *, is_helper: bool = False) -> Path:
        """The folder for what a stage keeps over a crash while `key` is made, for the holder of the lease and its helpers.

        A helper may be on a host that does not share this folder: what it makes there, it has to push.
        """
        folder = self.root / "kept" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def push_kept(self, key: str, prefix: str = "") -> None:
        """Give other hosts what is kept for `key` in files whose names begin with `prefix`, at once."""

    def drop_kept(self, key: str) -> None:
        shutil.rmtree(self.root / "kept" / key, ignore_errors=True)

    def publish(
        self,
        scratch: Path,
        spec: StageSpec,
        inputs: Mapping[str, str],
        metrics: Mapping[str, float],
        seconds: float,
        held: Mapping[str, float] = MappingProxyType({}),
    ) -> Artifact:
        """The artifact of the key, made of `scratch`. When another writer was first, its artifact stays and ours is dropped.

        held: CPUs and GPUs of the job, where there is one.
        """
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        manifest = new_manifest(scratch, files, spec, inputs, metrics, seconds, held)
        with room_for(scratch, sum(entry["bytes"] for entry in manifest["files"].values())):
            sync_tree(scratch, files)
        return self._commit(scratch, manifest)

    def _commit(self, scratch: Path, manifest: dict[str, Any]) -> Artifact:
        """The artifact, which appears in one moment: the rename."""
        stage, key = manifest["stage"], manifest["key"]
        crash_point("before-manifest")
        write_manifest(scratch, manifest)
        crash_point("before-publish")
        target = self._place(stage, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(scratch, target)
        except OSError:
            if (target / MANIFEST).is_file():
                self._count_dropped(stage, key)
            elif target.is_dir():  # an artifact that has lost its manifest is none
                self._move_aside(stage, key, f"{MANIFEST} is missing")
                os.rename(scratch, target)
            else:
                raise
        crash_point("after-rename")
        sync_folder(target.parent)
        crash_point("after-publish")
        published = self.get(stage, key)
        assert published is not None
        return published

    def _count_dropped(self, stage: str, key: str) -> None:
        self.num_dropped += 1
        log.warning("%s %s: another writer was first, our copy is dropped (%d so far)", key[:8], stage, self.num_dropped)

    def in_progress(self) -> list[str]:
        """The first 16 digits of each key that is being made, here or, as far as one can tell, on another host."""
        return sorted(folder.name[:16] for folder in (self.root / "scratch").glob("*") if not _is_abandoned(folder))

    def clean_scratch(self) -> int:
        """The number of folders removed: those that dead processes of this host left behind."""
        abandoned = [folder for folder in (self.root / "scratch").glob("*") if _is_abandoned(folder)]
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
        return len(abandoned)


def _is_abandoned(scratch: Path) -> bool:
    """Whether a scratch folder KEY.HOST.PID.RANDOM belongs to a process of this host that is gone."""
    host, _, pid = scratch.name.partition(".")[2].rpartition(".")[0].rpartition(".")
    return host == socket.gethostname() and pid.isdigit() and not started_at(int(pid))
