"""The page in a real browser: nothing to complain of, nothing asked of the network."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddgd_ray.report.build import write_report
from ddgd_ray.report.compare_runs import compare_runs
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
QUIET += "disable-sync"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]


@pytest.fixture(scope="module")
def pages(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("pages")
    store = open_store(finished.parent)
    report = write_report(finished, store, to=out, with_page=True)
    assert report.page is not None
    run = read_run(finished, store)
    (out / "compare.html").write_text(compare_runs(run, run).as_html())
    return [report.page, out / "compare.html"]


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """What the console said, and every address that the browser was asked for beside files and data."""
    log = folder / "net.json"
    command = [str(CHROMIUM), *(f"--{flag}" for flag in QUIET.split()), f"--user-data-dir={folder / 'profile'}"]
    command += [f"--log-net-log={log}", "--enable-logging=stderr", "--v=0", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    said = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return said, [url for url in addresses(json.loads(log.read_text())) if not url.startswith(("file:", "data:", "chrome:"))]


def addresses(log: Any) -> set[str]:
    """Of requests that a page made: the browser's own have no initiator."""
    return {
        event["params"]["url"]
        for event in log["events"]
        if "url" in event.get("params", {}) and event["params"].get("initiator", "not an origin") != "not an origin"
    }


def test_the_browser_has_no_complaint_and_asks_for_nothing(pages: list[Path], tmp_path: Path) -> None:
    for number, page in enumerate(pages):
        folder = tmp_path / str(number)
        folder.mkdir()
        shot = folder / "shot.png"
        said, asked = browse(page, folder, f"--screenshot={shot}", "--window-size=1300,3000")
        assert said == ""
        assert asked == []
        with Image.open(shot) as image:
            assert image.size == (1300, 3000)
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 20  # something is drawn


def test_a_browser_that_is_given_a_reason_complains(tmp_path: Path) -> None:
    """The test above can fail."""
    (tmp_path / "bad.html").write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing.at.all</script>')
    said, asked = browse(tmp_path / "bad.html", tmp_path, f"--screenshot={tmp_path / 'shot.png'}")
    assert "ReferenceError" in said
    assert asked == ["http://127.0.0.1:9/x.png"]
