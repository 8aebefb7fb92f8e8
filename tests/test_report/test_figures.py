"""Drawings: every number that they are made of is in them, and the defaults and controls where they belong."""

import re
from collections.abc import Callable

import pytest

from ddgd_ray.report.configurations import best_so_far, configurations, importances
from ddgd_ray.report.figures import Dot, Drawing, scatter
from ddgd_ray.report.search_figures import search_figures
from ddgd_ray.report.sensitivity import sensitivity_figures
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row

Rows = Callable[..., Row]
PATH = "finetune.lambda_g"
SEARCH = {"vary": {}, "search": {"space": "space.yaml", "trials": 12}}


def levels(row: Rows, values: tuple[float, ...] = (0.0, 0.002, 0.032)) -> list[Row]:
    return [
        row(f"{value}", seed, params={PATH: value}, val_top1=0.5, top1_last=0.5 + value + 0.01 * seed)
        for value in values
        for seed in range(3)
    ]


def marks(drawing: Drawing) -> int:
    """Markers drawn: each seed's dot, each mean, each tick."""
    return drawing.svg.count("<use ")


def test_a_numeric_field_has_a_figure_with_its_default_and_its_controls(row: Rows, run_of: Callable[..., Run]) -> None:
    controls = [row("plain", is_control=True, top1_last=0.51, val_top1=0.4), row("random_real", is_control=True, top1_last=0.9)]
    (drawing,) = sensitivity_figures(run_of([*levels(row), *controls], vary={PATH: (0.0, 0.002, 0.032)}))
    assert "0.002: 0.512 ± 0.010 (n=3)" in drawing.alt
    assert ">default 0.008<" in drawing.svg
    assert ">plain<" in drawing.svg
    assert ">random_real<" not in drawing.svg
    assert "Outside the figure: random_real 0.900." in drawing.caption


def test_every_seed_is_a_dot(row: Rows, run_of: Callable[..., Run]) -> None:
    fewer = [found for found in levels(row) if found.seed < 2]
    spec = {"vary": {PATH: (0.0, 0.002, 0.032)}}
    (all_three,), (two) = sensitivity_figures(run_of(levels(row), **spec)), sensitivity_figures(run_of(fewer, **spec))
    assert marks(all_three) - marks(two[0]) >= 3


def test_words_and_single_values_have_no_figure(row: Rows, run_of: Callable[..., Run]) -> None:
    rows = [row("max", params={"a.pop": "max", "a.size": 3}, top1_last=0.5)]
    assert sensitivity_figures(run_of(rows, vary={"a.pop": ("max", "fifo"), "a.size": (3,)})) == []


def test_other_fields_are_lines_of_their_own(row: Rows, run_of: Callable[..., Run]) -> None:
    rows = [
        row(f"{size}-{pop}", params={"a.size": size, "a.pop": pop}, top1_last=0.5 + size / 1000 + 0.1 * (pop == "max"))
        for size in (16, 64, 256)
        for pop in ("max", "fifo")
    ]
    (drawing,) = sensitivity_figures(run_of(rows, vary={"a.size": (16, 64, 256), "a.pop": ("max", "fifo")}))
    assert ">pop max<" in drawing.svg
    assert ">pop fifo<" in drawing.svg


def test_a_drawing_takes_its_colours_from_the_page() -> None:
    svg = scatter("t", "x", "y", [Dot("a", 1, 2), Dot("b", 3, 4, group=1)], caption="").svg
    assert "var(--series-0)" in svg
    assert "var(--series-1)" in svg
    assert "currentColor" in svg
    assert "0c00" not in svg
    assert "<style" not in svg
    assert re.search(r'(src|href)="(?!#)', svg) is None


def searched(row: Rows) -> list[Row]:
    """12 configurations of which `a.size` alone decides."""
    return [
        row(
            f"trial{number:04d}",
            params={"a.size": 2**number, "a.pop": "max" if number % 2 else "fifo"},
            val_top1=0.3 + 0.01 * number,
        )
        for number in range(12)
    ]


def test_a_search_has_its_five_figures(row: Rows, run_of: Callable[..., Run]) -> None:
    drawings = search_figures(run_of(searched(row), **SEARCH))
    assert [drawing.title for drawing in drawings] == [
        "History of the search",
        "Importance",
        "Slices",
        "Parallel coordinates",
        "Contour",
    ]
    assert "the best is 0.41" in drawings[0].alt
    assert "a.size 2048, a.pop max" in drawings[3].alt


def test_a_grid_and_a_search_of_one_have_no_search_figures(row: Rows, run_of: Callable[..., Run]) -> None:
    assert search_figures(run_of(searched(row))) == []
    assert search_figures(run_of(searched(row)[:1], **SEARCH)) == []


def test_the_field_that_decides_is_the_most_important(row: Rows, run_of: Callable[..., Run]) -> None:
    first, second = importances(configurations(run_of(searched(row), **SEARCH)))
    assert (first.field, first.trend) == ("a.size", pytest.approx(1.0))
    assert first.share > 0.8
    assert second.share < 0.2


def test_with_four_configurations_nothing_is_said_of_importance(row: Rows, run_of: Callable[..., Run]) -> None:
    assert importances(configurations(run_of(searched(row)[:4], **SEARCH))) == []


@pytest.mark.parametrize(("sign", "expected"), [(1, [2, 2, 3]), (-1, [2, 1, 1])])
def test_the_best_so_far_never_worsens(sign: int, expected: list[int]) -> None:
    assert best_so_far([2, 1, 3], sign) == expected
