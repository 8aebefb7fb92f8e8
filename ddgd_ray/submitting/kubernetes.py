"""A RayJob for KubeRay (ray.io/v1): a cluster made for one sweep and taken down after it. A ConfigMap carries the sweep file.

Fields by the types of KubeRay's API v1; `tests/rayjob-schema.json` holds those that are used here.
"""

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.submitting.files import SweepFiles, as_yaml, sweep_files, sweep_script
from ddgd_ray.submitting.job import Job, Submission, refuse_control

MOUNT = "/etc/ddgd"
MAX_NAME = 47  # KubeRay derives longer names of pods and services from it, at most 63
MAX_FILES_BYTES = 900_000  # a ConfigMap holds 1 MiB
HEAD = {"cpu": "2", "memory": "8Gi"}  # the sweep's own process and ray's; no job runs there
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_EFFECTS = "NoSchedule|PreferNoSchedule|NoExecute"
_TOLERATION = re.compile(rf"(?P<key>{_KEY.pattern})(=(?P<value>{_VALUE.pattern}))?(:(?P<effect>{_EFFECTS}))?")
KUEUE = "kueue.x-k8s.io/queue-name"
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@+-]*")


@dataclass(frozen=True)
class Kubernetes:
    """What a RayJob needs besides the job.

    image: a container with ddgd-ray and ray[default] (KubeRay submits through ray's Jobs API). secret: name of the secret that
    holds the variables of `Job.env` under their names. volumes: (claim, path in the pods). retries: number of further clusters,
    when one fails or is interrupted.
    """

    image: str
    namespace: str = "default"
    secret: str = ""
    volumes: tuple[tuple[str, str], ...] = ()
    retries: int = 3
    tolerations: tuple[str, ...] = ()
    """Of all pods, KEY[=VALUE][:EFFECT] as in a node's taint."""
    node_selector: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes that the workers run on; the head, which needs no GPU, runs anywhere."""
    pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    queue: str = ""
    """A local queue of Kueue, which then decides when the job starts."""
    priority_class: str = ""


def kubernetes_name(name: str) -> str:
    """A name that Kubernetes takes (RFC 1035: lower case, a letter first), different for different names, at most 47 long."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    cleaned = f"ddgd-{cleaned}" if cleaned else "ddgd"
    if cleaned == f"ddgd-{name}" and len(cleaned) <= MAX_NAME:
        return cleaned
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{cleaned[: MAX_NAME - 7].rstrip('-')}-{digest}"


def kubernetes_submission(job: Job, kubernetes: Kubernetes, folder: Path) -> Submission:
    """The RayJob and its ConfigMap, in one file. Raises SpecErrors: all that is wrong at once."""
    taken = _check(job, kubernetes)
    keys = {path: f"file-{number}" for number, path in enumerate(taken.texts)}
    name = kubernetes_name(job.name)
    secret = kubernetes.secret or f"{name}-env"
    meta = {
        "namespace": kubernetes.namespace,
        "labels": {"app.kubernetes.io/name": "ddgd-ray", "app.kubernetes.io/instance": name},
    }
    of_job = {"labels": meta["labels"] | ({KUEUE: kubernetes.queue} if kubernetes.queue else {})}  # type: ignore[operator]
    entry = sweep_script(job, f"{MOUNT}/{taken.sweep}", MOUNT, scheduled_as=f"{kubernetes.namespace}/{name}")
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-files", **meta},
        "data": {"sweep.sh": entry} | {keys[path]: text for path, text in taken.texts.items()},
    }
    items = [{"key": "sweep.sh", "path": "sweep.sh"}] + [{"key": key, "path": path} for path, key in keys.items()]
    env: list[dict[str, Any]] = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    env += [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for key in job.env]
    volumes: list[dict[str, Any]] = [
        {"name": "files", "configMap": {"name": f"{name}-files", "items": items}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # ray's objects and the loaders of torch; 64 MiB by default
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "files", "mountPath": MOUNT, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for number, (claim, path) in enumerate(kubernetes.volumes):
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"volume-{number}", "mountPath": path})

    def pod(container: str, resources: dict[str, str]) -> dict[str, Any]:
        one: dict[str, Any] = {"name": container, "image": kubernetes.image, "env": env, "volumeMounts": mounts}
        one["resources"] = {"requests": resources, "limits": resources}
        return {"spec": {"containers": [one], "volumes": volumes, **_of_pods(kubernetes)}}

    of_node = {"cpu": str(job.cpus), "memory": f"{job.memory_gib or 4 * job.cpus}Gi"}
    if job.gpus:
        of_node["nvidia.com/gpu"] = str(job.gpus)
    spec: dict[str, Any] = {
        "entrypoint": f"bash {MOUNT}/sweep.sh",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": kubernetes.retries,
        "rayClusterSpec": {
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                "template": pod("ray-head", HEAD),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": job.nodes,
                    "minReplicas": job.nodes,
                    "maxReplicas": job.nodes,
                    "rayStartParams": {"num-cpus": str(job.cpus), "num-gpus": str(job.gpus)},
                    "template": pod("ray-worker", of_node),
                }
            ],
        },
    }
    if kubernetes.node_selector:
        workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        workers["nodeSelector"] = dict(kubernetes.node_selector)
    if job.time_s:
        spec["activeDeadlineSeconds"] = job.time_s
    ray_job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name, **meta, **of_job}, "spec": spec}
    file = f"{job.name}-rayjob.yaml"
    notes = [f"the image {kubernetes.image} needs ddgd-ray and ray[default], of the same versions as here"]
    if job.env:
        literal = " ".join(f'--from-literal={key}="${key}"' for key in job.env)
        create = f"kubectl -n {kubernetes.namespace} create secret generic {secret} {literal}"
        notes.append(f"the values of {', '.join(job.env)} come from the secret {secret}; to make it: {create}")
    notes.append(f"output: kubectl -n {kubernetes.namespace} logs -f job/{name}")
    return Submission({file: as_yaml(config, ray_job)}, f"kubectl apply -f {shlex.quote(str(folder / file))}", tuple(notes))


def _of_pods(kubernetes: Kubernetes) -> dict[str, Any]:
    """Fields of every pod that say where and as whom it may run."""
    found: dict[str, Any] = {}
    if kubernetes.tolerations:
        found["tolerations"] = [_toleration(text) for text in kubernetes.tolerations]
    if kubernetes.pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in kubernetes.pull_secrets]
    if kubernetes.service_account:
        found["serviceAccountName"] = kubernetes.service_account
    if kubernetes.priority_class:
        found["priorityClassName"] = kubernetes.priority_class
    return found


def _toleration(text: str) -> dict[str, str]:
    """KEY tolerates any value of a taint and any effect; =VALUE and :EFFECT narrow it."""
    parts = _TOLERATION.fullmatch(text)
    assert parts is not None, "it was checked"
    key, value, effect = parts["key"], parts["value"], parts["effect"]
    found = {"key": key, "operator": "Exists"} if value is None else {"key": key, "operator": "Equal", "value": value}
    return found | ({"effect": effect} if effect else {})


def _pod_errors(kubernetes: Kubernetes) -> list[SpecError]:
    errors = []
    for text in kubernetes.tolerations:
        if not _TOLERATION.fullmatch(text):
            what = f"expected KEY[=VALUE][:EFFECT], got {text!r}"
            fix = "e.g. nvidia.com/gpu=present:NoSchedule; effects are NoSchedule, PreferNoSchedule, NoExecute"
            errors.append(SpecError(what, where="--toleration", fix=fix))
    for key, value in kubernetes.node_selector:
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            what = f"expected KEY=VALUE, a label of nodes, got {f'{key}={value}'!r}"
            errors.append(SpecError(what, where="--node-selector", fix="e.g. nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"))
    return errors


def _check(job: Job, kubernetes: Kubernetes) -> SweepFiles:
    """The files that the sweep is read from. Raises SpecErrors: all that is wrong at once."""
    errors = refuse_control({"--volume": [path for _, path in kubernetes.volumes]})
    if not IMAGE.fullmatch(kubernetes.image):
        fix = "--image registry.example.org/ddgd-ray:1"
        errors.append(SpecError(f"expected a container image, got {kubernetes.image!r}", where="--image", fix=fix))
    named = [("--namespace", kubernetes.namespace, _LABEL), ("--secret", kubernetes.secret or "a", _SUBDOMAIN)]
    named += [("--volume", claim, _SUBDOMAIN) for claim, _ in kubernetes.volumes]
    named += [("--image-pull-secret", name, _SUBDOMAIN) for name in kubernetes.pull_secrets]
    named += [("--service-account", kubernetes.service_account or "a", _SUBDOMAIN)]
    named += [("--queue", kubernetes.queue or "a", _LABEL), ("--priority-class", kubernetes.priority_class or "a", _SUBDOMAIN)]
    errors += _pod_errors(kubernetes)
    for option, value, pattern in named:
        if not pattern.fullmatch(value):
            what = f"Kubernetes takes no such name: {value!r}"
            errors.append(SpecError(what, where=option, fix="lower-case letters, digits and -, at both ends a letter or digit"))
    if kubernetes.retries < 0:
        errors.append(SpecError(f"expected 0 or more, got {kubernetes.retries}", where="--retries", fix="--retries 3"))
    paths = [PurePosixPath(path) for _, path in kubernetes.volumes]
    for path in paths:
        if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or ":" in str(path):
            errors.append(
                SpecError(f"expected an absolute path in the pods, got {str(path)!r}", where="--volume", fix="CLAIM=/data")
            )
    if len(set(paths)) < len(paths):
        errors.append(SpecError("two volumes have one path", where="--volume", fix="give each its own"))
    if not job.is_remote and not any(PurePosixPath(job.run_dir).is_relative_to(path) for path in paths):
        what = f"{job.run_dir} lies on no volume: each pod would have a folder of its own, gone with it"
        errors.append(SpecError(what, where="--run-dir", fix=f"--volume CLAIM={job.run_dir}, or --run-dir s3://BUCKET/FOLDER"))
    taken = sweep_files(job, errors)
    size = sum(len(text.encode()) for text in taken.texts.values())
    if size > MAX_FILES_BYTES:
        what = f"sweep file and search space have {size} bytes, a ConfigMap holds {MAX_FILES_BYTES}"
        errors.append(SpecError(what, where="FILE", fix="shorten them"))
    if errors:
        raise SpecErrors(errors)
    return taken
