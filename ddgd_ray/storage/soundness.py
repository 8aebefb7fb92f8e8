"""Whether the files of an artifact are what was published, by the sizes and SHA-256 of its manifest."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddgd_ray.errors import DamagedArtifact
from ddgd_ray.plain_files import regular
from ddgd_ray.storage.manifest import REMAKE, Artifact, check_identity, file_sha256

HASHED_BYTES = 256 << 20  # larger inputs are compared by size alone before a use: 537 MB/s would be 20 s for latents of 10 GB

_compared: set[tuple[str, int, int, str]] = set()  # (path, mtime in ns, size, SHA-256) of files that this process has compared


def check_before_use(artifact: Artifact) -> None:
    """Compare key, names and sizes, and SHA-256 of files up to 256 MB once a process. Raises DamagedArtifact."""
    check_identity(artifact)
    compare_files(artifact, most_bytes=HASHED_BYTES)


def compare_files(artifact: Artifact, contents: bool = True, most_bytes: int = 0) -> None:
    """Compare the files with the manifest: names and sizes, and their SHA-256 with `contents`. Raises DamagedArtifact.

    most_bytes: files beyond are compared by size; files that this process has compared before are not read again. 0: all
    are read.
    """
    for name in artifact.files:
        problem = _problem(artifact, name, contents, most_bytes)
        if problem:
            raise DamagedArtifact(f"{name} {problem}", where=str(artifact.folder), fix=REMAKE)


def checked_file(artifact: Artifact, name: str) -> Path | None:
    """One file once it is found to be what was published; None where nothing of that name was. Raises DamagedArtifact."""
    if name not in artifact.files:
        return None
    problem = _problem(artifact, name, contents=True, most_bytes=HASHED_BYTES)
    if problem:
        raise DamagedArtifact(f"{name} {problem}", where=str(artifact.folder), fix=REMAKE)
    return artifact.path / name


def _problem(artifact: Artifact, name: str, contents: bool, most_bytes: int) -> str:
    """What of a file is not as it was published, or ""."""
    path, entry = artifact.path / name, artifact.files[name]
    state, problem = _look(path, artifact)
    if state is None:
        return problem
    if state.st_size != entry["bytes"]:
        return f"has {state.st_size} bytes, expected {entry['bytes']}"
    if not contents or 0 < most_bytes < state.st_size:
        return ""
    identity = (str(path), state.st_mtime_ns, state.st_size, str(entry["sha256"]))
    if (most_bytes and identity in _compared) or file_sha256(path) == entry["sha256"]:
        _compared.add(identity)
        return ""
    return "has another SHA-256 than when it was published"


def _look(path: Path, artifact: Artifact) -> tuple[os.stat_result | None, str]:
    """The state of a file, or what keeps it from being one of the artifact."""
    try:
        state = regular(path)
    except FileNotFoundError:
        return None, "is missing"
    except OSError as err:
        return None, str(err.strerror)
    if not artifact.may_link and os.path.realpath(path) != os.path.join(
        os.path.realpath(artifact.folder), path.relative_to(artifact.folder)
    ):
        return None, "is reached by a link"
    return state, ""


def remember_compared(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Files that were compared on their way into `folder` need not be read again by this process."""
    for name, entry in manifest["files"].items():
        state = (folder / name).stat()
        _compared.add((str(folder / name), state.st_mtime_ns, state.st_size, str(entry["sha256"])))
