"""Each check of the doctor: what it passes, what it finds, and the remedy it names."""

import base64
import fcntl
import importlib.metadata
import json
import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from ddgd_ray import cli
from ddgd_ray.doctor import inputs, machine, services, storage
from ddgd_ray.doctor.finding import Finding
from ddgd_ray.spec.preset import DitWeightsSpec, Preset, WeightsSpec, build_preset, read_preset
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec

CLASSES = ("ant", "bee")


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert bool(finding.fix) == (finding.level != "PASS")  # one remedy for each thing that is wrong
    return finding


def level(findings: list[Finding]) -> str:
    return only(findings).level


# packages


def versions(**changes: str | None) -> Callable[[str], str]:
    """The installed versions, but for these; None: not installed."""

    def version_of(name: str) -> str:
        if name not in changes:
            return importlib.metadata.version(name)
        found = changes[name]
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    return version_of


def test_the_packages_here_pass() -> None:
    assert [finding.level for finding in machine.check_packages()] == ["PASS", "PASS"]


def test_every_wrong_package_is_named_with_the_command_that_mends_it() -> None:
    _, *wrong = machine.check_packages(versions(torch="2.0.0", optuna=None))
    assert [finding.level for finding in wrong] == ["FAIL", "FAIL"]
    told = {finding.what.split()[0]: finding for finding in wrong}
    assert "2.0.0" in told["torch"].what
    assert told["torch"].fix == "pip install 'torch>=2.9'"
    assert told["optuna"].fix.startswith("pip install 'optuna")


def test_an_extra_may_be_missing_but_an_old_one_is_told() -> None:
    assert machine.check_packages(versions(peft=None))[1].level == "PASS"
    assert machine.check_packages(versions(peft="0.1"))[1].level == "WARN"


# cores, memory, GPUs


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "PASS"),
        ({"OMP_NUM_THREADS": "1"}, "PASS"),
        ({"OMP_NUM_THREADS": "4096"}, "WARN"),
        ({"MKL_NUM_THREADS": "many"}, "WARN"),
        ({"OMP_WAIT_POLICY": "active"}, "WARN"),
    ],
)
def test_settings_of_threads_are_told_when_they_hurt(environment: dict[str, str], expected: str) -> None:
    assert level(machine.check_cores(None, environment)) == expected


def test_a_job_that_asks_for_more_cores_than_there_are_is_told() -> None:
    assert level(machine.check_cores(ResourcesSpec(cpus=100_000), {})) == "WARN"


def test_a_small_or_missing_shm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_memory(tmp_path / "none")[1].level == "WARN"
    monkeypatch.setattr(machine, "MIN_SHM_BYTES", 2**60)
    finding = machine.check_memory(tmp_path)[1]
    assert finding.level == "WARN"
    assert "--shm-size" in finding.fix


DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.10  Mon\n"


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    path = tmp_path / "version"
    path.write_text(DRIVER)
    return path


def sees(answer: object, *, code: int = 0) -> tuple[str, ...]:
    """A stand-in for the process in which torch looks for GPUs."""
    return ("sh", "-c", f"echo '{json.dumps(answer)}'; echo broken >&2; exit {code}")


TWO = {"build": "12.8", "gpus": [["H100", 80 * 2**30], ["H100", 80 * 2**30]]}


@pytest.mark.parametrize(
    ("gpus", "answer", "expected", "words"),
    [
        (0, {"build": None, "gpus": []}, "PASS", "none is asked for"),
        (1, {"build": None, "gpus": []}, "WARN", "without CUDA"),
        (1, {"build": "12.8", "gpus": []}, "WARN", "driver"),
        (2, TWO, "PASS", "H100 80 GiB, H100 80 GiB; driver 570.10"),
        (4, TWO, "WARN", "asks for 4, here are 2"),
    ],
)
def test_no_gpu_is_told_only_when_the_sweep_asks_for_one(
    gpus: int, answer: object, expected: str, words: str, driver: Path
) -> None:
    finding = only(machine.check_gpus(ResourcesSpec(gpus=gpus), probe=sees(answer), driver=driver, environment={}))
    assert finding.level == expected
    assert words in finding.what


def test_without_a_driver_torch_is_not_asked(tmp_path: Path) -> None:
    findings = machine.check_gpus(ResourcesSpec(gpus=1), probe=("false",), driver=tmp_path / "none")
    assert (only(findings).level, "driver" in only(findings).what) == ("WARN", True)


def test_hidden_gpus_are_told_from_missing_ones(driver: Path) -> None:
    probe, hidden = sees({"build": "12.8", "gpus": []}), {"CUDA_VISIBLE_DEVICES": ""}
    finding = only(machine.check_gpus(ResourcesSpec(gpus=1), probe=probe, driver=driver, environment=hidden))
    assert finding.fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_driver_that_crashes_or_hangs_torch_is_a_failure(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = only(machine.check_gpus(None, probe=sees({}, code=1), driver=driver))
    assert (finding.level, "broken" in finding.what) == ("FAIL", True)
    monkeypatch.setattr(machine, "GPU_TIMEOUT_S", 0.2)
    assert level(machine.check_gpus(None, probe=("sleep", "5"), driver=driver)) == "FAIL"


# storage


def test_a_good_run_dir_passes_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    findings = storage.check_run_dir(tmp_path / "not" / "there", keeps_tracking=False)
    assert {finding.level for finding in findings if finding.check == "run dir"} == {"PASS"}
    assert not list(tmp_path.iterdir())


def test_a_run_dir_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert level(storage.check_run_dir(tmp_path / "file" / "runs")) == "FAIL"


def test_a_run_dir_that_cannot_be_written_is_a_failure() -> None:
    findings = storage.check_run_dir(Path("/proc/runs"))
    assert "FAIL" in {finding.level for finding in findings if finding.check == "run dir"}


def test_locks_that_do_not_hold_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    (finding,) = (finding for finding in storage.check_run_dir(tmp_path) if finding.level == "FAIL")
    assert "lock" in finding.what


def test_a_full_disk_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MIN_FREE_BYTES", 2**70)
    monkeypatch.setattr(storage, "GOOD_FREE_BYTES", 2**70)
    assert [finding.level for finding in storage.check_run_dir(tmp_path) if finding.check == "disk"] == ["FAIL"]


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/a rw",
        "2 1 0:1 / /data rw - nfs4 server:/data rw",
        "3 2 0:2 / /data/in\\040memory rw - tmpfs tmpfs rw",
    ]
    mounts.write_text("\n".join(lines))
    kinds = [storage.file_system(Path(path), mounts) for path in ("/x", "/data/runs", "/data/in memory/runs", "/database")]
    assert kinds == ["ext4", "nfs4", "tmpfs", "ext4"]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("nfs4", {}, "SQLite"),
        ("fuse.sshfs", {}, "SQLite"),
        ("nfs4", {"keeps_tracking": False, "is_on_cluster": True}, None),
        ("ext4", {"is_on_cluster": True}, "other nodes"),
        ("ext4", {}, None),
        ("tmpfs", {}, "memory"),
    ],
)
def test_a_file_system_is_told_when_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, bool], words: str | None
) -> None:
    monkeypatch.setattr(storage, "file_system", lambda path: kind)
    monkeypatch.setattr(storage, "GOOD_FREE_BYTES", 0)
    told = [finding.what for finding in storage.check_run_dir(tmp_path, **options) if finding.level == "WARN"]
    assert len(told) == (words is not None)
    assert not told or str(words) in told[0]


def test_an_object_store_is_written_and_read(tmp_path: Path) -> None:
    assert level(storage.check_url(f"file://{tmp_path}")) == "PASS"
    assert not list(tmp_path.iterdir())


def test_an_object_store_that_will_not_do_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = "w" * 12
    finding = only(storage.check_url(f"nosuch://me:{word}@host/x"))
    assert finding.level == "FAIL"
    assert "nosuch" in finding.what
    assert word not in finding.what
    monkeypatch.setattr(storage, "URL_PROBE", "raise ImportError('Install s3fs')")
    assert only(storage.check_url("s3://b/r")).fix == "pip install 'ddgd-ray[s3]'"
    monkeypatch.setattr(storage, "URL_PROBE", "import time; time.sleep(9)")
    monkeypatch.setattr(storage, "URL_TIMEOUT_S", 0.3)
    assert level(storage.check_url("s3://b/r")) == "FAIL"


def test_a_token_that_others_can_read_is_told(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 20)
    token.chmod(0o644)
    finding = only(storage.check_token({"RAY_AUTH_TOKEN_PATH": str(token)}))
    assert finding.fix == f"chmod 600 {token}"
    assert "tttt" not in finding.what
    token.chmod(0o600)
    assert level(storage.check_token({"RAY_AUTH_TOKEN_PATH": str(token)})) == "PASS"


# ray and MLflow


def test_nobody_at_the_address_of_ray_is_told_within_5_s() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    assert level(services.check_ray(f"127.0.0.1:{port}")) == "FAIL"
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:70000"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    assert level(services.check_ray(address)) == "FAIL"


@pytest.mark.parametrize(
    ("script", "expected"), [("exit 0", "PASS"), ("echo wrong token >&2; exit 1", "FAIL"), ("sleep 9", "FAIL")]
)
def test_who_listens_is_asked_whether_it_is_a_ray_head(script: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "HEALTH_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        finding = only(services.check_ray(address, health=("sh", "-c", script)))
    assert finding.level == expected
    assert "wrong token" not in script or "wrong token" in finding.what


class Tracking(BaseHTTPRequestHandler):
    """Answers as the server's `answer` says: (code, body); None: never. 401 without the right name and word."""

    def do_GET(self) -> None:
        code, body = self.server.answer  # type: ignore[attr-defined]
        if code == 0:
            time.sleep(1)
            return
        wanted = self.server.wanted  # type: ignore[attr-defined]
        if wanted and self.headers.get("Authorization") != wanted:
            code = 401
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def tracking() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Tracking)
    server.answer, server.wanted = (200, '{"experiments": []}'), ""  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        ((200, "{}"), "PASS", "answers"),
        ((200, "<html>"), "WARN", "not as an MLflow server"),
        ((404, ""), "WARN", "404"),
        ((500, ""), "WARN", "500"),
        ((401, ""), "FAIL", "let us in"),
        ((403, "Invalid Host header"), "FAIL", "host name"),
        ((403, "no"), "FAIL", "let us in"),
        ((0, ""), "WARN", "no answer"),
    ],
)
def test_what_a_tracking_server_says_is_told_apart(
    tracking: HTTPServer, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str], expected: str, words: str
) -> None:
    monkeypatch.setattr(services, "ANSWER_S", 0.5)
    tracking.answer = answer  # type: ignore[attr-defined]
    finding = only(services.check_tracking(f"http://127.0.0.1:{tracking.server_port}", {}))
    assert finding.level == expected
    assert words in finding.what


def test_name_and_password_are_sent_and_not_told(tracking: HTTPServer) -> None:
    word = "w" * 12
    tracking.wanted = "Basic " + base64.b64encode(f"me:{word}".encode()).decode()  # type: ignore[attr-defined]
    place = f"127.0.0.1:{tracking.server_port}"
    inside = only(services.check_tracking(f"http://me:{word}@{place}", {}))
    from_environment = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": word}
    assert inside.level == level(services.check_tracking(f"http://{place}", from_environment)) == "PASS"
    refused = only(services.check_tracking(f"http://me:{word}no@{place}", {}))
    assert refused.level == "FAIL"
    assert not [finding for finding in (inside, refused) if word in finding.what + finding.fix]


def sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def make_database(path: Path, table: str) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute(f"create table {table} (a)")
    connection.close()
    return path


def test_a_database_is_opened_not_made(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert level(services.check_tracking(sqlite(path))) == "PASS"
    assert not path.exists()
    make_database(path, "experiments")
    before = path.read_bytes()
    assert level(services.check_tracking(sqlite(path))) == "PASS"
    assert path.read_bytes() == before


def test_databases_that_will_not_do_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, however long this text may be" * 9)
    assert level(services.check_tracking(sqlite(tmp_path / "text.db"))) == "FAIL"
    assert level(services.check_tracking(sqlite(make_database(tmp_path / "other.db", "cats")))) == "FAIL"
    assert level(services.check_tracking(sqlite(tmp_path / "text.db" / "mlflow.db"))) == "FAIL"
    assert level(services.check_tracking(str(tmp_path))) == "FAIL"


def test_a_locked_database_is_told(tmp_path: Path) -> None:
    path = make_database(tmp_path / "mlflow.db", "experiments")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("begin exclusive")
    finding = only(services.check_tracking(sqlite(path)))
    holder.close()
    assert (finding.level, "locked" in finding.what) == ("WARN", True)


# images and weights


def make_images(root: Path, per_class: int = 3) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(per_class):
                noise = np.random.default_rng(index + 10 * number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{index}.jpg", quality=95)
    return root


def images(root: Path, **changes: object) -> ImagesSpec:
    fields = {"source": "imagefolder", "classes": CLASSES, "size": 32, "root": str(root), "labels": "position", **changes}
    return ImagesSpec.model_validate(fields)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_a_sound_folder_passes_and_says_what_it_holds(tmp_path: Path) -> None:
    finding = only(inputs.check_images(images(make_images(tmp_path))))
    assert finding.level == "PASS"
    assert "2 classes, 6 images for training, 6 for testing" in finding.what


def test_a_jpeg_that_is_cut_off_is_found_though_pillow_s_verify_passes_it(tmp_path: Path) -> None:
    path = make_images(tmp_path) / "train" / "bee" / "1.jpg"
    truncate(path)
    with Image.open(path) as opened:
        opened.verify()
    finding = only(inputs.check_images(images(tmp_path)))
    assert finding.level == "FAIL"
    assert str(path) in finding.what
    assert "1 of 12" in finding.what
    assert level(inputs.check_images(images(tmp_path), decodes=False)) == "PASS"


def test_the_first_20_bad_files_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    make_images(tmp_path, per_class=12)
    for path in (tmp_path / "train").rglob("*.jpg"):
        truncate(path)
    finding = only(inputs.check_images(images(tmp_path)))
    assert finding.what.count(".jpg:") == 20
    assert "24 of 48" in finding.what
    assert "and 4 more" in finding.what


def test_bad_files_that_may_be_skipped_are_a_warning(tmp_path: Path) -> None:
    truncate(make_images(tmp_path) / "train" / "bee" / "1.jpg")
    assert level(inputs.check_images(images(tmp_path, on_corrupt="skip", max_corrupt=1))) == "WARN"


def test_missing_folders_and_classes_are_failures(tmp_path: Path) -> None:
    assert level(inputs.check_images(images(tmp_path / "none"))) == "FAIL"
    make_images(tmp_path)
    finding = only(inputs.check_images(images(tmp_path, classes=("ant", "wasp"))))
    assert (finding.level, "wasp" in finding.what) == ("FAIL", True)
    assert level(inputs.check_images(images(tmp_path, validation_per_class=3))) == "FAIL"


def test_the_embedded_images_pass() -> None:
    errors: list[object] = []
    for name in ("fashion", "digits"):
        preset = build_preset(read_preset(name), errors)  # type: ignore[arg-type]
        assert preset is not None
        assert level(inputs.check_images(preset.images)) == "PASS"


def with_weights(folder: Path, **backbone: str) -> Preset:
    preset = build_preset(read_preset("digits"), [])
    assert preset is not None
    fields = {**vars(preset), "autoencoder": WeightsSpec(repo="a/b", folder=str(folder))}
    return Preset(**{**fields, **({"backbone": DitWeightsSpec(repo="a/b", **backbone)} if backbone else {})})


def make_weights(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    save_file({"a": np.ones(100, np.float32)}, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_weights_that_are_there_pass_and_missing_ones_fail(tmp_path: Path) -> None:
    folder = make_weights(tmp_path / "vae")
    assert [finding.level for finding in inputs.check_weights(with_weights(folder))] == ["PASS", "PASS"]
    assert [finding.level for finding in inputs.check_weights(with_weights(tmp_path / "none"))] == ["FAIL", "PASS"]


def test_weights_that_are_cut_off_fail(tmp_path: Path) -> None:
    file = make_weights(tmp_path / "vae") / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    finding = inputs.check_weights(with_weights(file.parent))[0]
    assert (finding.level, finding.fix) == ("FAIL", "fetch it again")


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.slow  # torch is imported in a process of its own
def test_a_pickled_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "DiT.pt"
    file.write_bytes(pickle.dumps({"model": Trap(tmp_path / "hacked")}, protocol=2))
    finding = inputs.check_weights(with_weights(make_weights(tmp_path / "vae"), file=str(file)))[1]
    assert finding.level == "FAIL"
    assert "pickled object" in finding.what
    assert not (tmp_path / "hacked").exists()


# the command


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", *words])
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out + shown.err


def test_a_sound_machine_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run("--preset", "digits", "--run-dir", str(tmp_path / "runs"), capsys=capsys)
    assert code == 0, text
    assert text.splitlines()[-1].endswith("0 FAIL")
    assert not (tmp_path / "runs").exists()


def test_a_failure_is_exit_code_5_with_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "imagewoof", "--set", f"images.root={tmp_path / 'none'}", "--run-dir", str(tmp_path)]
    code, text = run(*words, capsys=capsys)
    assert code == 5
    assert "FAIL  images" in text
    assert "Traceback" not in text


def test_json_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_file: Path) -> None:
    code, text = run(str(tiny_file), "--set", "resources.gpus=1", "--json", "--run-dir", str(tmp_path), capsys=capsys)
    told = json.loads(text)
    assert (code, told["ok"]) == (0, True)
    (gpus,) = (finding for finding in told["findings"] if finding["check"] == "gpus")
    assert gpus["level"] == "WARN" or "GiB" in gpus["what"]


@pytest.mark.parametrize("words", [["--preset", "digit"], ["--set", "a=1"], ["--preset", "digits", "--set", "images.sise=3"]])
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(*words, capsys=capsys)
    assert code == 2
    assert text.startswith("error[")


def test_the_doctor_is_quick_and_imports_no_framework(tmp_path: Path) -> None:
    script = (
        "import sys, contextlib\nfrom ddgd_ray import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['doctor', '--preset', 'digits'])\n"
        "print(*{'torch', 'ray', 'mlflow', 'diffusers', 'optuna'} & set(sys.modules))"
    )
    started = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    assert ran.stdout.splitlines()[-1] == ""


def test_a_head_that_asks_for_a_token_says_how_to_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of a head that `ray start --head` of Ray 2.60 starts, and of its client without RAY_AUTH_MODE."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    said = "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect."
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        finding = only(services.check_ray(address, health=("sh", "-c", f"echo '{said}' >&2; exit 1")))
    assert finding.level == "FAIL"
    assert "asks for a token, and RAY_AUTH_MODE is not set here" in finding.what
    assert "export RAY_AUTH_MODE=token" in finding.fix
