"""The batch script does what it promises: run by bash, with stand-ins for Slurm, ray and the sweep that record their calls."""

import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from ddgd_ray import cli

# each writes its words to calls/NAME, one file a call
STAND_INS = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
"$@"
""",
    # as symmetric-run: the words behind -- run as a child, whose code is the answer; a signal is not passed on
    "ray": """
if [[ ${RAY_FAILS:-} ]]; then exit 0; fi
while [[ $1 != -- ]]; do shift; done
shift
"$@"
""",
    "scontrol": """
case "$1 $2" in
"show hostnames") echo node-1; echo node-2 ;;
"show job") echo "JobId=$4 JobState=${JOB_STATE:-RUNNING} Requeue=1" ;;
esac
""",
    # long waits are short here
    "sleep": """
if [[ $1 =~ ^[0-9]{2,}$ ]]; then exec /bin/sleep 1; fi
exec /bin/sleep "$1"
""",
    # SWEEP: the code it ends with at once, or `drains` (75 at the first TERM), or `stubborn` (143 at the second)
    "ddgd-ray": """
stat -c %a "$RAY_AUTH_TOKEN_PATH" >"$CALLS/token-mode"
wc -c <"$RAY_AUTH_TOKEN_PATH" >"$CALLS/token-size"
echo "${RAY_OVERRIDE_RESOURCES:-}" >"$CALLS/override"
echo "${DDGD_JOB:-}" >"$CALLS/job"
terms=0
on_term() { terms=$((terms + 1)); if [[ $SWEEP == drains ]]; then exit 75; elif ((terms > 1)); then exit 143; fi; }
trap on_term TERM
touch "$CALLS/started"
if [[ $SWEEP =~ ^[0-9]+$ ]]; then exit "$SWEEP"; fi
for _ in $(seq 600); do /bin/sleep 0.05; done
""",
}


@dataclass
class Ran:
    code: int
    calls: list[list[str]]
    """Each call in order: the stand-in's name and the words it got."""
    records: Path
    output: str

    def of(self, name: str) -> list[list[str]]:
        return [call[1:] for call in self.calls if call[0] == name]


@dataclass
class Place:
    """A folder to submit in, with the stand-ins on its PATH."""

    path: Path
    sweep_file: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> Path:
        return self.path / "calls"

    def start(self, script: Path, **environment: str) -> subprocess.Popen[str]:
        shutil.rmtree(self.records, ignore_errors=True)
        self.records.mkdir()
        env = {"PATH": f"{self.path / 'bin'}:/usr/bin:/bin", "HOME": str(self.path), "CALLS": str(self.records)}
        env |= {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node-[1-2]", "DDGD_HEAD_IP": "127.0.0.1", "SWEEP": "0"}
        return subprocess.Popen(
            ["bash", str(script)],
            env=env | environment,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def all_calls(self) -> list[list[str]]:
        files = sorted(self.records.glob("call-*"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text().split("\0")[:-1] for path in files]

    def calls(self, name: str) -> list[list[str]]:
        return [call[1:] for call in self.all_calls() if call[0] == name]

    def finish(self, process: subprocess.Popen[str]) -> Ran:
        output, _ = process.communicate(timeout=30)
        return Ran(process.returncode, self.all_calls(), self.records, output)

    def run(self, script: Path, **environment: str) -> Ran:
        return self.finish(self.start(script, **environment))

    def interrupt(self, script: Path, **environment: str) -> Ran:
        """TERM to the script alone once the sweep runs, as Slurm's --signal=B:TERM does."""
        process = self.start(script, **environment)
        wait_for(self.records / "started")
        wait_for(next(self.path.glob("runs/*/slurm")) / environment.get("SLURM_JOB_ID", "41") / "pid")
        process.send_signal(signal.SIGTERM)
        return self.finish(process)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path, tiny_file: Path) -> Place:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        path = folder / name
        record = f'printf "%s\\0" {name} "$@" >"$(mktemp "$CALLS/call-XXXXXX")"'
        path.write_text(f"#!/bin/bash\n{record}\n{body}")
        path.chmod(0o755)
    return Place(tmp_path, tiny_file)


Submit = Callable[..., Path]


@pytest.fixture
def submit(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Submit:
    """`ddgd-ray submit --backend slurm`; returns the script that its printed command names."""

    def command(*options: str, file: Path | None = None, after: tuple[str, ...] = (), code: int = 0) -> Path:
        words = ["submit", str(file or place.sweep_file), "--backend", "slurm", "--run-dir", str(place.path / "runs")]
        words += ["--to", str(place.path / "files"), *options, *(["--", *after] if after else [])]
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        shown = capsys.readouterr()
        assert caught.value.code == code, shown.err
        if code:
            return Path(shown.err)
        sbatch, script = shlex.split(shown.out.splitlines()[-1])
        assert sbatch == "sbatch"
        return Path(script)

    monkeypatch.chdir(place.path)
    return command


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_the_sweep_runs_on_the_cluster_that_ray_starts(place: Place, submit: Submit) -> None:
    ran = place.run(submit("--nodes", "2", "--gpus-per-node", "4", "--cpus-per-node", "6", after=("--set", "name=other")))
    (ray,) = ran.of("ray")
    (sweep,) = ran.of("ddgd-ray")
    assert ray[0] == "symmetric-run"
    assert value_of(ray, "--min-nodes") == "2"
    assert {"--num-cpus=6", "--num-gpus=4"} <= set(ray[: ray.index("--")])
    assert sweep[:2] == ["sweep", str(place.sweep_file)]
    assert value_of(sweep, "--run-dir") == str(place.path / "runs")
    assert value_of(sweep, "--address") == value_of(ray, "--address")
    assert sweep[-2:] == ["--set", "name=other"]
    assert ran.of("srun")[0][:2] == ["--nodes=2", "--ntasks=2"]


@pytest.mark.parametrize("code", [0, 2, 3, 5])
def test_the_job_ends_with_the_sweep_s_code_and_stays_out_of_the_queue(place: Place, submit: Submit, code: int) -> None:
    ran = place.run(submit(), SWEEP=str(code))
    assert ran.code == code
    assert not [words for words in ran.of("scontrol") if words[0] == "requeue"]


def test_a_job_that_slurm_ends_drains_and_goes_back_into_the_queue_once(place: Place, submit: Submit) -> None:
    ran = place.interrupt(submit(), SWEEP="drains")
    assert ran.code == 75, ran.output
    assert ran.of("scontrol").count(["requeue", "41"]) == 1


def test_a_sweep_that_does_not_drain_in_time_is_told_again_and_continues_later(place: Place, submit: Submit) -> None:
    ran = place.interrupt(submit("--grace", "300"), SWEEP="stubborn")
    assert ["260"] in ran.of("sleep")  # told again 40 s before the end
    assert ran.code == 75, ran.output
    assert ["requeue", "41"] in ran.of("scontrol")


def test_a_cancelled_job_does_not_come_back(place: Place, submit: Submit) -> None:
    ran = place.interrupt(submit(), SWEEP="drains", JOB_STATE="CANCELLED")
    assert ran.code == 75
    assert ["requeue", "41"] not in ran.of("scontrol")


def test_a_requeued_job_is_not_stopped_by_what_its_last_start_left(place: Place, submit: Submit) -> None:
    script = submit()
    assert place.interrupt(script, SWEEP="drains").code == 75
    assert place.run(script, SWEEP="0").code == 0


@pytest.mark.parametrize("options", [(), ("--share-node",)])
def test_the_sweep_is_told_which_job_it_is_so_that_a_requeue_takes_over_its_lock(
    place: Place, submit: Submit, options: tuple[str, ...]
) -> None:
    script = submit(*options)
    assert (place.run(script).records / "job").read_text() == "slurm/41\n"
    ran = place.run(script, SLURM_CLUSTER_NAME="big", SLURM_JOB_ID="42", DDGD_JOB="big/41")
    assert (ran.records / "job").read_text() == "big/42\n"


def test_a_ray_that_cannot_start_is_a_failure(place: Place, submit: Submit) -> None:
    ran = place.run(submit(), RAY_FAILS="yes")  # ray symmetric-run answers 0 then
    assert ran.code == 1
    assert not ran.of("ddgd-ray")


def test_the_token_is_the_owner_s_alone_and_gone_afterwards(place: Place, submit: Submit) -> None:
    script = submit()
    ran = place.run(script)
    assert (ran.records / "token-mode").read_text() == "600\n"
    assert (ran.records / "token-size").read_text().strip() == "64"
    assert not list(place.path.rglob("ray-token"))
    assert "RAY_AUTH_TOKEN=" not in script.read_text()


def ports(ran: Ran) -> set[int]:
    (ray,) = ran.of("ray")
    found = {int(value_of(ray, "--address").rpartition(":")[2])}
    return found | {int(word.partition("=")[2]) for word in ray if "-port=" in word and not word.endswith("=0")}


def test_jobs_of_one_node_use_different_ports(place: Place, submit: Submit) -> None:
    script = submit()
    used = [ports(place.run(script, SLURM_JOB_ID=str(job))) for job in (41, 42, 1540)]
    assert all(len(one) == 7 for one in used)
    assert len(set.union(*used)) == 21
    assert all(1024 < port < 32768 for one in used for port in one)


def test_a_port_that_is_taken_is_left_alone(place: Place, submit: Submit) -> None:
    script = submit()
    first = min(ports(place.run(script)))
    with socket.create_server(("127.0.0.1", first)):
        assert min(ports(place.run(script))) == first + 8


def test_a_shared_node_gets_a_ray_of_the_sweep_s_own(place: Place, submit: Submit) -> None:
    script = submit("--share-node", "--gpus-per-node", "1", "--cpus-per-node", "6")
    ran = place.run(script)
    (sweep,) = ran.of("ddgd-ray")
    assert not ran.of("ray")  # its `ray stop` would end the other jobs' ray
    assert "--address" not in sweep
    assert (ran.records / "override").read_text() == '{"CPU": 6, "GPU": 1}\n'
    assert "--exclusive" not in script.read_text()


def test_a_missing_variable_stops_the_job_before_anything_starts(place: Place, submit: Submit) -> None:
    script = submit("--env", "SOME_KEY")
    ran = place.run(script)
    assert ran.code == 2
    assert "SOME_KEY" in ran.output
    assert not ran.calls
    assert place.run(script, SOME_KEY="x").code == 0


def test_hostile_names_arrive_as_they_are(place: Place, submit: Submit) -> None:
    folder = place.path / "a $(touch hacked) `touch hacked` 'b\" ; touch hacked #"
    folder.mkdir()
    file = folder / "a & b.yaml"
    shutil.copy(place.sweep_file, file)
    ran = place.run(submit(file=file, after=("--set", "reference.inception=/x $(touch hacked)'\";&")))
    (sweep,) = ran.of("ddgd-ray")
    assert sweep[1] == str(file)
    assert sweep[-1] == "reference.inception=/x $(touch hacked)'\";&"
    assert not list(place.path.rglob("hacked"))
    assert not Path("/hacked").exists()


@pytest.mark.parametrize(
    ("options", "after", "words"),
    [
        (("--run-dir", "/a b"), (), ["--run-dir", "spaces"]),
        (("--run-dir", "/a\n#SBATCH --x"), (), ["--run-dir", "line break"]),
        (("--partition", "gpu\n#SBATCH --uid=0"), (), ["--partition"]),
        (("--account", "a b"), (), ["--account"]),
        (("--time", "24h"), (), ["--time", "HH:MM:SS"]),
        (("--time", "00:02:00"), (), ["--grace"]),
        (("--grace", "60"), (), ["--grace", "resources.grace_s"]),
        (("--nodes", "0"), (), ["--nodes"]),
        (("--nodes", "2", "--share-node"), (), ["--share-node"]),
        (("--setup", "echo 'x"), (), ["--setup", "bash"]),
        (("--setup", "a\nb"), (), ["--setup"]),
        (("--env", "A-B"), (), ["--env"]),
        (("--image", "a:1"), (), ["--image", "kuberay"]),
        ((), ("--address", "x:1"), ["--address"]),
        ((), ("--run-dir=x",), ["--run-dir"]),
        (("--setup", "echo 'x"), ("--set", "resources.gpus=1"), ["--gpus-per-node 1"]),
        (
            ("--gpus-per-node", "1", "--nodes", "2"),
            ("--set", "resources.gpus=1", "--set", "resources.workers=3"),
            ["3 workers, and 2"],
        ),
        ((), ("--set", "finetune.stepz=1"), ["did you mean steps?"]),
    ],
)
def test_what_cannot_work_is_refused_before_a_file_is_written(
    place: Place, submit: Submit, options: tuple[str, ...], after: tuple[str, ...], words: list[str]
) -> None:
    error = str(submit(*options, after=after, code=2))
    assert error.startswith("error[")
    for word in words:
        assert word in error
    assert not (place.path / "files").exists()


def test_every_mistake_is_told_at_once(submit: Submit) -> None:
    error = str(submit("--nodes", "0", "--time", "x", "--partition", "a b", after=("--address", "x:1"), code=2))
    for word in ("--nodes", "--time", "--partition", "--address"):
        assert word in error


def test_the_value_of_a_variable_is_neither_taken_nor_repeated(submit: Submit) -> None:
    value = "v" * 20
    error = str(submit("--env", f"SOME_KEY={value}", code=2))
    assert "SOME_KEY" in error
    assert value not in error


def test_a_password_in_an_address_is_refused_and_not_repeated(submit: Submit) -> None:
    password = "p" * 20
    error = str(submit(after=("--tracking-uri", f"http://me:{password}@host"), code=2))
    assert "password" in error
    assert password not in error


@pytest.mark.parametrize(
    "words",
    [
        {"after": ("--tracking-uri", "http://WORD@host")},
        {"after": ("--tracking-uri=https://host/x?token=WORD",)},
        {"before": ("--setup", "export HF_TOKEN=WORD")},
        {"before": ("--run-dir", "s3://me:WORD@bucket/runs")},
        {"before": ("--run-dir", "s3://bucket/runs?X-Amz-Signature=WORD")},
    ],
)
def test_a_token_that_would_stand_readable_in_a_file_is_refused(submit: Submit, words: dict[str, tuple[str, ...]]) -> None:
    word = "w" * 20
    given = {name: tuple(text.replace("WORD", word) for text in texts) for name, texts in words.items()}
    error = str(submit(*given.get("before", ()), after=given.get("after", ()), code=2))
    assert "error[secret]" in error
    assert word not in error


def test_the_folder_of_the_log_is_there_before_slurm_wants_it(place: Place, submit: Submit) -> None:
    script = submit()
    (line,) = (line for line in script.read_text().splitlines() if line.startswith("#SBATCH --output="))
    assert Path(line.partition("=")[2]).parent.is_dir()
    assert Path(line.partition("=")[2]).parent.parent == place.path / "runs" / "tiny"
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("options", [(), ("--share-node",)])
def test_shellcheck_finds_nothing(submit: Submit, options: tuple[str, ...]) -> None:
    script = submit(*options, "--env", "A", "--time", "01:00:00")
    scripts = [str(script), str(script.with_name("tiny-sweep.sh"))]
    found = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert found.returncode == 0, found.stdout


def can_isolate() -> bool:
    """Whether processes can have a namespace of their own here: `ray stop` must not see the Rays of others."""
    words = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not can_isolate(), reason="needs the right to make a process namespace")
def test_a_real_ray_runs_the_sweep_drains_and_finishes_it_later(place: Place, submit: Submit) -> None:
    """Slurm alone is a stand-in: ray symmetric-run, its cluster and the sweep are real."""
    (place.path / "bin" / "ray").unlink()
    (place.path / "bin" / "sleep").unlink()
    (place.path / "bin" / "ddgd-ray").write_text(f'#!/bin/bash\nexec {sys.executable} -m ddgd_ray.cli "$@"\n')
    isolated = place.path / "isolated.sh"
    job = 100_000 + os.getpid()
    environment = {name: os.environ[name] for name in ("PYTHONPATH", "DDGD_CACHE") if name in os.environ}
    environment |= {"PATH": f"{place.path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_JOB_ID": str(job), "DDGD_HEAD_IP": "", "SLURM_JOB_NODELIST": "here"}
    script = submit("--cpus-per-node", "2", after=("--no-tracking",))
    isolated.write_text(f"exec unshare --pid --fork --mount-proc --kill-child bash {script}\n")

    process = place.start(isolated, **environment)
    end = time.monotonic() + 240
    while not list(place.path.glob("runs/store/decode/*/manifest.json")):  # the first job is done
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)
    (inner,) = psutil.Process(process.pid).children()
    inner.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 75, output
    assert place.calls("scontrol").count(["requeue", str(job)]) == 1

    process = place.start(isolated, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert (place.path / "runs" / "tiny" / "report" / "table.md").is_file()


def test_a_sweep_that_could_give_no_table_is_not_submitted(place: Place, submit: Submit) -> None:
    said = submit(after=("--set", "images.validation_per_class=0"), code=2)
    assert "error[no-validation]" in str(said)
    assert not (place.path / "files").exists()


def test_what_a_site_asks_for_stands_in_the_script(submit: Submit) -> None:
    asked = ("--qos", "long", "--constraint", "a100|h100", "--sbatch=--reservation=ours", "--sbatch=--mail-type=END")
    lines = submit(*asked).read_text().splitlines()
    for option in ("--qos=long", '--constraint="a100|h100"', "--reservation=ours", "--mail-type=END"):
        assert f"#SBATCH {option}" in lines
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command, "Slurm reads no line behind the first command"


def test_a_container_is_given_to_the_step_with_all_that_it_reads(place: Place, submit: Submit) -> None:
    script = submit("--container", "me/ddgd:1", "--container-mount", "/data", "/scratch:/tmp/scratch")
    ran = place.run(script)
    assert ran.code == 0, ran.output
    step = next(words for words in ran.of("srun") if "symmetric-run" in words)
    assert "--container-image=me/ddgd:1" in step
    mounts = next(word for word in step if word.startswith("--container-mounts=")).partition("=")[2].split(",")
    for path in (place.path / "files", place.path / "runs", place.sweep_file.parent):
        assert f"{path}:{path}" in mounts
    assert {"/data:/data", "/scratch:/tmp/scratch"} <= set(mounts)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--qos", "a b"), "--qos"),
        (("--constraint", "a;b"), "--constraint"),
        (("--sbatch=-p x",), "--sbatch"),
        (("--sbatch=--signal=B:USR1@10",), "counts on it"),
        (("--container", "a b"), "--container"),
        (("--container-mount", "/data"), "add --container"),
    ],
)
def test_what_slurm_would_stumble_over_is_refused(options: tuple[str, ...], word: str, submit: Submit) -> None:
    said = str(submit(*options, code=2))
    assert word in said
    assert "help: " in said
