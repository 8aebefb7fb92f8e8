"""Sweep files of the package work wherever it is installed; a file of the current folder goes before them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ddgd_ray import cli
from ddgd_ray.spec.shipped import FOLDERS, shipped_files

ROOT = Path(__file__).parent.parent


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


def test_they_are_the_files_of_the_repository() -> None:
    for folder in FOLDERS:
        assert [path.name for path in shipped_files(folder)] == sorted(path.name for path in (ROOT / folder).glob("*.yaml"))


def test_a_sweep_file_of_the_package_is_found_from_anywhere_and_its_space_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = answer(["plan", "ablations/search_losses.yaml", "--run-dir", str(tmp_path / "runs")], capsys)
    assert code == 0
    assert out.startswith("search_losses: ")


def test_a_file_of_the_current_folder_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ablations").mkdir()
    text = (ROOT / "ablations" / "lambda_g.yaml").read_text().replace("name: lambda_g", "name: my-own")
    (tmp_path / "ablations" / "memory.yaml").write_text(text)
    code, out, _ = answer(["plan", "ablations/memory.yaml"], capsys)
    assert code == 0
    assert out.startswith("my-own: ")


def test_they_are_listed_with_their_questions(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(["ablations"], capsys)
    assert code == 0
    assert "ablations/memory.yaml         Which latent should leave a full memory?\n" in out


def test_they_are_copied_to_be_changed_and_never_over_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablations", "search_losses", "--to", str(tmp_path)]
    assert answer(words, capsys)[0] == 0
    assert answer(["plan", str(tmp_path / "ablations" / "search_losses.yaml")], capsys)[0] == 0
    assert answer(words, capsys)[0] == 0
    (tmp_path / "ablations" / "search_losses.yaml").write_text("name: mine\n")
    code, _, err = answer(words, capsys)
    assert code == 2
    assert "error[exists]" in err
    assert (tmp_path / "ablations" / "search_losses.yaml").read_text() == "name: mine\n"


def test_an_unknown_name_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(["ablations", "memroy"], capsys)
    assert code == 2
    assert "did you mean memory?" in err


def test_a_wheel_holds_them(tmp_path: Path) -> None:
    for name in ("ddgd_ray", "ablations", "search_spaces"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    words = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "out"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ddgd_ray.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "installed"), "plan", "ablations/search_losses.yaml"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("search_losses: ")
