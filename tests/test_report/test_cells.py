"""Text in a CSV file is text in a spreadsheet, whatever it begins with; numbers stay numbers."""

import csv
import io

import pytest

from ddgd_ray.report.cells import CellWriter, plain_cell


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x")'])
def test_text_that_begins_like_a_formula_is_quoted(text: str) -> None:
    assert plain_cell(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["-0.5", "+1", "-1e-05", "1.5", "", "paper", "a=b", "-inf", 3, -0.5, None, True])
def test_numbers_and_plain_text_stay_as_they_are(cell: object) -> None:
    assert plain_cell(cell) == cell


def test_each_cell_of_a_line_is_looked_at() -> None:
    text = io.StringIO()
    CellWriter(text).writerow(["=a", 1, "-0.25", "b"])
    assert next(csv.reader([text.getvalue()])) == ["'=a", "1", "-0.25", "b"]
