"""Search spaces: what is read, and what each mistake is told."""

import random
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.errors import SpecErrors
from ddgd_ray.spec.points import draw, identity, points, size, why_not
from ddgd_ray.spec.space import FloatRange, IntRange, Space, read_space
from ddgd_ray.spec.sweep import read_sweep

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "search_spaces").glob("*.yaml"))


def search_file(folder: Path, space: str, more: str = "") -> Path:
    """A sweep file that searches `space`, which is written beside it."""
    (folder / "space.yaml").write_text(space)
    path = folder / "sweep.yaml"
    path.write_text(f"name: a\nsearch:\n  space: space.yaml\n{more}")
    return path


def refusal(folder: Path, space: str, more: str = "") -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        read_sweep(search_file(folder, space, more), {})
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
        ("{type: float, low: 1, high: 2, steps: 1}", ".steps", "unknown key"),
        ("{type: float, low: 0, high: 1, step: 0.3}", "", "step 0.3 does not lead from 0.0 to 1.0: the last value is 0.9"),
        ("{type: float, low: 0, high: 1, step: 1e-320}", "", "step 1e-320 is too small for the range from 0.0 to 1.0"),
        ("{type: float, low: 1, high: 2, step: 1, log: true}", "", "log and step exclude each other"),
        ("{type: int, low: 1, high: 10, step: -1}", ".step", "expected a number >= 0, got integer -1"),
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
    assert "help: " in message


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


POP = "finetune.memory_real.pop: {type: choice, values: [fifo, max_similarity]}\n"
AGE = "finetune.memory_real.max_age: {type: int, low: 0, high: 20, step: 10, when: {finetune.memory_real.pop: [fifo]}}\n"
RATE = "finetune.lambda_g: {type: float, low: 0, high: 1, step: 0.25}\n"


def space_of(text: str, folder: Path) -> Space:
    (folder / "space.yaml").write_text(text)
    return read_space(folder / "space.yaml")[0]


def test_a_conditional_field_stands_after_its_parent_and_is_in_a_point_only_where_it_is_searched(tmp_path: Path) -> None:
    space = space_of(AGE + POP, tmp_path)
    assert list(space) == ["finetune.memory_real.pop", "finetune.memory_real.max_age"]
    drawn = [draw(space, random.Random(seed)) for seed in range(50)]
    assert {("finetune.memory_real.max_age" in point, point["finetune.memory_real.pop"]) for point in drawn} == {
        (True, "fifo"),
        (False, "max_similarity"),
    }
    assert all(why_not(point, space) == "" for point in drawn)


def test_points_are_all_different_and_as_many_as_counted_and_draws_are_among_them(tmp_path: Path) -> None:
    space = space_of(POP + AGE + RATE, tmp_path)
    every = {identity(point) for point in points(space)}
    assert len(every) == len(list(points(space))) == size(space) == (3 + 1) * 5
    assert {identity(draw(space, random.Random(seed))) for seed in range(300)} == every


def test_a_continuous_range_has_no_number_of_points(tmp_path: Path) -> None:
    assert size(space_of("finetune.lambda_g: {type: float, low: 0, high: 1}", tmp_path)) is None


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"a": 1}, "a is no field of the space"),
        ({"finetune.memory_real.pop": "fifo"}, "finetune.memory_real.max_age is missing"),
        ({"finetune.memory_real.pop": "oldest"}, "'oldest' lies outside the space"),
        ({"finetune.memory_real.pop": "fifo", "finetune.memory_real.max_age": 5}, "5 lies outside the space"),
        (
            {"finetune.memory_real.pop": "max_similarity", "finetune.memory_real.max_age": 10},
            "max_age is not searched where finetune.memory_real.pop is max_similarity",
        ),
    ],
)
def test_a_point_outside_is_told_why(point: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in why_not(point, space_of(POP + AGE, tmp_path))


@pytest.mark.parametrize(
    ("space", "where", "words"),
    [
        (POP + AGE.replace("pop:", "pops:"), "space.yaml:2", "did you mean finetune.memory_real.pop?"),
        (POP + AGE.replace("[fifo]", "[oldest]"), "space.yaml:2", "'oldest' is no value of finetune.memory_real.pop"),
        (POP + AGE.replace("[fifo]", "[]"), "space.yaml:2", "expected at least one value"),
        (RATE + AGE.replace("memory_real.pop", "lambda_g"), "space.yaml:2", "only a choice can decide"),
        (
            "finetune.memory_real.pop: {type: choice, values: [fifo, random], when: {finetune.memory_gen.pop: [fifo]}}\n"
            "finetune.memory_gen.pop: {type: choice, values: [fifo, random], when: {finetune.memory_real.pop: [fifo]}}\n",
            "space.yaml:1",
            "depends on itself",
        ),
    ],
)
def test_a_wrong_condition_is_refused_with_its_line(space: str, where: str, words: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, space)[0]
    assert message.startswith(f"error[search-space]: {where}")
    assert words in message


RANGE = "finetune.lambda_g: {type: float, low: 0, high: 1}\n"


@pytest.mark.parametrize(
    ("space", "more", "words"),
    [
        (POP, "  algorithm: cmaes\n", "cmaes needs at least two ranges"),
        (RANGE, "  algorithm: grid\n", "finetune.lambda_g has none"),
        (POP + RATE, "  algorithm: grid\n  trials: 5\n", "the grid has 10 points, search.trials is 5"),
        (POP, "  algorithm: qmc\n", "qmc is for ranges"),
        (POP + AGE, "  algorithm: qmc\n", "qmc knows no conditional fields"),
        (RANGE, "  algorithm: bayes\n", "'tpe'"),
        (RANGE, "  algorithm: nsga2\n  warm_start: [other]\n", "nsga2 learns nothing"),
        (POP, "  first: [{finetune.memory_real.pop: oldest}]\n", "'oldest' lies outside the space"),
        (RANGE, "objective: {metric: val_top5}\n", "did you mean val_top1?"),
        (RANGE, "objective: {metric: val_top1, also: [{metric: ipc, direction: minimize}]}\n", "compare sizes by evaluate.ipc"),
        (RANGE, "objective: {also: [{metric: latents/coverage, direction: maximize}]}\n", "add quality: [latents]"),
        (RANGE, "objective: {constraints: [{metric: seconds}]}\n", "give either max or min"),
        (
            RANGE,
            "test: finalists\nobjective: {also: [{metric: top1_last, direction: maximize}]}\n",
            "goes by the validation images",
        ),
    ],
)
def test_a_search_that_does_not_fit_is_refused_with_a_way_out(space: str, more: str, words: str, tmp_path: Path) -> None:
    (message,) = refusal(tmp_path, space, more)
    assert "sweep.yaml:" in message
    assert words in message
    assert "help: " in message
