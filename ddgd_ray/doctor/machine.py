"""This machine: Python and packages, cores, memory, GPUs."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ddgd_ray.doctor.finding import Finding, passed
from ddgd_ray.spec.sweep_spec import ResourcesSpec

PACKAGE = "ddgd-ray"
GIB = 2**30
# ray keeps its objects there, torch's loaders their batches; containers have 64 MiB by default
MIN_SHM_BYTES = 1 * GIB
MIN_MEMORY_BYTES = 2 * GIB
# run in a process of its own: torch takes seconds to import, and a broken driver may hang or crash it
GPU_PROBE = """
import json, torch
cuda = torch.cuda
names = [(cuda.get_device_name(n), cuda.get_device_properties(n).total_memory) for n in range(cuda.device_count())]
print(json.dumps({"build": torch.version.cuda or torch.version.hip, "gpus": names}))
"""
GPU_TIMEOUT_S = 60.0


def check_packages(version_of: Callable[[str], str] = importlib.metadata.version) -> list[Finding]:
    """Findings of versions against the bounds that the package was installed with; of extras where they are installed."""
    try:
        package = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return [Finding("packages", "WARN", f"{PACKAGE} is not installed, only found on the path", "pip install -e .")]
    here = platform.python_version()
    wanted = package["Requires-Python"] or ""
    is_new_enough = SpecifierSet(wanted).contains(here, prereleases=True)
    python = (
        passed("python", here) if is_new_enough else Finding("python", "FAIL", f"{here}, needs {wanted}", "use a newer Python")
    )
    return [python, *_compare(importlib.metadata.requires(PACKAGE) or [], version_of)]


def _compare(requirements: Iterable[str], version_of: Callable[[str], str]) -> list[Finding]:
    wrong, num_sound = [], 0
    for text in requirements:
        requirement = Requirement(text)
        is_extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        install = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = version_of(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if not is_extra:
                wrong.append(Finding("packages", "FAIL", f"{requirement.name} is not installed", install))
            continue
        if requirement.specifier.contains(found, prereleases=True):
            num_sound += 1
        else:
            what = f"{requirement.name} {found} is installed, needs {requirement.specifier}"
            wrong.append(Finding("packages", "WARN" if is_extra else "FAIL", what, install))
    return wrong or [passed("packages", f"{num_sound} are of the versions that are needed")]


def check_cores(resources: ResourcesSpec | None, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Findings of the cores that this process may use, and of settings that make threads fight over them."""
    cores = usable_cores()
    findings = []
    if resources is not None and resources.cpus > cores:
        what = f"a job of the sweep asks for {resources.cpus:g} CPUs, {cores} can be used here"
        findings.append(Finding("cores", "WARN", what, "lower resources.cpus, or join a cluster with --address"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        value = environment.get(name, "")
        if value and not (value.isdecimal() and 1 <= int(value) <= cores):
            what = f"{name}={value}, and {cores} cores can be used"
            findings.append(Finding("cores", "WARN", what, f"unset {name}: each job sets its threads itself"))
    if environment.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        what = "OMP_WAIT_POLICY=ACTIVE: threads that wait keep their cores busy, steps get many times slower"
        findings.append(Finding("cores", "WARN", what, "unset OMP_WAIT_POLICY"))
    return findings or [passed("cores", f"{cores} of {os.cpu_count()}")]


def usable_cores() -> float:
    """The number of cores by affinity and by the container's quota, which may be a fraction."""
    cores: float = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, round(int(quota) / int(period), 2))
    except (OSError, ValueError):  # no limit that can be read
        pass
    return cores


def memory_gb() -> float:
    """Main memory of this machine in GB, used or not."""
    return psutil.virtual_memory().total / 1e9


def check_memory(shm: Path = Path("/dev/shm")) -> list[Finding]:
    findings = []
    available = psutil.virtual_memory().available
    if available < MIN_MEMORY_BYTES:
        fix = "end other programs; ray ends workers when memory runs out"
        findings.append(Finding("memory", "WARN", f"{available / GIB:.1f} GiB available", fix))
    else:
        findings.append(passed("memory", f"{available / GIB:.1f} GiB available"))
    if not shm.is_dir():
        return [*findings, Finding("shm", "WARN", f"there is no {shm}: ray keeps objects on disk", f"mount a tmpfs on {shm}")]
    size = shutil.disk_usage(shm)
    if size.free < MIN_SHM_BYTES:
        what = f"{shm} has {size.free / GIB:.2f} GiB free of {size.total / GIB:.2f}; ray and torch's loaders want 1 or more"
        fix = "docker run --shm-size=8g, in Kubernetes an emptyDir with medium: Memory; or remove old files there"
        return [*findings, Finding("shm", "WARN", what, fix)]
    return [*findings, passed("shm", f"{size.free / GIB:.1f} GiB free")]


def check_gpus(
    resources: ResourcesSpec | None,
    *,
    probe: tuple[str, ...] = (sys.executable, "-c", GPU_PROBE),
    driver: Path = Path("/proc/driver/nvidia/version"),
    environment: Mapping[str, str] = os.environ,
) -> list[Finding]:
    """Findings of the GPUs that torch sees. Their absence is worth a warning only when the sweep asks for some."""
    asked = resources.held["gpus"] if resources is not None else 0
    is_amd = Path("/dev/kfd").exists()
    if not driver.exists() and not is_amd:
        return [_no_gpu(asked, "no driver of NVIDIA or AMD is loaded")]
    try:
        ran = subprocess.run(probe, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        what = f"torch did not see them within {GPU_TIMEOUT_S:.0f} s"
        return [Finding("gpus", "FAIL", what, "nvidia-smi hangs too? restart the machine")]
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
        return [Finding("gpus", "FAIL", f"torch cannot look for them: {last}", "reinstall torch for this driver")]
    seen = json.loads(ran.stdout)
    version = _driver_version(driver)
    if not seen["gpus"]:
        if seen["build"] is None:
            why = "torch is a build without CUDA"
            return [_no_gpu(asked, why, "pip install a torch with CUDA: pytorch.org/get-started")]
        hidden = environment.get("CUDA_VISIBLE_DEVICES")
        why = (
            f"CUDA_VISIBLE_DEVICES={hidden!r} hides them"
            if hidden is not None
            else f"driver {version}, torch for CUDA {seen['build']}"
        )
        return [_no_gpu(asked, why, "unset CUDA_VISIBLE_DEVICES" if hidden is not None else "")]
    shown = ", ".join(f"{name} {memory / GIB:.0f} GiB" for name, memory in seen["gpus"])
    if asked > len(seen["gpus"]):
        what = f"a job of the sweep asks for {asked:g}, here are {len(seen['gpus'])}: {shown}"
        return [Finding("gpus", "WARN", what, "lower resources.gpus or workers, or join a cluster with --address")]
    return [passed("gpus", f"{shown}; driver {version}")]


def seen_gpus(driver: Path = Path("/proc/driver/nvidia/version")) -> list[tuple[str, int]]:
    """(name, bytes of memory) of each GPU that torch sees; none where there is no driver, or where asking fails."""
    if not driver.exists() and not Path("/dev/kfd").exists():
        return []
    try:
        ran = subprocess.run(
            (sys.executable, "-c", GPU_PROBE), capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=False
        )
        return [(str(name), int(memory)) for name, memory in json.loads(ran.stdout)["gpus"]] if not ran.returncode else []
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []


def _no_gpu(asked: float, why: str, fix: str = "") -> Finding:
    if not asked:
        return passed("gpus", f"none ({why}), and none is asked for")
    what = f"none ({why}), and a job of the sweep asks for {asked:g}"
    return Finding("gpus", "WARN", what, fix or "set resources.gpus: 0, or join a cluster with --address")


def _driver_version(driver: Path) -> str:
    try:
        words = driver.read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
