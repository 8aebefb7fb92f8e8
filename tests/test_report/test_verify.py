"""`report --verify`: finds nothing wrong with a sound run, and names whatever was changed."""

import hashlib
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


def a_spec_of_another_form(run: Path) -> str:
    rewrite(an_artifact(run, "finetune") / MANIFEST, lambda manifest: manifest["spec"].update(invented=1, steps="many"))
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


def a_cut_result(run: Path) -> str:
    result = an_artifact(run, "evaluate") / "result.json"
    result.write_bytes(result.read_bytes()[:40])
    return "result.json has 40 bytes"


def a_cut_result_that_its_manifest_knows_of(run: Path) -> str:
    """Whoever wrote it wrote the manifest too."""
    artifact = an_artifact(run, "evaluate")
    (artifact / "result.json").write_bytes(b'{"confusion": ')
    listed = {"bytes": 14, "sha256": hashlib.sha256(b'{"confusion": ').hexdigest()}
    rewrite(artifact / MANIFEST, lambda manifest: manifest["files"].update({"result.json": listed}))
    return "result.json cannot be read"


def a_confusion_matrix_of_another_form(run: Path) -> str:
    artifact = an_artifact(run, "evaluate")
    (artifact / "result.json").write_bytes(b"{}")
    listed = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    rewrite(artifact / MANIFEST, lambda manifest: manifest["files"].update({"result.json": listed}))
    return "its confusion matrix cannot be read: KeyError('confusion')"


def a_byte_that_is_no_text_in_the_results(run: Path) -> str:
    results = run / "report" / "results.csv"
    results.write_bytes(results.read_bytes().replace(b"fifo", b"f\xfffo", 1).replace(b"0.128", b"0.\xff28", 1))
    return "results.csv: differs from what the artifacts say"


def a_misspelt_field_of_a_trial(run: Path) -> str:
    record = sorted((run / "trials").glob("*.json"))[0]
    rewrite(record, lambda line: line.update(finishd=line.pop("finished")))
    return f"{record}: cannot be read: finis"


def another_end_of_a_trial(run: Path) -> str:
    record = sorted((run / "trials").glob("*.json"))[0]
    rewrite(record, lambda line: line.update(finished=1.0))
    return f"{record}: is not what it was when the report was written"


def a_trial_nobody_planned(run: Path) -> str:
    record = sorted((run / "trials").glob("0.128-*.json"))[0]
    shutil.copy(record, run / "trials" / "0.128-s9.json")
    return "0.128-s9.json: came after the report was written"


def a_bit(file: Path, place: float) -> str:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    return f"{file}: is not what it was when the report was written"


def a_setting_of_the_sweep(run: Path) -> str:
    sweep = run / "sweep.json"
    text = sweep.read_text()
    sweep.write_text(text.replace('"source": "digits"', '"source": "digitz"', 1))
    assert sweep.read_text() != text
    return f"{sweep}: is not what it was when the report was written"


def a_bit_of_a_grid_picture(run: Path) -> str:
    return a_bit(run / "report" / "grid-plain.png", 0.5)


def a_stroke_of_a_drawing(run: Path) -> str:
    page = run / "report" / "index.html"
    text = page.read_text()
    place = text.index(' d="M ') + 6
    page.write_text(text[:place] + "9" + text[place + 1 :])
    return f"{page}: is not what it was when the report was written"


def a_picture_that_is_gone(run: Path) -> str:
    (run / "report" / "grid-plain.png").unlink()
    return "grid-plain.png: cannot be read: No such file or directory"


def a_hash_of_the_list(run: Path) -> str:
    listed = run / "report" / "hashes.json"
    rewrite(listed, lambda content: content["report"].update({"index.html": "0" * 64}))
    return "hashes.json: was changed since it was written"


def a_line_of_the_list_that_is_gone(run: Path) -> str:
    rewrite(run / "report" / "hashes.json", lambda content: content["report"].pop("grid-plain.png"))
    return "hashes.json: was changed since it was written"


def a_cut_list(run: Path) -> str:
    listed = run / "report" / "hashes.json"
    listed.write_bytes(listed.read_bytes()[:100])
    return f"{listed}: cannot be read"


TAMPERINGS = [
    a_cut_result,
    a_cut_result_that_its_manifest_knows_of,
    a_confusion_matrix_of_another_form,
    a_byte_that_is_no_text_in_the_results,
    a_misspelt_field_of_a_trial,
    another_end_of_a_trial,
    a_trial_nobody_planned,
    a_setting_of_the_sweep,
    a_bit_of_a_grid_picture,
    a_stroke_of_a_drawing,
    a_picture_that_is_gone,
    a_hash_of_the_list,
    a_line_of_the_list_that_is_gone,
    a_cut_list,
    one_byte_of_an_image,
    a_missing_file,
    a_file_that_nobody_published,
    a_better_accuracy,
    another_setting,
    a_spec_of_another_form,
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


def a_picture_of_a_set_that_is_none(run: Path) -> str:
    image = an_artifact(run, "sample") / "images" / "0" / "00000.png"
    image.write_bytes(b"<html>")
    return f"{image}: cannot be read as an image"


def a_cut_line_of_a_set(run: Path) -> str:
    for artifact in (run.parent / "store" / "sample").iterdir():
        (artifact / "metadata.jsonl").write_text('{"file_name": ')
    return "metadata.jsonl cannot be read"


def a_cut_curve(run: Path) -> str:
    for artifact in (run.parent / "store" / "finetune").iterdir():
        (artifact / "curves.jsonl").write_text("{")
    return "curves.jsonl has 1 bytes"


def a_cut_list_of_copies(run: Path) -> str:
    for artifact in (run.parent / "store" / "quality").iterdir():
        (artifact / "copies.json").write_text("{")
    return "copies.json has 1 bytes"


def cut_labels(run: Path) -> str:
    for artifact in (run.parent / "store" / "features").iterdir():
        (artifact / "labels.npy").write_text("{")
    return "labels.npy has 1 bytes"


DAMAGE = [
    a_cut_result,
    a_cut_result_that_its_manifest_knows_of,
    a_misspelt_field_of_a_trial,
    an_unreadable_manifest,
    a_picture_of_a_set_that_is_none,
    a_cut_line_of_a_set,
    a_cut_curve,
    a_cut_list_of_copies,
    cut_labels,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("flags", [[], ["--verify"]], ids=["report", "verify"])
def test_no_damage_is_a_traceback(
    damage: Tamper, flags: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.parent, tmp_path / "runs")
    run = tmp_path / "runs" / finished.name
    expected = damage(run)
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(run), *flags, "--to", str(tmp_path / "to")])
    said = capsys.readouterr()
    assert caught.value.code == 6
    assert "Traceback" not in said.err
    assert flags or expected in said.err, said.err


def test_a_damaged_race_is_a_problem(reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported.parent, tmp_path / "runs")
    run = tmp_path / "runs" / reported.name
    (run / "allotment.json").write_text('{"kind": "race", "metric": "val_')
    assert any("allotment.json: cannot be read" in problem for problem in verified(run).problems)


def test_a_damaged_sweep_has_its_exit_code(reported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(reported.parent, tmp_path / "runs")
    sweep = tmp_path / "runs" / reported.name / "sweep.json"
    sweep.write_bytes(sweep.read_bytes().replace(b'"objective"', b'"objectiv"'))
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(sweep.parent), "--verify"])
    assert caught.value.code == 6
    assert str(sweep) in capsys.readouterr().err


def test_a_report_without_its_list_is_told_what_was_not_looked_at(reported: Path, tmp_path: Path) -> None:
    """Reports of earlier versions have none."""
    shutil.copytree(reported.parent, tmp_path / "runs")
    run = tmp_path / "runs" / reported.name
    (run / "report" / "hashes.json").unlink()
    found = verified(run)
    assert found.problems == []
    assert found.notes == ["hashes.json is not there: pictures and drawings of the report were not looked at"]


def test_a_report_that_is_written_again_is_sound_again(reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported.parent, tmp_path / "runs")
    run = tmp_path / "runs" / reported.name
    another_end_of_a_trial(run)
    assert verified(run).problems
    write_report(run, open_store(run.parent), with_page=True)
    assert verified(run).problems == []
