"""The page of a run: whole in one file, safe whatever names stand in it, and small however many arms there are."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from ddgd_ray.report.build import tables_of, write_report
from ddgd_ray.report.memories import portrait_inputs
from ddgd_ray.report.page import render, sections_of
from ddgd_ray.report.pictures import memory_pictures, strip
from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.report.verify import verify_run
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.run.results import Row
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import publish_call
from tests import run_parts

pytestmark = pytest.mark.timeout(400)  # a whole sweep comes first

HOSTILE = """"><script>alert('$x^2$')</script>&amp;<img src=x onerror=alert(1)>"""
HOLLOW = {"meta", "link", "img", "path", "use", "br", "image"}


class Page(HTMLParser):
    """Every element with its attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in HOLLOW:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in HOLLOW:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] not in ("script", "style") else ""

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written elsewhere, by a process of its own that then tells which modules it has."""
    to = tmp_path_factory.mktemp("elsewhere")
    code = f"""
import json, sys
from ddgd_ray import cli
try:
    cli.main(["report", {str(finished)!r}, "--to", {str(to)!r}])
except SystemExit as err:
    assert not err.code, err.code
known = {{name.partition(".")[0] for name in sys.modules}} | {{name for name in sys.modules if name.endswith(".pyplot")}}
print(json.dumps(sorted(known)))
"""
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))
    (to / "modules.json").write_text(done.stdout.splitlines()[-1])
    return to


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text())


def test_a_report_needs_no_framework_and_leaves_the_run_folder_alone(report: Path) -> None:
    modules = json.loads((report / "modules.json").read_text())
    assert not {"torch", "ray", "mlflow", "optuna", "diffusers", "matplotlib.pyplot"} & set(modules)
    assert {"matplotlib", "jinja2"} <= set(modules)
    for name in ("index.html", "table.md", "table.tex", "table.csv", "results.csv", "per_class.csv", "grid-plain.png"):
        assert (report / name).is_file(), name


def test_the_page_asks_for_nothing_beside_it(page: Page, report: Path) -> None:
    assert page.open == []
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), value
    assert "@import" not in (report / "index.html").read_text()
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


def test_pictures_have_words_heads_have_a_scope_and_no_id_is_given_twice(page: Page) -> None:
    assert all(picture["alt"] for picture in page.all("img"))
    assert all(drawing["aria-label"] and drawing["role"] == "img" for drawing in page.all("svg"))
    assert len(page.all("img")) > 10
    assert len(page.all("svg")) >= 4
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    ids = [attributes["id"] for tag, attributes in page.elements if "id" in attributes and tag not in ("path", "clippath")]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_the_page_has_every_part(page: Page, report: Path) -> None:
    for title in ("Selection", "Results", "Sensitivity", "Trade-offs", "Classes", "Pictures", "Memories", "Cost", "Settings"):
        assert any(attributes.get("href") == f"#{title.lower()}" for attributes in page.all("a")), title
    for what in ("Accuracy against coverage", "Accuracy against cost", "Sets side by side", "Nearest real images"):
        assert what in page.text
    assert "Nearest by features latents, among all" in page.text
    assert "the test images chose nothing" in page.text
    assert "default 0.008" in page.text
    assert (report / "index.html").stat().st_size < 2_000_000


def test_the_same_run_gives_the_same_page(finished: Path, report: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    again = write_report(finished, open_store(finished.parent), to=tmp_path, with_page=True)
    assert again.page is not None
    assert again.page.read_bytes() == (report / "index.html").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_each_image_of_the_real_set_is_its_own_nearest_image(finished: Path) -> None:
    """random_real's images are training images: what is found for them by features must be the very same files."""
    from ddgd_ray.report.grids import images_by_class, set_folder
    from ddgd_ray.report.nearest import _all_real, _by_features, _Candidates

    run = read_run(finished, open_store(finished.parent))
    trial = run.first_trials()["random_real"]
    folder = set_folder(trial, run.store)
    assert folder is not None
    made = images_by_class(folder, 5)
    for found in (_by_features(run, trial, made, _all_real(run)), _Candidates(run, _all_real(run)).nearest(made)):
        assert found is not None
        assert set(found.pairs) == set(made)
        for pairs in found.pairs.values():
            assert all(image.read_bytes() == real.read_bytes() for image, real in pairs)


def test_memories_are_decoded_when_asked_for_and_stay_in_the_store(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    folder, store = tmp_path / "runs" / finished.name, open_store(tmp_path / "runs")
    run = read_run(folder, store)
    assert memory_pictures(run, run.ranked) == []
    for arm in run.ranked:
        call = portrait_inputs(run, arm)
        assert call is not None
        publish_call(StageCall(*call), store, Context())
    tables = memory_pictures(run, run.ranked)
    assert [table.title for table in tables] == [f"Memories of {arm}" for arm in run.ranked]
    assert tables[0].columns[0] == "real memory, step 1"
    assert tables[0].columns[-1] == "generated memory, step 3"
    assert [name for name, _ in tables[0].rows] == [str(digit) for digit in range(10)]
    found = verify_run(folder, store, folder / "report")
    assert found.problems == []
    assert found.num_artifacts == len(list(store.root.glob("*/*/manifest.json")))


def page_of(run: Run) -> Page:
    return Page(render(HOSTILE, "lead", sections_of(run, tables_of(run))))


def test_names_are_text_wherever_they_stand(row: Callable[..., Row], run_of: Callable[..., Run]) -> None:
    rows = [
        row(
            f"{HOSTILE}{value}",
            seed,
            params={HOSTILE: value},
            network=HOSTILE,
            protocol=HOSTILE,
            val_top1=0.1 * value,
            top1_last=0.5,
        )
        for value in (1, 2, 3)
        for seed in range(3)
    ]
    failed = run_parts.trial(HOSTILE, state="failed", errors={"k": HOSTILE})
    page = page_of(run_of(rows, [failed], vary={HOSTILE: (1, 2, 3)}, preset=HOSTILE))
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert page.text.count(HOSTILE) > 10
    assert any(HOSTILE in (drawing["aria-label"] or "") for drawing in page.all("svg"))


def test_a_thousand_arms_make_a_page_of_bounded_length(row: Callable[..., Row], run_of: Callable[..., Run]) -> None:
    rows = [
        row(f"arm{number}", params={"a.b": number}, val_top1=0.5, top1_last=0.4 + number / 10_000) for number in range(1000)
    ]
    run = run_of(rows, vary={"a.b": tuple(range(1000))})
    text = render("many", "lead", sections_of(run, tables_of(run)))
    assert "The first 200 of 1000 lines; table.csv has all." in text
    assert len(text) < 500_000


def test_a_run_without_results_has_a_page_all_the_same(run_of: Callable[..., Run]) -> None:
    assert "No arm has finished." in page_of(run_of([], vary={"a.b": (1, 2)})).text


def test_bold_in_notes_is_bold_and_cells_keep_their_marks() -> None:
    from ddgd_ray.report.page import Section, Text

    table = Table("T", [Column("arm"), Column("n")], [("a", [Cell("0.5", "best")]), ("b", [Cell("0.4", "tied")])])
    text = render("t", "l", [Section("S", [Text("best: **a<b**"), table])])
    assert "<strong>a&lt;b</strong>" in text
    assert '<td class="best">0.5</td>' in text
    assert '<td class="tied">0.4</td>' in text


def test_the_script_of_the_page_is_the_one_its_policy_names() -> None:
    import base64
    import hashlib

    text = render("t", "l", [])
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_large_pictures_shrink_and_grey_ones_stay_grey(tmp_path: Path) -> None:
    Image.new("RGB", (256, 256), "red").save(tmp_path / "red.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "grey.png")
    large, small = strip([[tmp_path / "red.png"] * 3], 48, "a"), strip([[tmp_path / "grey.png"]], 8, "a")
    assert (large.width, large.height) == (146, 48)
    assert (small.width, small.height) == (40, 40)
    assert len(large.uri) < 1000
