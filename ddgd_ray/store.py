"""Published artifacts: folders named by the hash of everything that determines their content.

Layout of a store: `<stage>/<key>/` holds files and `manifest.json`; `scratch/` what is being made; `kept/<key>/` what a stage
under way keeps over a crash (checkpoints); `locks/` one lease a key.
An artifact appears by one rename, manifest inside, so existing means complete.
"""

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ddgd_ray.errors import ArtifactError, StageError
from ddgd_ray.spec.base import canonical_json
from ddgd_ray.spec.stages import StageSpec

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA = 1
VERSIONED = ("torch", "diffusers", "numpy", "ray", "optuna")


def key_of(spec: StageSpec, inputs: Mapping[str, str]) -> str:
    """sha256 (64 hex digits) of stage, version, resolved spec and the keys or fingerprints of the inputs."""
    return key_of_identity(spec.stage, spec.version, spec.canonical(), inputs)


def key_of_identity(stage: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The same of a manifest's fields. spec: as `canonical` gives it."""
    identity = {"stage": stage, "version": version, "spec": spec, "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def crash_point(name: str) -> None:
    """Leave the process as a power cut would when DDGD_CRASH_AT names this commit point. For the kill tests."""
    if os.environ.get("DDGD_CRASH_AT") == name:
        os._exit(137)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part; the new one survives a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        crash_point("before-replace")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_writable(what: str, *folders: Path, fix: str = "choose another --run-dir") -> None:
    """Create the folders and write into the first one. Raises StageError that names `what` and says how to `fix` it."""
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        probe = folders[0] / f".probe-{uuid.uuid4().hex[:8]}"
        probe.write_text("")
        probe.unlink()
    except OSError as err:
        raise StageError(f"{what} cannot be written: {err.strerror}", where=str(folders[0]), fix=fix) from err


@dataclass(frozen=True)
class Artifact:
    """One published folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.manifest["metrics"])

    @property
    def seconds(self) -> float:
        return float(self.manifest["seconds"])


class Store:
    """A writable root and read-only roots below it, such as the checkpoints that ship with the package."""

    def __init__(self, root: Path, read_only: tuple[Path, ...] = ()) -> None:
        self.root = root
        self.read_only = read_only

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self.root, self.read_only))

    def prepare(self) -> None:
        """Create the folders and check that they can be written. Raises StageError."""
        make_writable("the store", self.root, self.root / "scratch", self.root / "locks")

    def _folders(self, stage: str, key: str) -> list[Path]:
        return [root / stage / key for root in (self.root, *self.read_only)]

    def has(self, stage: str, key: str) -> bool:
        return any((folder / MANIFEST).is_file() for folder in self._folders(stage, key))

    def keys(self, stage: str) -> list[str]:
        """Of everything published by a stage, in order."""
        found = {path.parent.name for root in (self.root, *self.read_only) for path in (root / stage).glob(f"*/{MANIFEST}")}
        return sorted(found)

    def get(self, stage: str, key: str) -> Artifact | None:
        """The artifact, or None. Raises ArtifactError when its manifest cannot be read or speaks of another key."""
        for folder in self._folders(stage, key):
            try:
                text = (folder / MANIFEST).read_text()
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                manifest = json.loads(text)
                found = (manifest["schema"], manifest["key"])
            except (ValueError, KeyError, TypeError) as err:
                raise ArtifactError(
                    "its manifest cannot be read", where=str(folder), fix="delete this folder; it is made again"
                ) from err
            if found != (SCHEMA, key):
                raise ArtifactError(
                    f"expected schema {SCHEMA} of key {key[:8]}, found schema {found[0]} of key {str(found[1])[:8]}",
                    where=str(folder),
                    fix="delete this folder; it is made again",
                )
            return Artifact(folder, manifest)
        return None

    def verify(self, artifact: Artifact, contents: bool = True) -> None:
        """Compare the files with the manifest: names and sizes, and their SHA-256 with `contents`. Raises ArtifactError."""
        listed: dict[str, dict[str, Any]] = artifact.manifest["files"]
        for name, entry in listed.items():
            path = artifact.path / name
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["bytes"]:
                problem = "is missing" if size < 0 else f"has {size} bytes, expected {entry['bytes']}"
            elif contents and file_sha256(path) != entry["sha256"]:
                problem = "has another SHA-256 than when it was published"
            else:
                continue
            raise ArtifactError(f"{name} {problem}", where=str(artifact.path), fix="delete this folder; it is made again")

    @contextmanager
    def lease(self, key: str) -> Iterator[None]:
        """Hold the right to make `key`; waits while another process on this host holds it.

        flock: freed by the kernel when its holder dies. Holds on one host, or where the file system passes flock on.
        """
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with (self.root / "locks" / key).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def scratch(self, key: str) -> Iterator[Path]:
        """A fresh folder on the store's file system, removed afterwards unless it was published."""
        folder = self.root / "scratch" / f"{key[:16]}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, key: str) -> Path:
        """The folder of what a stage keeps over a crash while `key` is made; for the holder of the lease."""
        folder = self.root / "kept" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_kept(self, key: str) -> None:
        shutil.rmtree(self.root / "kept" / key, ignore_errors=True)

    def publish(
        self, scratch: Path, spec: StageSpec, inputs: Mapping[str, str], metrics: Mapping[str, float], seconds: float
    ) -> Artifact:
        """Make `scratch` the artifact of its key. When another writer was first, its artifact stays and ours is dropped."""
        key = key_of(spec, inputs)
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        manifest = {
            "schema": SCHEMA,
            "key": key,
            "stage": spec.stage,
            "version": spec.version,
            "spec": spec.canonical(),
            "inputs": dict(inputs),
            "metrics": dict(metrics),
            "seconds": seconds,
            "created": time.time(),
            "host": socket.gethostname(),
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in VERSIONED},
            "files": {
                str(path.relative_to(scratch)): {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files
            },
        }
        _sync_tree(scratch, files)
        crash_point("before-manifest")
        write_atomically(scratch / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False))
        _sync_folder(scratch)
        crash_point("before-publish")
        target = self.root / spec.stage / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(scratch, target)
        except OSError:
            if not (target / MANIFEST).is_file():  # a folder is in the way that is no artifact, or the disk failed
                raise
            log.warning("%s %s: another writer was first, our copy is dropped", key[:8], spec.stage)
        _sync_folder(target.parent)
        crash_point("after-publish")
        published = self.get(spec.stage, key)
        assert published is not None
        return published

    def in_progress(self) -> list[str]:
        """The first 16 digits of each key that is being made, here or, as far as one can tell, on another host."""
        return sorted(folder.name[:16] for folder in (self.root / "scratch").glob("*") if not _is_abandoned(folder))

    def clean_scratch(self) -> int:
        """Remove what dead processes of this host left behind; returns how many folders."""
        abandoned = [folder for folder in (self.root / "scratch").glob("*") if _is_abandoned(folder)]
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
        return len(abandoned)


def _is_abandoned(scratch: Path) -> bool:
    """Whether a scratch folder KEY.HOST.PID.RANDOM belongs to a process of this host that is gone."""
    host, _, pid = scratch.name.partition(".")[2].rpartition(".")[0].rpartition(".")
    return host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _sync_tree(root: Path, files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in files} | {root}:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
