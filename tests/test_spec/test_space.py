"""Search spaces: what is read, and what each mistake is told."""

from pathlib import Path

import pytest

from ddgd_ray.errors import SpecErrors
from ddgd_ray.spec.space import FloatRange, IntRange, read_space
from ddgd_ray.spec.sweep import read_sweep

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "search_spaces").glob("*.yaml"))


def search_file(folder: Path, space: str) -> Path:
    """A sweep file that searches `space`, which is written beside it."""
    (folder / "space.yaml").write_text(space)
    path = folder / "sweep.yaml"
    path.write_text("name: a\nsearch:\n  space: space.yaml\n")
    return path


def refusal(folder: Path, space: str) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        read_sweep(search_file(folder, space), {})
    return [str(error).replace(f"{folder}/", "") for error in caught.value.errors]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_space_fits_the_default_preset(path: Path, tmp_path: Path) -> None:
    assert read_sweep(search_file(tmp_path, path.read_text()), {}).space


def test_spaces_are_shipped() -> None:
    assert SHIPPED


def test_a_distribution_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "finetune.lambda_g: {type: float, low: 1e-4, high: 1e-1, log: true}\n"
        "finetune.memory_real.size: {type: int, low: 8, high: 256}\n"
    )
    space, _ = read_space(path)
    assert dict(space) == {
        "finetune.lambda_g": FloatRange(type="float", low=1e-4, high=0.1, log=True),
        "finetune.memory_real.size": IntRange(type="int", low=8, high=256, log=False),
    }


@pytest.mark.parametrize(
    ("written", "field", "words"),
    [
        ("{low: 1, high: 2}", "", "expected a type: choice, int or float"),
        ("{type: uniform, low: 1, high: 2}", "", "expected type choice, int or float"),
        ("{type: float, low: 2, high: 1}", "", "low 2.0 must be less than high 1.0"),
        ("{type: float, low: 0, high: 1, log: true}", "", "log needs low > 0, got 0.0"),
        ("{type: float, low: .nan, high: 1}", ".low", "expected a finite number, got number nan"),
        ("{type: float, low: 0, high: .inf}", ".high", "expected a finite number, got number inf"),
        ("{type: int, low: 8.5, high: 64}", ".low", "expected an integer, got number 8.5"),
        ("{type: float, high: 64}", ".low", "this key is required"),
        ("{type: float, low: 1, high: 2, step: 1}", ".step", "unknown key"),
        ("{type: choice, values: [0.1]}", ".values", "expected a list of at least 2"),
        ("{type: choice, values: [0.1, 0.1]}", ".values", "a value is listed twice"),
        ("[0.1, 0.2]", "", "expected a mapping, got list (0.1, 0.2)"),
        ("0.1", "", "expected a mapping, got number 0.1"),
    ],
)
def test_a_wrong_distribution_is_told_with_its_line_and_an_example(
    written: str, field: str, words: str, tmp_path: Path
) -> None:
    (message,) = refusal(tmp_path, f"# a comment\nfinetune.lambda_g: {written}\n")
    assert message.startswith(f"error[search-space]: space.yaml:2 finetune.lambda_g{field}: {words}")
    assert "help: e.g. {type: int, low: 8" in message


def test_every_wrong_distribution_is_told_at_once(tmp_path: Path) -> None:
    messages = refusal(tmp_path, "finetune.lambda_g: {type: float, low: 2, high: 1}\nfinetune.lambda_r: 5\n")
    assert [message.split()[1] for message in messages] == ["space.yaml:1", "space.yaml:2"]


def test_a_space_without_a_field_is_refused(tmp_path: Path) -> None:
    (message,) = refusal(tmp_path, "{}\n")
    assert "nothing to search" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("finetune.memory_real.size: {type: int, low: 1, high: 64}", "expected a number >= 2, got integer 1"),
        ("finetune.memory_real.size: {type: int, low: 8, high: 65537}", "expected a number <= 65536, got integer 65537"),
        ("finetune.memory_real.pop: {type: choice, values: [fifo, oldest]}", "got text 'oldest'"),
        ("finetune.memory_real.sise: {type: int, low: 8, high: 64}", "did you mean size?"),
        ("finetun.lambda_g: {type: int, low: 8, high: 64}", "did you mean finetune.lambda_g?"),
        ("sample.seed: {type: int, low: 0, high: 64}", "use seeds.distill in its place"),
    ],
)
def test_the_ends_of_a_space_must_fit_the_preset(line: str, words: str, tmp_path: Path) -> None:
    (message,) = refusal(tmp_path, f"# a comment\n{line}\n")
    assert "]: space.yaml:2" in message
    assert words in message


def test_a_missing_space_is_told_with_the_sweep_files_line(tmp_path: Path) -> None:
    path = search_file(tmp_path, "")
    (tmp_path / "space.yaml").unlink()
    with pytest.raises(SpecErrors) as caught:
        read_sweep(path, {})
    assert f"error[missing-file]: {path}:3 search.space: space.yaml: there is no such file" in str(caught.value)
