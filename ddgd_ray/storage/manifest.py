"""The manifest of an artifact: what was done, from what, and the SHA-256 of every file. The key follows from the first two."""

import functools
import hashlib
import json
import math
import platform
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from ddgd_ray.errors import ArtifactError, DamagedArtifact
from ddgd_ray.plain_files import is_plain_name, regular
from ddgd_ray.spec.base import canonical_json
from ddgd_ray.spec.stages import StageSpec
from ddgd_ray.storage.commit import sync_folder, write_atomically

MANIFEST = "manifest.json"
SCHEMA = 1
REMAKE = "run the sweep again, or delete this folder; it is made again"
VERSIONED = ("torch", "diffusers", "numpy", "ray", "optuna")


class Ref(NamedTuple):
    """The name of an artifact: the stage that makes it, and its key of 64 hex digits."""

    stage: str
    key: str


@dataclass(frozen=True)
class Artifact:
    """One published folder and its manifest. fetch: a call that brings the files into the folder, where they lie elsewhere."""

    folder: Path
    manifest: dict[str, Any]
    fetch: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    may_link: bool = False
    """Its files may be links: those of the package itself are, where an installer made them so."""

    @property
    def path(self) -> Path:
        """The local folder with the files. Raises DamagedArtifact, StageError where they have to be fetched and cannot be."""
        if self.fetch is not None:
            self.fetch()
        return self.folder

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def ref(self) -> Ref:
        return Ref(self.stage, self.key)

    @property
    def version(self) -> int:
        """Version of the stage that made it."""
        return int(self.manifest["version"])

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """{name: {sha256, bytes}} of its files."""
        return dict(self.manifest["files"])

    @property
    def spec(self) -> dict[str, Any]:
        """The resolved spec of the stage, as JSON."""
        return dict(self.manifest["spec"])

    @property
    def inputs(self) -> dict[str, str]:
        """{input: key of the artifact, or fingerprint of what came from outside}."""
        return dict(self.manifest["inputs"])

    @property
    def versions(self) -> dict[str, str]:
        """{package: version} of those that made it."""
        return dict(self.manifest.get("versions", {}))

    @property
    def host(self) -> str:
        return str(self.manifest.get("host", ""))

    @property
    def created(self) -> float:
        """Seconds since 1970 at which it was published."""
        return float(self.manifest.get("created", 0.0))

    @property
    def began(self) -> float:
        """Seconds since 1970 at which its stage would have begun without a pause."""
        return self.created - self.seconds

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.manifest["metrics"])

    @property
    def seconds(self) -> float:
        return float(self.manifest["seconds"])

    @property
    def held(self) -> dict[str, float]:
        """CPUs and GPUs of the job that made the artifact, over all its workers; {} where that was not written down."""
        return dict(self.manifest.get("held", {}))


def key_of(spec: StageSpec, inputs: Mapping[str, str]) -> str:
    """SHA-256 (64 hex digits) of stage, version, resolved spec and the keys or fingerprints of the inputs."""
    return key_of_identity(spec.stage, spec.version, spec.canonical(), inputs)


def key_of_identity(stage: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of an artifact by the fields of its manifest. spec: as `canonical` gives it."""
    identity = {"stage": stage, "version": version, "spec": spec, "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a regular file. Raises OSError for anything else, which might never end."""
    regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_manifest(
    folder: Path,
    files: Sequence[Path],
    spec: StageSpec,
    inputs: Mapping[str, str],
    metrics: Mapping[str, float],
    seconds: float,
    held: Mapping[str, float],
) -> dict[str, Any]:
    """The manifest of `files`, which lie in `folder`. held: CPUs and GPUs of the job, {} without one."""
    return {
        "schema": SCHEMA,
        "key": key_of(spec, inputs),
        "stage": spec.stage,
        "version": spec.version,
        "spec": spec.canonical(),
        "inputs": dict(inputs),
        "metrics": dict(metrics),
        "seconds": seconds,
        "held": dict(held),
        "created": time.time(),
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in VERSIONED},
        "files": {str(path.relative_to(folder)): {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files},
    }


def read_manifest(text: str, stage: str, key: str, where: str) -> dict[str, Any]:
    """The manifest of `key`. Raises DamagedArtifact, and ArtifactError for one that a newer version of the project wrote.

    Whoever can write into a shared store can write manifests: the names in one lead nowhere but below the folder of its key.
    """
    try:
        manifest = json.loads(text)
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise DamagedArtifact("its manifest cannot be read", where=where, fix=REMAKE) from err
    if isinstance(schema, int) and schema > SCHEMA:
        raise ArtifactError(
            f"expected schema {SCHEMA}, found schema {schema}: a newer ddgd-ray made it",
            code="newer-schema",
            where=where,
            fix="use that version, or another --run-dir",
        )
    problem = _problem(manifest, stage, key)
    if problem:
        raise DamagedArtifact(problem, where=where, fix=REMAKE)
    return dict(manifest)


def _problem(manifest: Mapping[str, Any], stage: str, key: str) -> str:
    """What keeps a manifest from being that of `key`, or ""."""
    found = {name: manifest.get(name) for name in ("schema", "stage", "key")}
    if found != {"schema": SCHEMA, "stage": stage, "key": key}:
        schema, other_stage, other_key = (str(value)[:20] for value in found.values())
        return f"expected schema {SCHEMA} of {stage} {key[:8]}, found schema {schema} of {other_stage} {other_key[:8]}"
    odd = [name for name in ("spec", "inputs", "metrics", "files") if not isinstance(manifest.get(name), dict)]
    if odd or not _is_amount(manifest.get("seconds")):
        return f"its manifest cannot be read: {', '.join(odd) or 'seconds'} is not what was written"
    names = [name for name in manifest["files"] if not is_plain_name(name) or name == MANIFEST]
    if names or not is_plain_name(manifest.get("copy", "copy")):
        return f"its manifest names a file that is not below its folder: {(names or [manifest['copy']])[0]!r:.100}"
    unfit = [name for name, entry in manifest["files"].items() if not _is_entry(entry)]
    return f"its manifest cannot be read: size and SHA-256 of {unfit[0]!r:.100} are not what was written" if unfit else ""


def _is_entry(entry: object) -> bool:
    """Whether this is the size and SHA-256 of a file."""
    if not isinstance(entry, dict) or not isinstance(sha256 := entry.get("sha256"), str):
        return False
    return type(entry.get("bytes")) is int and entry["bytes"] >= 0 and re.fullmatch("[0-9a-f]{64}", sha256) is not None


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def check_identity(artifact: Artifact) -> None:
    """Raises DamagedArtifact unless the key follows from what the manifest says was done: it was changed, or forged."""
    manifest = artifact.manifest
    try:
        identity = {name: manifest[name] for name in ("stage", "version", "spec", "inputs")}
        key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    except (ValueError, KeyError, TypeError):
        key = ""
    if key != manifest["key"]:
        what = f"its key {manifest['key'][:8]} does not follow from its spec and inputs"
        raise DamagedArtifact(what, where=str(artifact.folder), fix=REMAKE)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False))
    sync_folder(folder)


@functools.cache  # 6 ms each
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
