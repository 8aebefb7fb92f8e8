"""Rendering: marks survive, and LaTeX holds together without a package but booktabs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ddgd_ray.report.render import Cell, Column, Table, escape, latex, markdown

TABLE = Table(
    "Arms_1 & more",
    [Column("arm"), Column("n"), Column("long title", "short", "mean of 100 %"), Column("net_1", group="mean of 100 %")],
    [
        ("a_b", [Cell("6"), Cell("0.658 ± 0.016", "best"), Cell("0.657 ± 0.010", "tied")]),
        ("resnet-18 (control)", [Cell("6"), Cell("-0.001 ± 0.002"), Cell("[-0.002, 0.001]")]),
        ("c", [Cell("6"), Cell("-"), Cell("<0.001")]),
    ],
    "p ≥ 0.05, mean ± std; 95 % of {x}.",
)


def test_best_is_bold_and_the_indistinguishable_underlined() -> None:
    assert "| a_b | 6 | **0.658 ± 0.016** | <u>0.657 ± 0.010</u> |" in markdown(TABLE)
    assert r"a\_b & 6 & \textbf{0.658 $\pm$ 0.016} & \underline{0.657 $\pm$ 0.010} \\" in latex(TABLE)


def test_a_minus_of_a_number_is_one_and_a_hyphen_of_a_name_is_not() -> None:
    assert r"resnet-18 (control) & 6 & $-$0.001 $\pm$ 0.002 & {[$-$0.002, 0.001]} \\" in latex(TABLE)


def test_special_characters_are_escaped() -> None:
    assert escape("a_b & 5 % < x") == r"a\_b \& 5 \% $<$ x"
    assert escape("\\ {}") == r"\textbackslash{} \{\}"


def test_a_bar_does_not_end_a_markdown_cell() -> None:
    assert r"| a\|b | 1 |" in markdown(Table("t", [Column("arm"), Column("n")], [("a|b", [Cell("1")])]))


def test_latex_has_balanced_braces_and_as_many_cells_as_columns() -> None:
    text = latex(TABLE)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.isascii()
    for line in text.splitlines():
        if line.endswith(r"\\"):
            spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == len(TABLE.columns)


def test_groups_stand_over_their_columns() -> None:
    assert r" &  & \multicolumn{2}{c}{mean of 100 \%} \\" in latex(TABLE)
    assert r"\cmidrule(lr){3-4}" in latex(TABLE)
    assert "multicolumn" not in latex(Table("t", [Column("arm"), Column("n")], [("a", [Cell("1")])]))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles_with_booktabs_alone(tmp_path: Path) -> None:
    document = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + latex(TABLE) + "\n\\end{document}\n"
    (tmp_path / "table.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
