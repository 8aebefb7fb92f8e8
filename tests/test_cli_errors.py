"""The command line with bad inputs: one clear message on stderr, the promised exit code, no traceback, nothing started."""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray import cli

ROOT = Path(__file__).parent.parent
BASE = "name: a\nvary:\n  finetune.lambda_g: [0.0, 0.008]\n"
FRAMEWORKS = ("torch", "ray", "mlflow", "optuna")


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The CLI in this process; text goes to a sweep file. What a sweep changes in the process is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def command(name: str, text: str | None, *arguments: str, run_dir: Path | None = None) -> Answer:
        words = [name]
        if text is not None:
            (tmp_path / "a.yaml").write_text(text)
            words.append(str(tmp_path / "a.yaml"))
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, "--run-dir", str(run_dir or tmp_path / "runs"), *arguments])
        shown = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return Answer(code, shown.out, shown.err)

    yield command
    for handler in [*root.handlers, *logging.getLogger("ray").handlers]:
        if handler not in handlers:
            root.removeHandler(handler)
            logging.getLogger("ray").removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.getLogger("ray").propagate = True
    logging.captureWarnings(False)
    for number, handle in signals.items():
        signal.signal(number, handle)


def assert_refused(answer: Answer, code: int, start: str, *words: str) -> None:
    """One message that starts so, holds the words and says what to do."""
    assert answer.code == code, answer.err
    assert answer.err.startswith(f"error[{start}")
    assert answer.err.count("error[") == 1
    assert "help: " in answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.err


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes with 6 training and 3 test images of 8 x 8 pixels each."""
    root = tmp_path / "images"
    for split, count in (("train", 6), ("val", 3)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng([ord(name), number]).integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{number}.png")
    return root


def of_folder(root: Path) -> str:
    """A sweep over the images of a folder with classes a and b, as small as it gets."""
    return f"""\
name: a
preset: digits
vary: {{finetune.steps: [1]}}
set:
  images.source: imagefolder
  images.root: {root}
  images.classes: [a, b]
  images.validation_per_class: 1
  backbone.steps: 1
  backbone.batch_size: 4
  finetune.batch_size: 4
seeds: {{distill: [0], evaluate: [0]}}
evaluate: {{networks: [convnet3_slim], ipc: [2]}}
"""


@pytest.mark.parametrize("command", ["plan", "sweep"])
@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        (BASE + "evalute: {}\n", "unknown-key]: ", ("a.yaml:4 evalute", "did you mean evaluate?")),
        (BASE + "set: {finetune.steps: many}\n", "wrong-type]: ", ("a.yaml:4 finetune.steps", "an integer", "'many'")),
        (BASE + "name: b\n", "yaml]: ", ("a.yaml:4", "'name' is given twice (lines 1 and 4)")),
        (BASE + "preset: !!python/object/apply:os.system [ls]\n", "yaml]: ", ("a.yaml:4", "tags are not allowed")),
        (BASE + "preset: imagewof\n", "unknown-preset]: ", ("a.yaml:4 preset", "did you mean imagewoof?")),
        (BASE + "evaluate: {networks: [resnet]}\n", "spec]: ", ("a.yaml:4 evaluate.networks", "did you mean resnet")),
        ("- a\n", "yaml]: ", ("a.yaml:1", "expected a mapping")),
    ],
    ids=["unknown key", "wrong type", "duplicate key", "tag", "unknown preset", "unknown network", "list"],
)
def test_a_bad_sweep_file_is_refused(
    command: str, text: str, start: str, words: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    assert_refused(run(command, text), 2, start, *words)
    assert not (tmp_path / "runs").exists()


def test_every_mistake_is_printed_at_once(run: Run) -> None:
    answer = run("plan", BASE + "evalute: {}\nseeds: {distil: [0]}\nset: {finetune.stps: 1}\n")
    assert answer.code == 2
    assert answer.err.count("error[unknown-key]") == 3
    assert answer.out == ""


def test_a_missing_sweep_file_suggests_its_neighbour(run: Run, tmp_path: Path) -> None:
    (tmp_path / "memory.yaml").write_text(BASE)
    assert_refused(run("plan", None, str(tmp_path / "memroy.yaml")), 2, "missing-file]: ", "did you mean", "memory.yaml?")


@pytest.mark.parametrize(
    ("arguments", "start", "words"),
    [
        (["finetune.steps"], "spec]: --set: ", "expected PATH=VALUE, got 'finetune.steps'"),
        (["=5"], "spec]: --set: ", "expected PATH=VALUE, got '=5'"),
        (["finetune.steps=[5"], "yaml]: --set finetune.steps:", "not valid YAML"),
        (["finetune.stps=5"], "unknown-key]: --set finetune.stps: ", "did you mean steps?"),
        (["finetune.steps=64.5"], "wrong-type]: --set finetune.steps: ", "expected an integer, got number 64.5"),
        (["finetune.steps=5", "finetune.steps=6"], "spec]: --set: ", "finetune.steps is given twice"),
    ],
)
def test_a_bad_override_is_refused(arguments: list[str], start: str, words: str, run: Run) -> None:
    assert_refused(run("plan", BASE, *(word for text in arguments for word in ("--set", text))), 2, start, words)


def test_an_unknown_preset_for_pretraining_is_refused(run: Run) -> None:
    assert_refused(run("pretrain", None, "digit"), 2, "unknown-preset]: preset: ", "did you mean digits?")


def test_a_preset_without_its_images_says_what_is_missing_and_how_to_give_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEWOOF", raising=False)
    answer = run("plan", BASE, "--preset", "imagewoof")
    layout = "expected one of\n    ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"
    words = ["$IMAGEWOOF", layout, "export IMAGEWOOF=/path/to/folder, or --set images.root=/path/to/folder"]
    assert_refused(answer, 5, "data-missing]: images.root: ", *words)


def test_a_folder_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    answer = run("plan", of_folder(tmp_path / "nowhere"))
    assert_refused(answer, 5, f"data-missing]: {tmp_path / 'nowhere'}: ", "does not exist")


def test_a_file_in_place_of_the_image_folder_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(run("plan", of_folder(tmp_path / "file")), 5, "data-missing]: ", "is a file")


def test_images_without_class_folders_are_recognised(run: Run, image_folder: Path) -> None:
    for name in ("a", "b"):
        for path in (image_folder / "train" / name).iterdir():
            path.rename(image_folder / "train" / f"{name}{path.name}")
        (image_folder / "train" / name).rmdir()
    answer = run("plan", of_folder(image_folder))
    assert_refused(
        answer, 5, f"data-missing]: {image_folder / 'train'}: ", "images lie there without class folders", "ROOT/train"
    )


def test_an_empty_class_folder_is_named(run: Run, image_folder: Path) -> None:
    for path in (image_folder / "val" / "b").iterdir():
        path.unlink()
    answer = run("plan", of_folder(image_folder))
    assert_refused(answer, 5, f"data-missing]: {image_folder / 'val'}: ", "1 of 2 classes have no images: b (empty folder);")


def test_a_class_that_validation_would_use_up_is_named(run: Run, image_folder: Path) -> None:
    answer = run("plan", of_folder(image_folder), "--set", "images.validation_per_class=6")
    assert_refused(answer, 5, "data-missing]: ", "class a has 6 training images")


def test_more_real_images_than_there_are_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    answer = run("sweep", BASE + "controls: [random_real]\nevaluate: {ipc: [901]}\n")
    assert_refused(answer, 2, "out-of-range]: ", "a.yaml:5 evaluate.ipc", "901 images", "900 training images")
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_no_image_is_refused_before_any_work(run: Run, image_folder: Path) -> None:
    (image_folder / "train" / "a" / "0.png").write_bytes(b"")
    answer = run("plan", of_folder(image_folder))
    assert_refused(answer, 5, f"corrupt-image]: {image_folder}: ", "1 of 18 files are no images", "train/a/0.png")


def test_a_truncated_image_ends_the_sweep_with_its_name(run: Run, image_folder: Path) -> None:
    bad = image_folder / "train" / "a" / "0.png"
    bad.write_bytes(bad.read_bytes()[:60])
    answer = run("sweep", of_folder(image_folder), "--executor", "local", "--no-tracking")
    assert answer.code == 5  # shows only when encoding decodes the image: the beginning is sound
    assert "error[corrupt-image]" in answer.out
    assert str(bad) in answer.out
    assert "Traceback" not in answer.out + answer.err


def test_a_run_folder_that_cannot_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = run("sweep", BASE, run_dir=tmp_path / "file" / "runs")
    assert_refused(
        answer, 5, f"preflight]: {tmp_path / 'file' / 'runs' / 'a'}: ", "cannot be written", "choose another --run-dir"
    )


@pytest.mark.parametrize("command", ["status", "report", "mlflow sync"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), str(tmp_path)])
    answer = Answer(caught.value.code, *capsys.readouterr())
    assert_refused(answer, 6, f"no-run]: {tmp_path}: ", "this is no run folder", "give runs/NAME")


def test_a_locked_run_names_its_holder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        lock.write("process 1 on somewhere\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = run("sweep", BASE, "--executor", "local", "--no-tracking")
    assert_refused(answer, 6, f"locked]: {folder}: ", "this run is locked by process 1 on somewhere")


@pytest.mark.parametrize("arguments", [[], ["swep"], ["plan"], ["sweep", "a.yaml", "--executor", "slurm"]])
def test_wrong_usage_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: ddgd-ray" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished_run(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with results, made by another process: this one stays clean."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["sweep", str(tiny_file), "--run-dir", str(runs), "--executor", "local", "--no-tracking"]
    words += ["--set", "seeds.distill=[0]"]
    subprocess.run(
        [sys.executable, "-m", "ddgd_ray.cli", *words], check=True, capture_output=True, timeout=120, env=environment()
    )
    return runs / "tiny"


def environment() -> dict[str, Any]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("command", ["--help", "plan", "status", "report"])
def test_looking_at_things_imports_no_framework(command: str, finished_run: Path) -> None:
    arguments = {"--help": [], "plan": [str(ROOT / "ablations" / "memory.yaml")]}.get(command, [str(finished_run)])
    code = f"""
import json, sys
from ddgd_ray import cli
try:
    cli.main({[command, *arguments]!r})
except SystemExit as err:
    assert not err.code, err.code
print(json.dumps([name for name in {FRAMEWORKS!r} if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env=environment()
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_planning_the_largest_ablation_is_quick(run: Run) -> None:
    started = time.process_time()
    answer = run("plan", None, str(ROOT / "ablations" / "memory.yaml"))
    assert time.process_time() - started < 1.0  # of CPU; 0.2 s on an idle core
    assert answer.code == 0
    assert "memory: preset fashion, 37 trials" in answer.out  # 9 cells and 3 controls at 3 seeds, and full_data once


def test_nodes_are_not_waited_for_on_this_machine_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    answer = run("sweep", BASE, "--min-nodes", "2")
    assert answer.code == 2
    assert "--min-nodes" in answer.err
    assert "--address" in answer.err
