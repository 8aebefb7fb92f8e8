"""What is written for KubeRay and for `ray up`: read back as these programs do, held against their schemas, scripts run."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ddgd_ray import cli
from ddgd_ray.spec.sweep import read_sweep
from ddgd_ray.submitting.kubernetes import kubernetes_name

ROOT = Path(__file__).parent.parent.parent
SEARCH = ROOT / "ablations" / "search_memory.yaml"  # its space lies in a folder beside its own
KUBE = ("--backend", "kuberay", "--image", "me/ddgd:1")
AWS = ("--backend", "ray-up", "--instance-type", "g5.2xlarge", "--run-dir", "s3://bucket/runs")
HOSTS = ("--backend", "ray-up", "--nodes", "2", "--hosts", "10.0.0.1", "gpu-2.example.org", "--ssh-user", "me")

Submit = Callable[..., Path]


@pytest.fixture
def submit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Submit:
    """`ddgd-ray submit`; returns the file that its printed command names, or the errors."""

    def command(*options: str, file: Path = SEARCH, after: tuple[str, ...] = (), code: int = 0) -> Path:
        words = ["submit", str(file), "--to", str(tmp_path / "files"), *options, *(["--", *after] if after else [])]
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        shown = capsys.readouterr()
        assert caught.value.code == code, shown.err
        return Path(shown.err if code else shlex.split(shown.out.splitlines()[-1])[-1])

    monkeypatch.chdir(tmp_path)
    return command


def on_a_claim(*options: str) -> tuple[str, ...]:
    return (*KUBE, "--run-dir", "/data/runs", "--volume", "claim=/data", *options)


def documents(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """ConfigMap and RayJob, by a reader of YAML 1.1 as kubectl's."""
    config, job = yaml.safe_load_all(file.read_text())
    return config, job


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return [template["spec"]["containers"][0] for template in templates]


@pytest.mark.parametrize(
    "options",
    [
        on_a_claim(),
        on_a_claim("--nodes", "4", "--gpus-per-node", "8", "--time", "1-00:00:00", "--env", "A", "B", "--retries", "0"),
        on_a_claim("--namespace", "on", "--secret", "yes", "--volume", "no=/1e3"),
        (*KUBE, "--run-dir", "s3://bucket/runs"),
    ],
)
def test_the_ray_job_is_what_kuberay_s_api_takes(submit: Submit, options: tuple[str, ...]) -> None:
    config, job = documents(submit(*options))
    jsonschema.validate(job, json.loads(Path(__file__).with_name("rayjob-schema.json").read_text()))
    assert (config["apiVersion"], config["kind"]) == ("v1", "ConfigMap")
    assert all(isinstance(text, str) for text in config["data"].values())
    assert config["metadata"]["namespace"] == job["metadata"]["namespace"]


def test_the_cluster_goes_when_the_sweep_ends_and_comes_back_when_it_fails(submit: Submit) -> None:
    _, job = documents(submit(*on_a_claim("--retries", "5", "--time", "02:00:00")))
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] == 5
    assert job["spec"]["activeDeadlineSeconds"] == 7200


def test_workers_ask_for_gpus_and_ray_is_told_the_same(submit: Submit) -> None:
    _, job = documents(
        submit(*on_a_claim("--nodes", "3", "--gpus-per-node", "4", "--cpus-per-node", "16", "--memory-per-node", "90"))
    )
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    resources = containers(job)[1]["resources"]
    assert resources["limits"] == {"cpu": "16", "memory": "90Gi", "nvidia.com/gpu": "4"}
    assert resources["requests"] == resources["limits"]
    assert group["rayStartParams"] == {"num-cpus": "16", "num-gpus": "4"}
    assert "nvidia.com/gpu" not in containers(job)[0]["resources"]["limits"]


def test_every_pod_mounts_the_claim_and_the_files(submit: Submit) -> None:
    _, job = documents(submit(*on_a_claim()))
    for container in containers(job):
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/etc/ddgd", "/dev/shm", "/data"}


def test_variables_come_from_a_secret_by_name_alone(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "v" * 20
    monkeypatch.setenv("HF_TOKEN", value)
    file = submit(*on_a_claim("--env", "HF_TOKEN", "--secret", "mine"))
    _, job = documents(file)
    for container in containers(job):
        assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "HF_TOKEN"}}} in container["env"]
    assert value not in file.read_text()


def mounted(file: Path, to: Path) -> Path:
    """The ConfigMap's files as a pod would see them."""
    config, job = documents(file)
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (items,) = (volume["configMap"]["items"] for volume in template["spec"]["volumes"] if "configMap" in volume)
    for item in items:
        path = to / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config["data"][item["key"]])
    return to


def runs_as(script: str, place: str, really: Path, **environment: str) -> tuple[int, list[str], str]:
    """Run a script, `place` standing for a folder here, with a stand-in for the sweep: code, the words it got, the output."""
    stand_in = really / "bin" / "ddgd-ray"
    stand_in.parent.mkdir(exist_ok=True)
    records = 'printf "%s\\0" "$@" >words\necho "$MARK" >mark\necho "$DDGD_JOB" >job'
    stand_in.write_text(f"#!/bin/bash\ncd {really}\n{records}\n")
    stand_in.chmod(0o755)
    env = {"PATH": f"{stand_in.parent}:/usr/bin:/bin", "HOME": str(really), "MARK": ""}
    ran = subprocess.run(
        ["bash", "-c", script.replace(place, str(really))], env=env | environment, capture_output=True, text=True, check=False
    )
    words = (really / "words").read_text().split("\0")[:-1] if (really / "words").exists() else []
    return ran.returncode, words, ran.stderr


def test_in_the_pod_the_sweep_finds_its_file_and_its_search_space(submit: Submit, tmp_path: Path) -> None:
    file = submit(
        *on_a_claim("--setup", "export MARK='a b'"), after=("--preset", "digits", "--set", "reference.inception=$(x) 'y")
    )
    pod = mounted(file, tmp_path / "pod")
    code, words, output = runs_as((pod / "sweep.sh").read_text(), "/etc/ddgd", pod)
    assert code == 0, output
    assert words[0] == "sweep"
    assert words[2:8] == ["--run-dir", "/data/runs", "--address", "auto", "--min-nodes", "1"]
    assert words[8:] == ["--preset", "digits", "--set", "reference.inception=$(x) 'y"]
    assert read_sweep(Path(words[1]), {}).space == read_sweep(SEARCH, {}).space
    assert (pod / "mark").read_text() == "a b\n"


def test_every_retry_of_a_ray_job_is_the_same_job_to_the_sweep(submit: Submit, tmp_path: Path) -> None:
    file = submit(*on_a_claim("--namespace", "lab"))
    _, job = documents(file)
    pod = mounted(file, tmp_path / "pod")
    assert runs_as((pod / "sweep.sh").read_text(), "/etc/ddgd", pod)[0] == 0
    assert (pod / "job").read_text() == f"lab/{job['metadata']['name']}\n"


def test_a_missing_variable_stops_the_sweep_in_the_pod(submit: Submit, tmp_path: Path) -> None:
    pod = mounted(submit(*on_a_claim("--env", "SOME_KEY")), tmp_path / "pod")
    script = (pod / "sweep.sh").read_text()
    code, words, output = runs_as(script, "/etc/ddgd", pod)
    assert code != 0
    assert not words
    assert "SOME_KEY" in output
    assert runs_as(script, "/etc/ddgd", pod, SOME_KEY="x")[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "kuberay", "--run-dir", "s3://b/r"), ["--image"]),
        ((*KUBE, "--run-dir", "/data/runs"), ["--volume"]),
        ((*KUBE, "--run-dir", "/other", "--volume", "claim=/data"), ["lies on no volume"]),
        (on_a_claim("--volume", "Bad_Claim=/x"), ["--volume", "Bad_Claim"]),
        (on_a_claim("--volume", "a=relative"), ["--volume", "absolute"]),
        (on_a_claim("--volume", "a=/data"), ["one path"]),
        (on_a_claim("--namespace", "a\nb"), ["--namespace"]),
        (on_a_claim("--image", "a b"), ["--image"]),
        (on_a_claim("--hosts", "a"), ["--hosts", "ray-up"]),
        ((*KUBE, "--run-dir", "s3://me:word@b/r"), ["password"]),
        (("--backend", "ray-up", "--run-dir", "/r"), ["--instance-type"]),
        ((*AWS, "--time", "01:00:00"), ["--time"]),
        ((*HOSTS, "--hosts", "a", "b;reboot"), ["b;reboot"]),
        ((*HOSTS, "--nodes", "3"), ["--nodes 2"]),
        (("--backend", "ray-up", "--hosts", "a"), ["--ssh-user"]),
    ],
)
def test_what_cannot_work_is_refused(submit: Submit, tmp_path: Path, options: tuple[str, ...], words: list[str]) -> None:
    error = str(submit(*options, code=2))
    for word in words:
        assert word in error
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("name", ["memory", "Memory", "memory_2", "memory.2", "x" * 64, "0", "a-", "A.B_c" * 12])
def test_names_are_such_as_kubernetes_takes(name: str) -> None:
    cleaned = kubernetes_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", cleaned)
    assert len(cleaned) <= 47


def test_different_names_stay_different() -> None:
    names = ["memory", "Memory", "memory_2", "memory.2", "memory-2", "x" * 63, "x" * 64]
    assert len({kubernetes_name(name) for name in names}) == len(names)


@pytest.fixture(scope="module")
def launcher_schema() -> Any:
    """The schema inside the installed ray, without importing ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations
    return json.loads((Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize(
    "options",
    [
        AWS,
        (
            *AWS,
            "--nodes",
            "3",
            "--gpus-per-node",
            "1",
            "--image",
            "me/ddgd:1",
            "--env",
            "A",
            "--ssh-key",
            "/k e/y",
            "--setup",
            "x=1",
        ),
        HOSTS,
        (*HOSTS, "--image", "me/ddgd:1", "--ssh-key", "~/.ssh/key"),
    ],
)
def test_the_cluster_file_is_what_ray_s_launcher_takes(submit: Submit, launcher_schema: Any, options: tuple[str, ...]) -> None:
    script = submit(*options)
    jsonschema.validate(yaml.safe_load((script.parent / "cluster.yaml").read_text()), launcher_schema)


def test_hosts_of_ones_own_are_head_and_workers(submit: Submit) -> None:
    cluster = yaml.safe_load((submit(*HOSTS).parent / "cluster.yaml").read_text())
    assert cluster["provider"] == {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["gpu-2.example.org"]}
    assert cluster["auth"] == {"ssh_user": "me"}


def test_machines_of_aws_offer_what_was_asked_and_the_head_runs_no_job(submit: Submit) -> None:
    cluster = yaml.safe_load((submit(*AWS, "--nodes", "3", "--gpus-per-node", "1").parent / "cluster.yaml").read_text())
    worker = cluster["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["max_workers"], cluster["max_workers"]) == (3, 3, 3)
    assert worker["resources"] == {"CPU": 8, "GPU": 1}
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0
    assert any("--num-cpus=0" in command for command in cluster["head_start_ray_commands"])


def test_ray_s_launcher_installs_on_aws_nothing_but_what_its_head_lacks(submit: Submit, tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config

    script = submit(*AWS, "--setup", f"PATH={tmp_path / 'environment'}:$PATH")
    prepared = prepare_config(yaml.safe_load((script.parent / "cluster.yaml").read_text()))
    assert prepared["worker_setup_commands"] == []
    (command,) = prepared["head_setup_commands"]
    for name, body in (("python", 'exec test -e "$HOME/has-boto3"'), ("pip", 'echo "$*" >>"$HOME/installed"')):
        path = tmp_path / "environment" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, check=True)
        (tmp_path / "has-boto3").touch()
    assert (tmp_path / "installed").read_text() == "install boto3>=1.4.8\n"


@pytest.mark.parametrize("options", [AWS, HOSTS])
def test_ray_s_commands_find_a_ray_that_only_the_setup_brings(submit: Submit, tmp_path: Path, options: tuple[str, ...]) -> None:
    ray = tmp_path / "environment" / "ray"
    ray.parent.mkdir()
    ray.write_text('#!/bin/bash\necho "$1" >>"$LOG"\n')
    ray.chmod(0o755)
    cluster = yaml.safe_load((submit(*options, "--setup", f"PATH={ray.parent}:$PATH").parent / "cluster.yaml").read_text())
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LOG": str(tmp_path / "log"), "RAY_HEAD_IP": "10.0.0.1"}
    for kind in ("head", "worker"):
        for command in cluster[f"{kind}_start_ray_commands"]:  # each in a shell of its own, as the launcher runs them
            subprocess.run(["bash", "-c", command], env=env, check=True)
    assert (tmp_path / "log").read_text().split() == ["stop", "start"] * 2


@pytest.mark.parametrize(("options", "is_cloud"), [(AWS, True), (HOSTS, False)])
def test_the_submitting_script_starts_runs_and_takes_down(
    submit: Submit, tmp_path: Path, options: tuple[str, ...], is_cloud: bool
) -> None:
    script = submit(*options)
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text('#!/bin/bash\necho "$1" >>"$LOG"\nif [[ $1 == exec ]]; then exit 75; fi\n')
    ray.chmod(0o755)
    env = {"PATH": f"{ray.parent}:/usr/bin:/bin", "LOG": str(tmp_path / "log")}
    ran = subprocess.run(["bash", str(script)], env=env, check=False)
    assert ran.returncode == 75
    assert (tmp_path / "log").read_text().split() == ["up", "exec", *(["down"] if is_cloud else [])]


def test_on_the_cluster_the_sweep_finds_its_file_and_its_search_space(submit: Submit, tmp_path: Path) -> None:
    script = submit(*HOSTS, "--run-dir", "/shared/my runs", after=("--preset", "digits"))
    cluster = yaml.safe_load((script.parent / "cluster.yaml").read_text())
    ((place, folder),) = cluster["file_mounts"].items()
    head = tmp_path / "head"
    shutil.copytree(folder, head)
    (head / ".ddgd-env").write_text("MARK=from-the-file\n")
    code, words, output = runs_as((head / "sweep.sh").read_text(), place, head)
    assert code == 0, output
    assert words[2:] == ["--run-dir", "/shared/my runs", "--address", "auto", "--min-nodes", "2", "--preset", "digits"]
    assert read_sweep(Path(words[1]), {}).space == read_sweep(SEARCH, {}).space
    assert (head / "mark").read_text() == "from-the-file\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("options", [AWS, (*HOSTS, "--env", "A")])
def test_shellcheck_finds_nothing(submit: Submit, options: tuple[str, ...]) -> None:
    folder = submit(*options).parent
    scripts = [str(folder / "submit.sh"), str(folder / "sweep.sh")]
    found = subprocess.run(["shellcheck", "-e", "SC1090,SC1091", *scripts], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_submitting_imports_no_framework(tmp_path: Path) -> None:
    words = ["submit", str(SEARCH), "--backend", "slurm", "--run-dir", str(tmp_path / "runs"), "--to", str(tmp_path / "files")]
    script = (
        "import sys, contextlib\nfrom ddgd_ray import cli\n"
        f"with contextlib.suppress(SystemExit): cli.main({words!r})\n"
        "print(*{'torch', 'ray', 'mlflow', 'diffusers', 'optuna'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "sbatch" in ran.stdout
    assert ran.stdout.splitlines()[-1] == ""


PODS = (
    *("--toleration", "nvidia.com/gpu:NoSchedule", "team=vision", "--node-selector", "nvidia.com/gpu.product=H100"),
    *("--image-pull-secret", "registry", "--service-account", "runner", "--queue", "research", "--priority-class", "low"),
)


def test_pods_run_where_and_as_whom_they_are_told(submit: Submit) -> None:
    _, job = documents(submit(*on_a_claim(*PODS)))
    jsonschema.validate(job, json.loads(Path(__file__).with_name("rayjob-schema.json").read_text()))
    cluster = job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]
    for pod in (head, workers):
        assert pod["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "team", "operator": "Equal", "value": "vision"},
        ]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("runner", "low")
    assert workers["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert "nodeSelector" not in head, "the head needs no GPU"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


def test_pods_say_nothing_that_was_not_asked_for(submit: Submit) -> None:
    _, job = documents(submit(*on_a_claim()))
    cluster = job["spec"]["rayClusterSpec"]
    for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        assert set(template["spec"]) == {"containers", "volumes"}
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--toleration", "key:Sometimes"),
        ("--toleration", "-key"),
        ("--node-selector", "no label"),
        ("--image-pull-secret", "Upper"),
        ("--service-account", "a b"),
        ("--queue", "a/b"),
        ("--priority-class", "Low"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(option: str, value: str, submit: Submit) -> None:
    said = str(submit(*on_a_claim(f"{option}={value}"), code=2))
    assert option in said
    assert "help: " in said
