"""The journey of docs/own-images.md: from a folder of pictures to a table and an exported set, by the lines written there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "own-images.md"
MOST_TYPED = 10
CHANCE = 1 / 6


def typed() -> list[str]:
    """The command lines of the page's first block, as a user types them."""
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    return [line.partition("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


def test_the_journey_takes_few_lines() -> None:
    assert 0 < len(typed()) <= MOST_TYPED
    assert all(line.startswith(("ddgd-ray ", "python docs/make_pictures.py ")) for line in typed())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lines_of_the_page_end_in_a_table_and_a_set(tmp_path: Path) -> None:
    said = {}
    for line in typed():
        words = shlex.split(line)
        if words[0] == "python":  # fewer pictures, and less time, than a reader has
            words = [sys.executable, str(ROOT / words[1]), words[2], "40"]
        else:
            words = [sys.executable, "-m", "ddgd_ray.cli", *words[1:], *(["--minutes", "1"] if words[1] == "init" else [])]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line.split()[1]] = done.stdout
    assert "warning[" not in said["plan"], "what init writes is in no trap"
    table = (tmp_path / "runs" / "pictures" / "report" / "table.md").read_text()
    assert table.count("(n=3)") >= 5, "three arms and two controls at three seeds"
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "pictures" / "trials").glob("*.json")]
    assert {record["state"] for record in records} == {"done"}
    (exported,) = (tmp_path / "runs" / "pictures" / "export").iterdir()
    assert len(list(exported.glob("train/*/*.png"))) == 6 * 10
