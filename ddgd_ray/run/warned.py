"""What a sweep was warned of when it last began: beside its records, for reports that no longer have its file."""

import json
from collections.abc import Iterable
from pathlib import Path

from ddgd_ray.plan.trap import Trap
from ddgd_ray.storage.store import write_atomically

WARNINGS = "warnings.json"


def write_warnings(run: Path, traps: Iterable[Trap]) -> None:
    """run: the run's folder. Warnings of an earlier start are replaced: a corrected file is in no trap any more."""
    write_atomically(run / WARNINGS, json.dumps([trap.as_json() for trap in traps], indent=1) + "\n")


def read_warnings(run: Path) -> list[Trap]:
    """The warnings of a run, none of one that was begun before they were written or whose file is damaged."""
    try:
        return [Trap(**entry) for entry in json.loads((run / WARNINGS).read_text())]
    except (OSError, ValueError, TypeError):
        return []
