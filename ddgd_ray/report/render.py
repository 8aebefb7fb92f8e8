"""One table, written as Markdown or as LaTeX that needs the package booktabs and no other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "≥": r"$\geq$"}
LATEX |= {character: rf"\{character}" for character in "&%$#_{}"} | {character: f"${character}$" for character in "<>|"}


@dataclass(frozen=True)
class Column:
    title: str
    short: str = ""
    """The title in LaTeX, where a page is narrow; when empty, the title itself."""
    group: str = ""
    """A title that LaTeX prints once over neighbours of the same group."""


@dataclass(frozen=True)
class Cell:
    """A measured value; `mark` is best (bold), tied (underlined: not distinguishable from the best) or empty."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    """The lines: a name, and one cell for every column after the first."""
    note: str = ""


def markdown(table: Table) -> str:
    """The table as Markdown: heading, table and note."""
    lines = [_line([column.title for column in table.columns]), "|" + " --- |" * len(table.columns)]
    for name, cells in table.rows:
        marked = [{"best": f"**{cell.text}**", "tied": f"<u>{cell.text}</u>"}.get(cell.mark, cell.text) for cell in cells]
        lines.append(_line([name, *marked]))
    parts = [f"## {table.title}", "\n".join(lines), table.note]
    return "\n\n".join(part for part in parts if part)


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"


def latex(table: Table) -> str:
    """The table as a LaTeX environment; title and note are its caption."""
    caption = f"{table.title}. {table.note}" if table.note else f"{table.title}."
    lines = [r"\begin{table}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
    lines += [rf"\caption{{{escape(caption)}}}", rf"\begin{{tabular}}{{l{'c' * (len(table.columns) - 1)}}}", r"\toprule"]
    if any(column.group for column in table.columns):
        lines += _groups(table.columns)
    lines.append(_latex_line([escape(column.short or column.title) for column in table.columns]))
    lines.append(r"\midrule")
    lines += [_latex_line([escape(name), *map(_latex_cell, cells)]) for name, cells in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _groups(columns: Sequence[Column]) -> list[str]:
    cells, rules, start = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}" if group else " & " * (width - 1))
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    return [_latex_line(cells), " ".join(rules)]


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = re.sub(r"(?<![\w$])-(?=\d)", "$-$", escape(cell.text))
    text = f"{{{text}}}" if text.startswith("[") else text  # after \\ a bracket would be an argument
    return {"best": rf"\textbf{{{text}}}", "tied": rf"\underline{{{text}}}"}.get(cell.mark, text)


def escape(text: str) -> str:
    """Plain text for LaTeX in text mode, whatever the font encoding."""
    return "".join(LATEX.get(character, character) for character in text)
