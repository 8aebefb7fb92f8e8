"""The place where runs are written: its room, and whether what the store relies on works there. Nothing stays behind."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ddgd_ray.doctor.finding import Finding, passed
from ddgd_ray.doctor.machine import GIB
from ddgd_ray.redact import redact

MIN_FREE_BYTES = 1 * GIB
GOOD_FREE_BYTES = 10 * GIB
URL_TIMEOUT_S = 30.0
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs", "fuse.")


def check_run_dir(run_dir: Path, *, is_on_cluster: bool = False, keeps_tracking: bool = True) -> list[Finding]:
    """Findings of a run directory. is_on_cluster: other machines must see it. keeps_tracking: MLflow's database lies there."""
    place = existing(run_dir)
    if not place.is_dir():
        what = f"{place} is no folder, and {run_dir} cannot lie in it"
        return [Finding("run dir", "FAIL", what, "choose another --run-dir")]
    findings = [_room(place), _rules(place, run_dir)]
    kind = file_system(place)
    is_network = kind.startswith(NETWORK)
    if is_network and keeps_tracking:
        what = f"{kind}, a network file system: MLflow's SQLite database is not safe there"
        findings.append(
            Finding("run dir", "WARN", what, "--tracking-uri sqlite:////local/disk/mlflow.db, or a server's address")
        )
    elif kind == "tmpfs":
        what = "in memory (tmpfs): gone when the machine restarts"
        findings.append(Finding("run dir", "WARN", what, "choose a --run-dir on a disk"))
    elif is_on_cluster and not is_network:
        what = f"{kind}, a file system of this machine alone: the cluster's other nodes do not see it"
        findings.append(
            Finding("run dir", "WARN", what, "choose a --run-dir that all nodes share, unless this is the only one")
        )
    return findings


# in a process of its own: its libraries take seconds to import and try again for minutes when nobody answers
URL_PROBE = """
import os, sys, fsspec
fs, root = fsspec.core.url_to_fs(sys.argv[1])
probe = f"{root.rstrip('/')}/.ddgd-doctor-{os.getpid()}"
fs.pipe_file(probe, b"doctor")
try:
    assert fs.cat_file(probe) == b"doctor", "what was written is not what is read"
finally:
    fs.rm_file(probe)
"""


def check_url(url: str) -> list[Finding]:
    """The finding of an object store in which an object was written, read back and removed."""
    shown = redact(url)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", URL_PROBE, url], capture_output=True, text=True, timeout=URL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        what = f"{shown} does not answer within {URL_TIMEOUT_S:.0f} s"
        return [Finding("run dir", "FAIL", what, "is the address right (AWS_ENDPOINT_URL), and are there credentials?")]
    if not ran.returncode:
        return [passed("run dir", f"{shown}: an object written, read and removed")]
    why = redact((ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1][:300])
    is_missing = "ImportError" in why or "ModuleNotFoundError" in why
    fix = "pip install 'ddgd-ray[s3]'" if is_missing else "check bucket, credentials and rights: write, read, delete"
    return [Finding("run dir", "FAIL", f"{shown}: {why}", fix)]


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _room(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    if free >= GOOD_FREE_BYTES:
        return passed("disk", f"{free / GIB:.0f} GiB free at {place}")
    level, fix = ("FAIL" if free < MIN_FREE_BYTES else "WARN"), "make room, or choose another --run-dir"
    return Finding("disk", level, f"{free / GIB:.1f} GiB free at {place}", fix)  # type: ignore[arg-type]


def _rules(place: Path, run_dir: Path) -> Finding:
    """The finding whether writing, flushing to disk, renaming over and locking work: the store publishes by these."""
    step = "a folder made"
    fix = "choose another --run-dir"
    try:
        with tempfile.TemporaryDirectory(prefix=".ddgd-doctor-", dir=place) as name:
            step = "a file written and flushed to disk"
            old, new = Path(name, "old"), Path(name, "new")
            old.write_text("old")
            with new.open("w") as file:
                file.write("new")
                file.flush()
                os.fsync(file.fileno())
            step = "a file renamed over another"
            os.replace(new, old)
            if old.read_text() != "new":
                return Finding("run dir", "FAIL", f"{place}: a file renamed over another leaves the old one", fix)
            step = "a file locked"
            with old.open() as first, old.open() as second:
                fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass
                else:
                    what = f"{place}: a lock does not hold: two sweeps could write one run"
                    return Finding("run dir", "FAIL", what, "mount it with locks (NFS: without nolock), or " + fix)
    except OSError as err:
        return Finding("run dir", "FAIL", f"{place}: no {step}: {err.strerror}", fix)
    there = str(run_dir) if place == run_dir else f"{run_dir} (not there yet)"
    return passed("run dir", f"{there} on {file_system(place)}: written, flushed, renamed, locked")


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system, such as ext4 or nfs4, of the mount that holds the path."""
    kind, longest = "unknown", -1
    resolved = path.resolve()
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))  # a space is \040
        if resolved.is_relative_to(point) and len(point.parts) >= longest:  # a later mount on one point hides the earlier
            kind, longest = after.split()[0], len(point.parts)
    return kind


def check_token(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """The finding of ray's token. ray writes it readable for everybody, and who reads it runs code on the cluster."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if environment.get("RAY_AUTH_TOKEN_PATH"):
            return [Finding("token", "WARN", f"RAY_AUTH_TOKEN_PATH names no file: {path}", "unset it, or put the token there")]
        return [passed("token", "ray has none yet")]
    except OSError as err:
        return [Finding("token", "WARN", f"{path} cannot be read: {err.strerror}", f"check the permissions of {path.parent}")]
    if stat.S_IMODE(mode) & 0o077:
        what = f"{path} has mode {stat.S_IMODE(mode):03o}: others can read ray's token"
        return [Finding("token", "WARN", what, f"chmod 600 {path}")]
    return [passed("token", f"{path} is its owner's alone")]
