"""Ray on this machine alone: what keeps it from starting, found without importing it."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from ddgd_ray.doctor.finding import Finding, passed
from ddgd_ray.spec.sweep_spec import ResourcesSpec

MAX_SOCKET_PATH = 107
"""Bytes in the path of a Unix socket."""
SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest name that Ray gives one below its temporary folder."""


def check_local_ray(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Findings of Ray's temporary folder, its token's, and the network of this machine."""
    found = [*_temporary(environment), *_token(environment), *_loopback()]
    return found or [passed("ray", "can start on this machine")]


def temporary_folder(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """(variable, folder) where Ray puts its sessions; the variable is "" for /tmp."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), "")
    return name, environment.get(name, "/tmp")


def local_misfits(resources: ResourcesSpec) -> list[Finding]:
    """Findings of jobs that no worker on this machine could hold, whatever else runs: they would wait for ever."""
    has_gpus = Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists()
    offered = {"cpus": float(os.cpu_count() or 1), "memory_gb": psutil.virtual_memory().total / 1e9}
    if not has_gpus:
        offered["gpus"] = 0.0
    units = {"cpus": "CPUs", "gpus": "GPUs", "memory_gb": "GB of memory"}
    found = []
    for field, amounts in (
        ("resources", resources),
        *((f"resources.stages.{name}", resources.of(name)) for name in resources.stages),
    ):
        for name, amount in offered.items():
            asked = getattr(amounts, name)
            if asked > amount:
                what = f"a job of the sweep asks for {asked:g} {units[name]} ({field}.{name}), this machine has {amount:.3g}"
                fix = f"--set {field}.{name}={int(amount) if amount >= 1 else 0}, or join a cluster: --address HOST:PORT"
                found.append(Finding("cores" if name == "cpus" else name, "FAIL", what, fix))
    return found


def _temporary(environment: Mapping[str, str]) -> list[Finding]:
    name, folder = temporary_folder(environment)
    said = f"{name}={folder}" if name else folder
    num_bytes = len(os.fsencode(f"{folder}/{SOCKET}"))
    if num_bytes > MAX_SOCKET_PATH:
        what = f"{said} is too long: Ray's sockets there have paths of {num_bytes} bytes, at most {MAX_SOCKET_PATH} are allowed"
        return [Finding("ray", "FAIL", what, "export RAY_TMPDIR=/tmp, or another short path")]
    place = Path(folder)
    if not place.is_dir():
        return [
            Finding("ray", "FAIL", f"{said} is no folder, and Ray writes there", f"mkdir -p it, or unset {name or 'TMPDIR'}")
        ]
    inner = place / "ray"
    odd = next((path for path in (inner if inner.exists() else place,) if not os.access(path, os.W_OK | os.X_OK)), None)
    if odd is not None:
        owner = f", it belongs to user {odd.stat().st_uid}" if odd.stat().st_uid != os.getuid() else ""
        what = f"{odd} cannot be written{owner}, and Ray writes there"
        return [Finding("ray", "FAIL", what, "export RAY_TMPDIR=$(mktemp -d), a folder of your own with a short path")]
    return []


def _token(environment: Mapping[str, str]) -> list[Finding]:
    """Ray makes a token at its first start, where it is told to ask for one."""
    given = any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return []
    home = Path(environment.get("HOME") or "~").expanduser()
    file = home / ".ray" / "auth_token"
    try:
        place = next(path for path in (file, *file.parents) if path.exists())
    except (OSError, StopIteration):
        place = home
    if file.exists() and os.access(file, os.R_OK):
        return []
    if place != file and os.access(place, os.W_OK | os.X_OK) and place.is_dir():
        return []
    fix = "export RAY_AUTH_TOKEN_PATH=FILE, a file of your own with any secret text; or HOME=FOLDER that you can write"
    return [Finding("ray", "FAIL", f"{file} cannot be {'read' if place == file else 'made'}: HOME={home}", fix)]


def _loopback() -> list[Finding]:
    """Ray's processes talk over 127.0.0.1, which containers without a network lack."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as err:
        fix = "ip link set lo up; in a container, give it a network"
        return [Finding("ray", "FAIL", f"this machine cannot reach itself at 127.0.0.1: {err.strerror or err}", fix)]
    return []
