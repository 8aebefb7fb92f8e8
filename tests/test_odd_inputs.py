"""One table: every command with every kind of odd path, every reader with every kind of odd file. Each gives one message."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddgd_ray import cli
from ddgd_ray.cluster.connect import read_runtime_env
from ddgd_ray.errors import DdgdError
from ddgd_ray.inputs.fingerprints import set_source
from ddgd_ray.inputs.setfolder import set_files, written_metadata
from ddgd_ray.inputs.weights import script_file
from ddgd_ray.plan.costs import read_calibration
from ddgd_ray.run.reading import read_seed_policy, read_sweep_record, read_trial_records
from ddgd_ray.spec.load import read
from ddgd_ray.spec.space import read_space
from ddgd_ray.storage.store import Store

pytestmark = pytest.mark.timeout(60)  # some of these would be read without an end

MEMORY = str(Path(__file__).parent.parent / "ablations" / "memory.yaml")
CLASSES = ("a", "b")


def make(kind: str, path: Path) -> Path:
    """Put an odd thing at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        "empty": b"",
        "binary": bytes(range(256)) * 9,
        "brackets": b"[" * 100_000,
        "list": b"[]",
        "number": b"7",
        "latin-1": "é: ü".encode("latin-1"),
        "newer": b'{"schema": 99}',
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        assert kind == "missing"
    return path


FILES = ("empty", "binary", "brackets", "list", "number", "latin-1", "newer", "folder", "pipe", "endless", "loop", "missing")
PATHS = ("empty", "binary", "pipe", "endless", "loop", "missing", "long")


@pytest.fixture
def odd(tmp_path: Path) -> Callable[[str], str]:
    def of(kind: str) -> str:
        return str(tmp_path / ("x" * 300) if kind == "long" else make(kind, tmp_path / "odd"))

    return of


COMMANDS: dict[str, list[str]] = {
    "sweep": ["sweep", "ODD", "--executor", "local", "--no-tracking"],
    "plan": ["plan", "ODD"],
    "calibration": ["plan", MEMORY, "--calibration", "ODD"],
    "doctor": ["doctor", "ODD"],
    "submit": ["submit", "ODD", "--backend", "slurm", "--to", "TMP/to"],
    "runtime-env": ["sweep", MEMORY, "--runtime-env", "ODD", "--no-tracking"],
    "status": ["status", "ODD"],
    "stop": ["stop", "ODD"],
    "report": ["report", "ODD"],
    "verify": ["report", "ODD", "--verify"],
    "compare": ["compare", "ODD", "ODD"],
    "export": ["export", "ODD", "--format", "imagefolder"],
    "export-model": ["export-model", "ODD", "TMP/to"],
    "mlflow-sync": ["mlflow", "sync", "ODD"],
    "ui": ["ui", "ODD"],
    "init": ["init", "ODD"],
    "evaluate": ["evaluate", "ODD", "--preset", "fashion", "--executor", "local"],
    "real": [
        "plan",
        MEMORY,
        "--set",
        "images.source=imagefolder",
        "--set",
        "images.root=ODD",
        "--set",
        "images.classes=[a, b]",
    ],
    "weights": ["plan", MEMORY, "--preset", "imagewoof", "--set", "backbone.file=ODD"],
}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_odd_path_is_one_message_with_a_remedy(
    command: str, kind: str, odd: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    path = odd(kind)
    words = [word.replace("ODD", path).replace("TMP", str(tmp_path)) for word in COMMANDS[command]]
    if words[0] not in ("status", "report", "compare", "ui", "init", "mlflow"):
        words += ["--run-dir", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    shown = capsys.readouterr()
    assert caught.value.code in (2, 5, 6), shown.err
    assert "Traceback" not in shown.err
    assert "help: " in shown.err + shown.out
    assert not (tmp_path / "runs").exists()


RUN_DIRS: dict[str, list[str]] = {
    "sweep": ["sweep", MEMORY, "--executor", "local", "--no-tracking"],
    "store": ["store", "verify"],
    "evaluate": ["evaluate", "TMP/no", "--preset", "fashion", "--executor", "local"],
    "doctor": ["doctor"],
}


@pytest.mark.parametrize("kind", ["empty", "pipe", "endless", "loop", "long"])
@pytest.mark.parametrize("command", RUN_DIRS)
def test_an_odd_run_directory_is_one_message_with_a_remedy(
    command: str, kind: str, odd: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    words = [word.replace("TMP", str(tmp_path)) for word in RUN_DIRS[command]]
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--run-dir", odd(kind)])
    shown = capsys.readouterr()
    assert caught.value.code in (2, 5, 6), shown.err
    assert "Traceback" not in shown.err
    assert "help: " in shown.err + shown.out


def _set_with(name: str) -> Callable[[Path], object]:
    """A reader of a set one of whose files is the odd one."""

    def of(path: Path) -> object:
        root = path.parent.parent if name == "image" else path.parent
        for one in CLASSES:
            (root / one).mkdir(exist_ok=True)
            (root / one / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
        if name == "metadata.jsonl":
            return written_metadata(path.parent)
        if name == "labels.json":
            return set_files(path.parent, CLASSES)
        return set_source(root, CLASSES)

    return of


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "sweep file": ("odd.yaml", read),
    "search space": ("odd.yaml", read_space),
    "calibration": ("odd.json", read_calibration),
    "runtime environment": ("odd.yaml", read_runtime_env),
    "labels of a set": ("labels.json", _set_with("labels.json")),
    "metadata of a set": ("metadata.jsonl", _set_with("metadata.jsonl")),
    "image of a set": ("a/1.png", _set_with("image")),
    "sweep record": ("sweep.json", lambda path: read_sweep_record(path.parent)),
    "trial record": ("trials/a-s0.json", lambda path: read_trial_records(path.parent.parent)),
    "seed policy": ("allotment.json", lambda path: read_seed_policy(path.parent)),
    "manifest": ("store/encode/" + "a" * 64 + "/manifest.json", lambda path: Store(path.parents[2]).get("encode", "a" * 64)),
    "inception": ("odd.pt", lambda path: script_file(str(path)) if not path.is_file() else refuse()),
}
HARMLESS = {  # what a reader may take: nothing is there, or the content does not matter to it
    ("metadata of a set", "missing"),
    ("metadata of a set", "empty"),
    ("labels of a set", "missing"),
    ("image of a set", "missing"),
    ("image of a set", "folder"),
    ("image of a set", "pipe"),
    ("image of a set", "endless"),
    ("manifest", "missing"),
    ("seed policy", "missing"),
    ("trial record", "missing"),
    ("runtime environment", "newer"),
    ("sweep file", "newer"),
}


def refuse() -> None:
    raise DdgdError("the stage that loads it looks at what it holds", fix="none")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("reader", READERS)
def test_an_odd_file_is_an_error_with_a_remedy(reader: str, kind: str, tmp_path: Path) -> None:
    if (reader, kind) in HARMLESS:
        return
    name, reads = READERS[reader]
    path = make(kind, tmp_path / "x" / name)
    with pytest.raises(DdgdError) as caught:
        reads(path)
    assert "help: " in str(caught.value)
    assert caught.value.exit_code != 1 or reader == "inception"


@pytest.fixture
def quiet() -> Iterator[None]:
    """Handlers that a command puts on the root logger are taken off again."""
    import logging

    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [*root.handlers, *logging.getLogger("ddgd_ray").handlers]:
        if handler not in before:
            root.removeHandler(handler)
            logging.getLogger("ddgd_ray").removeHandler(handler)
            handler.close()
