"""Cells of CSV files. Spreadsheets read text that begins with = + - @ as a formula, and run it."""

import csv
import re
from collections.abc import Iterable
from typing import TextIO

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|-?inf|nan")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_cell(value: object) -> object:
    """The value as a cell that no spreadsheet reads as a formula: text that begins like one gets a ' before it."""
    is_formula = isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


class CellWriter:
    """A writer of CSV lines whose cells no spreadsheet reads as formulas."""

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")

    def writerow(self, cells: Iterable[object]) -> None:
        self._writer.writerow([plain_cell(cell) for cell in cells])
