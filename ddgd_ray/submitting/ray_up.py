"""A cluster file for ray's own launcher (`ray up`): machines of AWS, or hosts of one's own that answer to ssh."""

import ipaddress
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.submitting.files import SweepFiles, as_yaml, render, sweep_files, sweep_script
from ddgd_ray.submitting.job import Job, Submission, refuse_control
from ddgd_ray.submitting.kubernetes import IMAGE, kubernetes_name

ENV_FILE = "~/.ddgd-env"  # on each machine, sourced before ray starts and before the sweep
PLACE = "/tmp/ddgd"  # where the sweep's files lie on the cluster
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RayUp:
    """The machines of `ray up`. hosts: one's own, the head first; empty for AWS."""

    hosts: tuple[str, ...] = ()
    ssh_user: str = ""
    ssh_key: str = ""
    image: str = ""
    region: str = "us-west-2"
    instance_type: str = ""
    head_type: str = "m5.xlarge"


def ray_up_submission(job: Job, up: RayUp, folder: Path) -> Submission:
    """The cluster file and the scripts around it. Raises SpecErrors: all that is wrong at once."""
    taken = _check(job, up)
    place = f"{PLACE}/{job.name}"
    # values of variables are on the machines alone, in a file of their owner's
    setup = [f"if [ -e {ENV_FILE} ]; then set -a; . {ENV_FILE}; set +a; fi", *job.setup]
    cluster = _local(job, up) if up.hosts else _aws(job, up, setup)
    cluster["file_mounts"] = {place: str(folder)}
    quiet = "RAY_USAGE_STATS_ENABLED=0"
    head_has = f"--num-cpus={job.cpus} --num-gpus={job.gpus}" if up.hosts else "--num-cpus=0 --num-gpus=0"
    start = f"{quiet} ray start --head --port=6379 {head_has} --include-dashboard=false"
    join = f"{quiet} ray start --address=$RAY_HEAD_IP:6379 --num-cpus={job.cpus} --num-gpus={job.gpus}"
    cluster["head_start_ray_commands"] = [
        _chain(setup, "ray stop"),
        _chain(setup, f"{start} --autoscaling-config=~/ray_bootstrap_config.yaml"),
    ]
    cluster["worker_start_ray_commands"] = [_chain(setup, "ray stop"), _chain(setup, join)]
    if up.image:
        options = ["--shm-size=16g", "--ulimit", "nofile=65536:65536"]
        cluster["docker"] = {"image": up.image, "container_name": "ddgd", "pull_before_run": True, "run_options": options}
    entry = sweep_script(replace(job, setup=tuple(setup)), f"{place}/{taken.sweep}", place)
    files = {"cluster.yaml": as_yaml(cluster), "sweep.sh": entry, **taken.texts}
    files["submit.sh"] = render(
        "ray-up.sh.j2",
        name=job.name,
        nodes=job.nodes,
        cluster=str(folder / "cluster.yaml"),
        sweep_command=shlex.join(["bash", f"{place}/sweep.sh"]),
        is_cloud=not up.hosts,
    )
    notes = ["all machines need ddgd-ray of the version here: by --image, or by --setup"]
    if not job.is_remote:
        notes.append(f"all machines must see {job.run_dir}")
    if up.hosts:
        notes.append(
            f"ray's ports are open on these hosts: put RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=... into {ENV_FILE} of each"
        )
    if job.env:
        notes.append(f"put {', '.join(f'{key}=...' for key in job.env)} into {ENV_FILE} of each machine, mode 600")
    return Submission(files, f"bash {shlex.quote(str(folder / 'submit.sh'))}", tuple(notes))


def _chain(before: list[str], command: str) -> str:
    return " && ".join([*(f"{{ {line}; }}" for line in before), command])


def _aws(job: Job, up: RayUp, setup: list[str]) -> dict[str, Any]:
    workers = {"InstanceType": up.instance_type}
    offered = {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {})
    return {
        "cluster_name": kubernetes_name(job.name),
        "max_workers": job.nodes,
        "idle_timeout_minutes": 10,
        "provider": {"type": "aws", "region": up.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": up.ssh_user or "ubuntu"} | ({"ssh_private_key": up.ssh_key} if up.ssh_key else {}),
        # ray's defaults would install a nightly ray where none is found, and boto3 beside the environment that needs it
        "setup_commands": [],
        "head_setup_commands": [_chain(setup, "{ python -c 'import boto3' || pip install 'boto3>=1.4.8'; }")],
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {"InstanceType": up.head_type}, "max_workers": 0},
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


def _check(job: Job, up: RayUp) -> SweepFiles:
    """The files that the sweep is read from. Raises SpecErrors: all that is wrong at once."""
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
    taken = sweep_files(job, errors)
    if errors:
        raise SpecErrors(errors)
    return taken


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True
