"""Write what a scheduler needs to run a sweep: `submit`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddgd_ray.commands.output import absolute, sweep_file
from ddgd_ray.errors import SpecError, SpecErrors, StageError

if TYPE_CHECKING:
    from ddgd_ray.spec.sweep import Sweep
    from ddgd_ray.submitting.job import Job, Submission

BACKENDS = ("slurm", "kuberay", "ray-up")
# options that some backends have no use for; given there they are a mistake
OF_BACKEND = {
    "partition": ("slurm",),
    "account": ("slurm",),
    "grace": ("slurm",),
    "share_node": ("slurm",),
    "qos": ("slurm",),
    "constraint": ("slurm",),
    "sbatch": ("slurm",),
    "container": ("slurm",),
    "container_mount": ("slurm",),
    "image": ("kuberay", "ray-up"),
    "toleration": ("kuberay",),
    "node_selector": ("kuberay",),
    "image_pull_secret": ("kuberay",),
    "service_account": ("kuberay",),
    "queue": ("kuberay",),
    "priority_class": ("kuberay",),
    "namespace": ("kuberay",),
    "secret": ("kuberay",),
    "volume": ("kuberay",),
    "retries": ("kuberay",),
    "memory_per_node": ("slurm", "kuberay"),
    "time": ("slurm", "kuberay"),
    "hosts": ("ray-up",),
    "ssh_user": ("ray-up",),
    "ssh_key": ("ray-up",),
    "region": ("ray-up",),
    "instance_type": ("ray-up",),
    "head_type": ("ray-up",),
}
SET_BY_SUBMIT = ("run_dir", "address", "executor")


def add_submit(added: argparse.ArgumentParser) -> None:
    """The options; `--run-dir` is there already."""
    added.usage = "ddgd-ray submit FILE --backend BACKEND [options] [-- further options of ddgd-ray sweep]"
    added.add_argument("file", type=sweep_file, metavar="FILE", help="a sweep file, e.g. ablations/memory.yaml")
    added.add_argument("--backend", choices=BACKENDS, required=True)
    added.add_argument("--to", type=absolute, metavar="FOLDER", help="where the files go (default: NAME-BACKEND here)")
    added.add_argument("--nodes", type=int, default=1, metavar="N")
    added.add_argument("--gpus-per-node", type=int, default=0, metavar="G")
    added.add_argument("--cpus-per-node", type=int, default=8, metavar="C")
    added.add_argument("--memory-per-node", type=int, metavar="GIB")
    added.add_argument("--time", metavar="[D-]HH:MM:SS", help="the job's limit")
    added.add_argument(
        "--env", nargs="+", action="extend", default=[], metavar="KEY", help="variables that the sweep needs; names only"
    )
    added.add_argument(
        "--setup", action="append", default=[], metavar="COMMAND", help="shell command before ray starts; repeatable"
    )
    slurm = added.add_argument_group("slurm")
    slurm.add_argument("--partition", metavar="P")
    slurm.add_argument("--account", metavar="A")
    slurm.add_argument(
        "--grace",
        type=int,
        metavar="S",
        help="seconds between Slurm's notice and the end (default: 120, or more if the sweep needs it)",
    )
    slurm.add_argument("--share-node", action="store_true", default=None, help="one node, not the whole of it")
    slurm.add_argument("--qos", metavar="Q")
    slurm.add_argument("--constraint", metavar="FEATURES", help="of the nodes, e.g. 'a100|h100'")
    slurm.add_argument("--sbatch", action="append", metavar="OPTION", help="further ones, as --sbatch=--reservation=ours")
    slurm.add_argument("--container", metavar="IMG", help="an image that pyxis starts ray and the sweep in")
    slurm.add_argument("--container-mount", nargs="+", action="extend", metavar="PATH", help="further folders to mount there")
    both = added.add_argument_group("kuberay, ray-up")
    both.add_argument("--image", metavar="IMG", help="a container image with ddgd-ray")
    kube = added.add_argument_group("kuberay")
    kube.add_argument("--namespace", metavar="NS")
    kube.add_argument("--secret", metavar="NAME", help="holds the variables of --env (default: made from the sweep's name)")
    kube.add_argument("--volume", nargs="+", action="extend", metavar="CLAIM=PATH", help="volumes that all pods mount")
    kube.add_argument(
        "--retries", type=int, metavar="N", help="further clusters, when one fails or is interrupted (default: 3)"
    )
    kube.add_argument("--toleration", nargs="+", action="extend", metavar="KEY[=VALUE][:EFFECT]", help="of all pods")
    kube.add_argument("--node-selector", nargs="+", action="extend", metavar="KEY=VALUE", help="nodes that the workers run on")
    kube.add_argument("--image-pull-secret", nargs="+", action="extend", metavar="NAME")
    kube.add_argument("--service-account", metavar="NAME")
    kube.add_argument("--queue", metavar="NAME", help="a local queue of Kueue")
    kube.add_argument("--priority-class", metavar="NAME", help="of all pods")
    up = added.add_argument_group("ray-up")
    up.add_argument("--hosts", nargs="+", metavar="HOST", help="machines of your own, the head first; without: AWS")
    up.add_argument("--ssh-user", metavar="NAME")
    up.add_argument("--ssh-key", metavar="FILE")
    up.add_argument("--region", metavar="R", help="of AWS (default: us-west-2)")
    up.add_argument("--instance-type", metavar="T", help="of AWS's workers")
    up.add_argument("--head-type", metavar="T", help="of AWS's head (default: m5.xlarge)")


def split_options(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind `--` of `submit`; argparse itself would mix the two."""
    if words[:1] != ["submit"] or "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def submit_command(args: argparse.Namespace) -> int:
    """args.sweep: the command line of the sweep itself, parsed; args.options: its further options as they were typed."""
    from ddgd_ray.commands.sweeps import read
    from ddgd_ray.plan.traps import traps
    from ddgd_ray.submitting.files import write
    from ddgd_ray.submitting.job import check_job

    errors = _misplaced(args)
    try:
        sweep = read(args.sweep)
    except SpecErrors as err:
        raise SpecErrors([*err.errors, *errors]) from err
    except SpecError as err:
        raise SpecErrors([err, *errors]) from err
    job = _job(args, sweep)
    errors += check_job(job)
    found = traps(sweep)
    errors += [trap.as_error() for trap in found if trap.level == "refuse"]
    folder = args.to or Path.cwd() / f"{job.name}-{args.backend}"
    try:
        submission = _submission(args, job, folder)
    except SpecErrors as err:
        raise SpecErrors([*errors, *err.errors]) from err
    if errors:
        raise SpecErrors(errors)
    files = write(submission, folder)
    if args.backend == "slurm":
        _make_log_folder(job, folder)
    for path in files:
        print(path)
    for note in submission.notes:
        print(f"note: {note}")
    for trap in found:
        print(trap.line())
    print(f"\n{submission.command}")
    return 0


def _misplaced(args: argparse.Namespace) -> list[SpecError]:
    errors = []
    for name, backends in OF_BACKEND.items():
        if getattr(args, name) is not None and args.backend not in backends:
            option = f"--{name.replace('_', '-')}"
            what = f"is for {' and '.join(backends)}, not for {args.backend}"
            errors.append(SpecError(what, where=option, fix=f"leave out {option}"))
    for name in SET_BY_SUBMIT:
        option = f"--{name.replace('_', '-')}"
        if any(word == option or word.startswith(f"{option}=") for word in args.options):
            fix = "give it before the --" if name == "run_dir" else "leave it out"
            errors.append(SpecError(f"{option} of the sweep is set by submit", where="--", fix=fix))
    return errors


def _job(args: argparse.Namespace, sweep: "Sweep") -> "Job":
    from ddgd_ray.commands.output import given_url, run_dir_of
    from ddgd_ray.submitting.job import Job

    return Job(
        sweep=sweep,
        file=args.file.absolute(),
        options=tuple(args.options),
        run_dir=given_url(args) or str(run_dir_of(args)),
        folder=Path.cwd(),
        nodes=args.nodes,
        gpus=args.gpus_per_node,
        cpus=args.cpus_per_node,
        memory_gib=args.memory_per_node or 0,
        time=args.time or "",
        env=tuple(args.env),
        setup=tuple(args.setup),
    )


def _submission(args: argparse.Namespace, job: "Job", folder: Path) -> "Submission":
    def given(**options: str) -> dict[str, object]:
        """{field: value} of the options that were given; the rest keep their defaults."""
        return {field: value for field, name in options.items() if (value := getattr(args, name)) is not None}

    if args.backend == "slurm":
        from ddgd_ray.submitting.slurm import Slurm, slurm_submission

        names = {name: name for name in ("partition", "account", "qos", "constraint", "container")}
        chosen = given(grace_s="grace", shares_node="share_node", **names)
        more = {"lines": tuple(args.sbatch or ()), "mounts": tuple(args.container_mount or ())}
        return slurm_submission(job, Slurm(**chosen, **more), folder)  # type: ignore[arg-type]
    if args.backend == "kuberay":
        from ddgd_ray.submitting.kubernetes import Kubernetes, kubernetes_submission

        names = {name: name for name in ("namespace", "secret", "retries", "service_account", "queue", "priority_class")}
        kubernetes = Kubernetes(
            image=args.image or "",
            volumes=tuple(_pair(text) for text in args.volume or []),
            tolerations=tuple(args.toleration or ()),
            node_selector=tuple(_pair(text) for text in args.node_selector or []),
            pull_secrets=tuple(args.image_pull_secret or ()),
            **given(**names),  # type: ignore[arg-type]
        )
        return kubernetes_submission(job, kubernetes, folder)
    from ddgd_ray.submitting.ray_up import RayUp, ray_up_submission

    names = {name: name for name in ("ssh_user", "ssh_key", "image", "region", "instance_type", "head_type")}
    return ray_up_submission(job, RayUp(hosts=tuple(args.hosts or ()), **given(**names)), folder)  # type: ignore[arg-type]


def _pair(text: str) -> tuple[str, str]:
    """What stands before and behind the first =."""
    before, _, behind = text.partition("=")
    return before, behind


def _make_log_folder(job: "Job", folder: Path) -> None:
    from ddgd_ray.submitting.slurm import log_folder

    logs = log_folder(job, folder)
    try:
        logs.mkdir(parents=True, exist_ok=True)  # Slurm drops the output of a job whose log has no folder
    except OSError as err:
        what = f"the folder of Slurm's logs cannot be made: {err.strerror}"
        raise StageError(what, where=str(logs), fix="submit where the run folder can be written, or mkdir -p it there") from err
