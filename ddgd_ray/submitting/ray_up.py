"""A cluster file for ray's own launcher (`ray up`): machines of AWS, or hosts of one's own that answer to ssh."""

import ipaddress
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.engine.ray_tune import WAITER
from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.submitting.job import Job, Submission, refuse_control
from ddgd_ray.submitting.kubernetes import IMAGE, kubernetes_name
from ddgd_ray.submitting.write import as_yaml, render, sweep_script

PLACE = "/tmp/ddgd"  # where the sweep's files lie on the cluster
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RayUp:
    """hosts: the head, then the workers; empty for AWS. env_file: on each machine, sourced before ray starts."""

    hosts: tuple[str, ...] = ()
    ssh_user: str = ""
    ssh_key: str = ""
    image: str = ""
    region: str = "us-west-2"
    instance_type: str = ""
    head_type: str = "m5.xlarge"
    env_file: str = "~/.ddgd-env"


def ray_up_submission(job: Job, up: RayUp, folder: Path) -> Submission:
    """Raises SpecErrors: all at once."""
    _check(job, up)
    place = f"{PLACE}/{job.name}"
    cluster = _local(job, up) if up.hosts else _aws(job, up)
    cluster["file_mounts"] = {place: str(folder)}
    # values of variables are on the machines alone, in a file of their owner's
    source = [f"set -a; . {up.env_file}; set +a"] if job.env else []
    resources = shlex.quote(json.dumps({WAITER: 1000}))
    quiet = "RAY_USAGE_STATS_ENABLED=0"
    head_has = f"--num-cpus={job.cpus} --num-gpus={job.gpus}" if up.hosts else "--num-cpus=0 --num-gpus=0"
    start = f"{quiet} ray start --head --port=6379 {head_has} --include-dashboard=false --resources={resources}"
    join = f"{quiet} ray start --address=$RAY_HEAD_IP:6379 --num-cpus={job.cpus} --num-gpus={job.gpus}"
    setup = [*source, *job.setup]
    cluster["head_start_ray_commands"] = [
        "ray stop",
        _chain(setup, f"{start} --autoscaling-config=~/ray_bootstrap_config.yaml"),
    ]
    cluster["worker_start_ray_commands"] = ["ray stop", _chain(setup, join)]
    if up.image:
        options = ["--shm-size=16g", "--ulimit", "nofile=65536:65536"]
        cluster["docker"] = {"image": up.image, "container_name": "ddgd", "pull_before_run": True, "run_options": options}
    entry = sweep_script(Job(**{**vars(job), "setup": tuple(setup)}), f"{place}/{job.name}.yaml", place)
    files = {
        f"{job.name}-cluster.yaml": as_yaml(cluster),
        f"{job.name}-sweep.sh": entry,
        f"{job.name}.yaml": job.file.read_text(),
    }
    search = job.sweep.spec.search
    if search is not None:
        beside = job.file.parent / search.space
        files[search.space] = (beside if beside.is_file() else job.folder / search.space).read_text()
    files["submit.sh"] = render(
        "ray-up.sh.j2",
        name=job.name,
        cluster=str(folder / f"{job.name}-cluster.yaml"),
        sweep_command=shlex.join(["bash", f"{place}/{job.name}-sweep.sh"]),
        is_cloud=not up.hosts,
    )
    notes = ["all machines need ddgd-ray of the version here: by --image, or by --setup"]
    if not job.is_remote:
        notes.append(f"all machines must see {job.run_dir}")
    if job.env:
        notes.append(f"put {', '.join(f'{key}=...' for key in job.env)} into {up.env_file} of each machine, mode 600")
    return Submission(files, f"bash {shlex.quote(str(folder / 'submit.sh'))}", tuple(notes))


def _chain(before: list[str], command: str) -> str:
    return " && ".join([*(f"{{ {line}; }}" for line in before), command])


def _aws(job: Job, up: RayUp) -> dict[str, Any]:
    workers = {"InstanceType": up.instance_type}
    offered = {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {})
    return {
        "cluster_name": kubernetes_name(job.name),
        "max_workers": job.nodes,
        "idle_timeout_minutes": 10,
        "provider": {"type": "aws", "region": up.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": up.ssh_user or "ubuntu"} | ({"ssh_private_key": up.ssh_key} if up.ssh_key else {}),
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0, WAITER: 1000}, "node_config": {"InstanceType": up.head_type}, "max_workers": 0},
            "worker": {"resources": offered, "node_config": workers, "min_workers": job.nodes, "max_workers": job.nodes},
        },
    }


def _local(job: Job, up: RayUp) -> dict[str, Any]:
    head, *workers = up.hosts
    return {
        "cluster_name": kubernetes_name(job.name),
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "auth": {"ssh_user": up.ssh_user} | ({"ssh_private_key": up.ssh_key} if up.ssh_key else {}),
    }


def _check(job: Job, up: RayUp) -> None:
    errors = refuse_control({"--ssh-key": [up.ssh_key]})
    if up.image and not IMAGE.fullmatch(up.image):
        errors.append(SpecError(f"expected a container image, got {up.image!r}", where="--image", fix="--image NAME:TAG"))
    for option, value in (("--ssh-user", up.ssh_user), ("--region", up.region), ("--head-type", up.head_type)):
        if value and not _WORD.fullmatch(value):
            errors.append(SpecError(f"expected a name, got {value!r}", where=option, fix="use letters, digits and . _ -"))
    if up.hosts:
        for host in up.hosts:
            if not _is_host(host):
                errors.append(
                    SpecError(f"expected a host name or address, got {host!r}", where="--hosts", fix="--hosts HEAD WORKER")
                )
        if len(set(up.hosts)) < len(up.hosts):
            errors.append(SpecError("a host is listed twice", where="--hosts", fix="remove one of the two"))
        if len(up.hosts) != job.nodes:
            what = f"{len(up.hosts)} hosts are listed, --nodes is {job.nodes}"
            errors.append(SpecError(what, where="--hosts", fix=f"--nodes {len(up.hosts)}"))
        if not up.ssh_user:
            errors.append(SpecError("who logs in on these hosts?", where="--ssh-user", fix="--ssh-user NAME"))
    elif not _WORD.fullmatch(up.instance_type):
        what = "expected the type of AWS's machines, or the hosts of one's own"
        errors.append(SpecError(what, where="--instance-type", fix="--instance-type g5.2xlarge, or --hosts HEAD WORKER ..."))
    search = job.sweep.spec.search
    if search is not None and (Path(search.space).is_absolute() or ".." in Path(search.space).parts):
        what = f"the search space must lie beside or below the sweep file: {search.space}"
        errors.append(SpecError(what, where="search.space", fix="copy it there"))
    if errors:
        raise SpecErrors(errors)


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True
