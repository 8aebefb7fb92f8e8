"""What cannot be exported is refused with the place and the way out, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray import cli
from ddgd_ray.errors import ArtifactError
from ddgd_ray.exporting.choose import choose
from ddgd_ray.exporting.export_set import export_set
from ddgd_ray.exporting.images import folder_names
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def sound(made_run: Callable[..., Path]) -> Path:
    return made_run()


@pytest.fixture
def own(sound: Path, tmp_path: Path) -> Path:
    """A copy of the run and its store to damage."""
    return Path(shutil.copytree(sound.parent, tmp_path / "runs")) / sound.name


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of a command."""

    def command(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(map(str, words)))
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        assert isinstance(caught.value.code, int)
        return caught.value.code, shown.out, shown.err

    return command


def best_set(run: Path) -> Path:
    artifact = choose(read_run(run, open_store(run.parent))).set
    assert artifact is not None
    return artifact.path


def export(run: Path, to: Path, **options: Any) -> None:
    export_set(choose(read_run(run, open_store(run.parent))), "imagefolder", to, **options)


def test_the_best_arm_is_exported_unless_one_is_named(sound: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("export", sound, "--format", "imagefolder", "--to", tmp_path / "best")
    assert code == 0
    assert "arm       0.008, seed 0, best by val_top1: 0.3" in out
    assert "(n=3)" in out
    assert f"written   {tmp_path / 'best'}" in out
    code, out, _ = run("export", sound, "--format", "hf", "--arm", "0.0", "--seed", 2, "--to", tmp_path / "named")
    assert code == 0
    assert "arm       0.0, seed 2\n" in out


def test_without_a_place_it_goes_into_the_run_folder(own: Path, run: Run) -> None:
    assert run("export", own, "--format", "webdataset", "--archive")[0] == 0
    assert [path.name for path in (own / "export").iterdir()] == ["made-0.008-s0-ipc3-webdataset.tar"]


def test_the_card_is_the_same_for_the_best_arm_by_name(sound: Path, tmp_path: Path, run: Run) -> None:
    run("export", sound, "--format", "hf", "--to", tmp_path / "a")
    run("export", sound, "--format", "hf", "--arm", "0.008", "--seed", 0, "--ipc", 3, "--to", tmp_path / "b")
    assert (tmp_path / "a" / "SHA256SUMS").read_text() == (tmp_path / "b" / "SHA256SUMS").read_text()


@pytest.mark.parametrize(
    ("words", "code", "start", "rest"),
    [
        (["--arm", "0.08"], 2, "error[unknown-arm]", ("there: 0.0, 0.008, random_real", "did you mean 0.008?")),
        (["--seed", 7], 2, "error[unknown-seed]", ("arm 0.008 has no seed 7; there: 0, 1, 2", "--seed 0")),
        (["--ipc", 4], 2, "error[out-of-range]", ("expected 1 to 3 images a class of 0.008-s0, got 4", "use 3 or less")),
    ],
)
def test_what_the_run_has_not_got_is_refused_with_what_it_has(
    words: list[object], code: int, start: str, rest: tuple[str, ...], sound: Path, tmp_path: Path, run: Run
) -> None:
    found, _, err = run("export", sound, "--format", "imagefolder", "--to", tmp_path / "out", *words)
    assert (found, err.partition(":")[0]) == (code, start)
    assert all(text in err for text in (*rest, "help: "))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_wrong_usage(sound: Path, run: Run) -> None:
    assert run("export", sound, "--format", "zip")[0] == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, run: Run) -> None:
    code, _, err = run("export", tmp_path, "--format", "hf")
    assert code == 6
    assert err.startswith("error[no-run]")


def test_a_run_without_results_says_so(made_run: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    planned = made_run(is_done=False)
    code, _, err = run("export", planned, "--format", "hf", "--to", tmp_path / "out")
    assert code == 5
    assert err.startswith("error[not-finished]")
    assert "no arm has a result yet" in err
    code, _, err = run("export", planned, "--format", "hf", "--arm", "0.0", "--to", tmp_path / "out")
    assert code == 5
    assert "the set of 0.0-s0 is not finished, its trial is planned" in err


def test_an_arm_whose_classifiers_are_missing_is_exported_with_a_warning(own: Path, tmp_path: Path, run: Run) -> None:
    found = read_run(own, open_store(own.parent))
    for evaluator in found.of_arm("0.008")[0].evaluators:
        shutil.rmtree(found.store.root / evaluator.stage / evaluator.key)
    code, out, _ = run("export", own, "--format", "hf", "--to", tmp_path / "out")
    assert code == 0
    assert "warning: 2 of 18 evaluators of this run have no result yet" in out
    assert "2 of the run's 18 evaluators have no result yet" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["file", "full folder", "link", "dead link"])
def test_nothing_is_overwritten(kind: str, sound: Path, tmp_path: Path, run: Run) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "full folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.symlink_to(tmp_path / "elsewhere")
        if kind == "link":
            (tmp_path / "elsewhere").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run("export", sound, "--format", "imagefolder", "--to", target)
    assert code == 5
    assert err.startswith(f"error[exists]: {target}: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_does_not_replace_a_folder_even_an_empty_one(sound: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    assert run("export", sound, "--format", "hf", "--archive", "--to", tmp_path / "out")[0] == 5


def test_a_place_that_cannot_be_written_is_refused(sound: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("export", sound, "--format", "hf", "--to", tmp_path / "file" / "out")
    assert code == 5
    assert err.startswith("error[not-writable]")


@pytest.mark.parametrize("is_archive", [False, True])
def test_an_export_that_breaks_leaves_nothing(
    is_archive: bool, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddgd_ray.exporting.export_set.set_card", full)
    with pytest.raises(Exception, match="cannot be written: No space left"):
        export(sound, tmp_path / "out", is_archive=is_archive)
    assert list(tmp_path.iterdir()) == []


def damage_by_change(folder: Path) -> None:
    path = folder / "images" / "3" / "00001.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def damage_by_loss(folder: Path) -> None:
    (folder / "images" / "3" / "00001.png").unlink()


def damage_by_link(folder: Path) -> None:
    path = folder / "images" / "3" / "00001.png"
    path.rename(folder.parent.parent / "elsewhere.png")
    path.symlink_to(folder.parent.parent / "elsewhere.png")


def damage_by_linked_folder(folder: Path) -> None:
    (folder / "images" / "3").rename(folder.parent.parent / "elsewhere")
    (folder / "images" / "3").symlink_to(folder.parent.parent / "elsewhere")


def damage_by_parent(folder: Path) -> None:
    """The list, and the manifest with it, lead out of the artifact."""
    secret = folder.parent / "secret.png"
    (folder / "images" / "3" / "00001.png").rename(secret)
    for name in ("metadata.jsonl", "manifest.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("images/3/00001.png", "../secret.png"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["metadata.jsonl"]["bytes"] = (folder / "metadata.jsonl").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage_by_label(folder: Path) -> None:
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace('"label": 3', '"label": 4'))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_by_change, "00001.png: has another SHA-256 than when it was made"),
        (damage_by_loss, "images/3/00001.png is missing"),
        (damage_by_link, "images/3/00001.png is reached by a link"),
        (damage_by_linked_folder, "images/3/00000.png is reached by a link"),
        (damage_by_parent, r"names a file that is not below its folder: '\.\./secret.png'"),
        (damage_by_label, "metadata.jsonl or labels.json does not fit the set"),
    ],
)
def test_a_damaged_set_is_not_exported(damage: Callable[[Path], None], what: str, own: Path, tmp_path: Path) -> None:
    damage(best_set(own))
    with pytest.raises(ArtifactError, match=what):
        export(own, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["a", "b"], ("a", "b")),
        (["../../x", "/etc", "..", ""], ("_.._x", "_etc", "class_2", "class_3")),
        (["a:b", "a*b", "A?B"], ("a_b", "a_b_1", "A_B_2")),
        (["Straße", "café", "犬"], ("Straße", "café", "犬")),
        (["x" * 300, ".hidden", "a\nb"], ("x" * 80, "hidden", "a_b")),
    ],
)
def test_class_names_become_safe_and_different_folder_names(classes: list[str], folders: tuple[str, ...]) -> None:
    assert folder_names(classes) == folders


def test_a_ready_made_set_that_changed_since_it_was_judged_is_refused(
    made_run: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    from PIL import Image

    ready = tmp_path / "ready"
    for label in range(10):
        (ready / str(label)).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 25 * label + index).save(ready / str(label) / f"{index}.jpg")
    judged = made_run({"vary": {}, "sets": {"mine": (str(ready),)}, "controls": (), "quality": ()})
    assert run("export", judged, "--format", "imagefolder", "--to", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out" / "train" / "7").iterdir()) == ["00000.jpg", "00001.jpg", "00002.jpg"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The images were made elsewhere and judged here" in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "provenance.json").read_text()
    (ready / "3" / "0.jpg").write_bytes((ready / "4" / "0.jpg").read_bytes())
    code, _, err = run("export", judged, "--format", "imagefolder", "--to", tmp_path / "again")
    assert code == 6
    assert "its images have changed since" in err
