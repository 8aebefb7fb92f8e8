"""Run folders that are damaged or of another version: every command says which file and field, and writes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray import cli

COMMANDS: dict[str, list[str]] = {
    "status": ["status", "RUN"],
    "status --json": ["status", "RUN", "--json"],
    "report": ["report", "RUN"],
    "report --verify": ["report", "RUN", "--verify"],
    "compare": ["compare", "RUN", "RUN"],
    "export": ["export", "RUN", "--format", "imagefolder"],
    "export-model": ["export-model", "RUN", "OUT"],
    "mlflow sync": ["mlflow", "sync", "RUN", "--tracking-uri", "sqlite:///DATABASE"],
    "stop": ["stop", "RUN"],
    "ui": ["ui", "RUN"],
}
METRIC = ("spec", "objective", "metric")
SWEEP, TRIAL = "sweep.json", "trials/0.008-s0.json"


def of_schema_99(content: Any) -> Any:
    return {**content, "schema": 99}


def of_a_later_schema(content: Any) -> Any:
    """Another version has fields that this one does not know, and lacks some."""
    return {"schema": 2, "what": "it holds"}


def without_name(content: Any) -> Any:
    return {name: value for name, value in content.items() if name != "name"}


def changed(*path: str | int, to: Any) -> Callable[[Any], Any]:
    """A damage that puts another value at a place of a record."""

    def damage(content: Any) -> Any:
        inner = content
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = to
        return content

    return damage


DAMAGES: dict[str, tuple[str, Any, str]] = {
    "a sweep of schema 99": (SWEEP, of_schema_99, "schema: expected 1, found 99"),
    "a sweep of a later version": (SWEEP, of_a_later_schema, "schema: expected 1, found 2"),
    "a sweep that is a list": (SWEEP, lambda content: [], "expected a mapping, got list"),
    "a sweep that is a number": (SWEEP, lambda content: 7, "expected a mapping, got integer 7"),
    "a sweep without a name": (SWEEP, without_name, "name: expected a value, found none"),
    "a spec that is a number": (SWEEP, changed("spec", to=3), "spec: expected a mapping, got integer 3"),
    "an objective that is a number": (SWEEP, changed("spec", "objective", to=3), "spec.objective: expected a mapping"),
    "a metric that is none": (
        SWEEP,
        changed("spec", "objective", "metric", to="val_top"),
        "spec.objective.metric: unknown metric 'val_top'",
    ),
    "an identity that is a list": (SWEEP, changed("identity", to=[]), "identity: "),
    "a sweep with a misspelt field": (SWEEP, changed("spec", "prest", to="digits"), "spec.prest: expected no such field"),
    "a trial of schema 99": (TRIAL, of_schema_99, "schema: expected 1, found 99"),
    "a trial of a later version": (TRIAL, of_a_later_schema, "schema: expected 1, found 2"),
    "a trial that is a list": (TRIAL, lambda content: [], "expected a mapping, got list"),
    "a trial whose params are a number": (TRIAL, changed("params", to=3), "params: expected a mapping"),
    "a trial whose evaluators are a number": (TRIAL, changed("evaluators", to=3), "evaluators: "),
    "an evaluator that is a number": (TRIAL, changed("evaluators", 0, to=3), "evaluators.0: "),
    "a set that is a number": (TRIAL, changed("build", 1, to=3), "build.1: "),
    "a state that is none": (TRIAL, changed("state", to="finished"), "state: "),
    "a seed that is text": (TRIAL, changed("seed", to="0"), "seed: expected an integer, got text"),
    "errors that are a list": (TRIAL, changed("errors", to=[]), "errors: "),
}


@pytest.fixture(scope="module")
def sound(made_run: Callable[..., Path]) -> Path:
    return made_run({"seeds.distill": (0, 1)})


@pytest.fixture(scope="module")
def shared_copy(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run and its store, to damage and to repair again."""
    return Path(shutil.copytree(sound.parent, tmp_path_factory.mktemp("damaged") / "runs")) / sound.name


def told(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command on a run."""
    places = {"RUN": str(run), "OUT": str(run.parent.parent / "out")}
    words = [places.get(word, word).replace("DATABASE", str(run.parent.parent / "other.db")) for word in words]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_run_is_told_by_file_and_field_and_nothing_is_written(
    command: str, damage: str, shared_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, field = DAMAGES[damage]
    file = shared_copy / name
    whole = file.read_text()
    file.write_text(json.dumps(change(json.loads(whole))))
    before = contents(shared_copy.parent.parent)
    try:
        code, out, err = told(COMMANDS[command], shared_copy, capsys)
    finally:
        after = contents(shared_copy.parent.parent)
        file.write_text(whole)
    assert code == 6
    if command == "report --verify" and out:  # damaged trials are what it was asked for: its result
        (first,) = [line for line in out.splitlines() if str(file) in line]
        assert err == ""
    else:
        first, last = err.rstrip().split("\n")
        assert last.startswith("  help: ")
        assert out == ""
    assert f"{file}: " in first
    assert field in first
    assert after == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"nul", b"{}"])
@pytest.mark.parametrize("name", [SWEEP, TRIAL])
def test_a_record_that_is_cut_or_no_text_is_told_by_its_file(
    content: bytes, name: str, shared_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shared_copy / name
    whole = file.read_bytes()
    file.write_bytes(content)
    try:
        code, out, err = told(COMMANDS["status"], shared_copy, capsys)
    finally:
        file.write_bytes(whole)
    assert (code, out) == (6, "")
    assert err.startswith(f"error[damaged-record]: {file}: cannot be read: ")


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"ui"}))
def test_a_folder_that_is_no_run_is_told_and_nothing_is_written(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    before = contents(tmp_path)
    code, out, err = told(COMMANDS[command], tmp_path / "runs" / "mine", capsys)
    assert (code, out) == (6, "")
    assert err.startswith("error[no-run]: ")
    assert contents(tmp_path) == before


def test_a_sweep_that_runs_is_stopped_whatever_its_records_say(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ddgd_ray.run.folder import RunFolder

    run = Path(shutil.copytree(sound.parent, tmp_path / "runs")) / sound.name
    (run / TRIAL).write_text("{")
    folder = RunFolder(run.parent, run.name)
    with folder.lock():
        code, out, _ = told(COMMANDS["stop"], run, capsys)
    assert code == 0
    assert out.startswith("told the sweep of process ")
    assert folder.is_told_to_stop


def test_a_sound_run_that_stands_still_is_not_running_and_gets_no_lock_file(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(sound.parent, tmp_path / "runs")) / sound.name
    before = contents(run)
    assert told(COMMANDS["stop"], run, capsys)[:2] == (0, f"{run.name} is not running\n")
    assert told(COMMANDS["status"], run, capsys)[0] == 0
    assert contents(run) == before
