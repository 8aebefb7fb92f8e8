"""`report --verify`: finds nothing wrong with a sound run, and names whatever was changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray import cli
from ddgd_ray.report.build import write_report
from ddgd_ray.report.verify import Verification, verify_run
from ddgd_ray.run.folder import open_store
from ddgd_ray.storage.store import MANIFEST

pytestmark = pytest.mark.timeout(400)  # a whole sweep comes first

Tamper = Callable[[Path], str]


@pytest.fixture(scope="module")
def reported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with its report in it."""
    runs = tmp_path_factory.mktemp("reported")
    shutil.copytree(finished.parent, runs, dirs_exist_ok=True)
    write_report(runs / finished.name, open_store(runs), with_page=True)
    return runs / finished.name


def verified(run: Path) -> Verification:
    return verify_run(run, open_store(run.parent), run / "report")


def an_artifact(run: Path, stage: str) -> Path:
    return sorted((run.parent / "store" / stage).iterdir())[0]


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_run_has_no_problem(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(reported), "--verify"])
    assert caught.value.code == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("0 problems")
    found = verified(reported)
    published = list((reported.parent / "store").glob("*/*/manifest.json"))
    assert found.num_artifacts == len(published)
    assert found.num_cells > 100
    assert found.notes == []


def one_byte_of_an_image(run: Path) -> str:
    image = an_artifact(run, "sample") / "images" / "3" / "00000.png"
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)
    return "images/3/00000.png has another SHA-256"


def a_missing_file(run: Path) -> str:
    (an_artifact(run, "finetune") / "adapter.safetensors").unlink()
    return "adapter.safetensors is missing"


def a_file_that_nobody_published(run: Path) -> str:
    (an_artifact(run, "select") / "images" / "0" / "zzz.png").write_bytes(b"")
    return "images/0/zzz.png was not published with it"


def a_better_accuracy(run: Path) -> str:
    rewrite(an_artifact(run, "evaluate") / MANIFEST, lambda manifest: manifest["metrics"].update(top1_last=0.99))
    return "top1_last is 0.990000 in its manifest"


def another_setting(run: Path) -> str:
    rewrite(an_artifact(run, "finetune") / MANIFEST, lambda manifest: manifest["spec"].update(lambda_r=0.5))
    return "its key does not follow from its spec and inputs"


def a_missing_artifact(run: Path) -> str:
    artifact = an_artifact(run, "quality")
    shutil.rmtree(artifact)
    return f"quality {artifact.name}: is not in the store"


def an_unreadable_manifest(run: Path) -> str:
    (an_artifact(run, "evaluate") / MANIFEST).write_text("{")
    return "its manifest cannot be read"


def a_record_of_another_value(run: Path) -> str:
    record = sorted((run / "trials").glob("0.128-*.json"))[0]
    rewrite(record, lambda line: line["params"].update({"finetune.lambda_g": 0.5}))
    return "finetune.lambda_g is 0.5 in its record, 0.128 in finetune"


def a_number_of_the_table(run: Path) -> str:
    table = run / "report" / "table.csv"
    lines = table.read_text().splitlines()
    values = lines[1].split(",")
    values[6] = "0.9"
    table.write_text("\n".join([lines[0], ",".join(values), *lines[2:]]) + "\n")
    return "table.csv: differs from what the artifacts say"


def a_number_of_the_page(run: Path) -> str:
    page = run / "report" / "index.html"
    text = page.read_text()
    cell = text.index("<td>0.", text.index('data-title="Arms, '))
    page.write_text(text[:cell] + "<td>9." + text[cell + len("<td>0.") :])
    return "index.html: Arms, "


TAMPERINGS = [
    one_byte_of_an_image,
    a_missing_file,
    a_file_that_nobody_published,
    a_better_accuracy,
    another_setting,
    a_missing_artifact,
    an_unreadable_manifest,
    a_record_of_another_value,
    a_number_of_the_table,
    a_number_of_the_page,
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_what_was_changed_is_named(tamper: Tamper, reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported.parent, tmp_path / "runs")
    run = tmp_path / "runs" / reported.name
    expected = tamper(run)
    problems = verified(run).problems
    assert any(expected in problem for problem in problems), problems


def test_damage_has_its_exit_code(reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(reported.parent, tmp_path / "runs")
    expected = one_byte_of_an_image(tmp_path / "runs" / reported.name)
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(tmp_path / "runs" / reported.name), "--verify"])
    assert caught.value.code == 6
    assert expected in capsys.readouterr().out


def test_a_report_that_was_never_written_is_noted_and_no_problem(finished: Path) -> None:
    found = verify_run(finished, open_store(finished.parent), finished / "nowhere")
    assert found.problems == []
    assert found.notes[0].startswith("no report on disk")
