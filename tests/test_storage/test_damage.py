"""Damaged artifacts: seen before they are used, set aside by name, made again; never loaded, never a loop."""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddgd_ray.conduct.conductor import Job
from ddgd_ray.conduct.work import run_job
from ddgd_ray.errors import ArtifactError, DamagedArtifact
from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import publish_call
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.soundness import check_before_use, compare_files
from ddgd_ray.storage.store import Artifact, Store, file_sha256, key_of

SPEC = PretrainSpec(steps=7)
INPUTS = {"latents": "a" * 64}
KEY = key_of(SPEC, INPUTS)


def publish(store: Store, text: str = "hello") -> Artifact:
    with store.scratch(KEY) as scratch:
        (scratch / "file.txt").write_text(text)
        return store.publish(scratch, SPEC, INPUTS, {"loss": 0.5}, seconds=1.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def forge(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["spec"]["steps"] = 8
    (path / "manifest.json").write_text(json.dumps(manifest))


def claim_other_key(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace(KEY, "d" * 64))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "manifest-empty": lambda path: (path / "manifest.json").write_text(""),
    "manifest-zeros": lambda path: (path / "manifest.json").write_bytes(bytes(500)),
    "manifest-truncated": lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text()[:100]),
    "manifest-binary": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest-of-another-key": claim_other_key,
    "manifest-forged": forge,
    "file-missing": lambda path: (path / "file.txt").unlink(),
    "file-truncated": lambda path: (path / "file.txt").write_text("hell"),
    "file-flipped": lambda path: (path / "file.txt").write_text("jello"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_input_is_set_aside_by_name_and_can_be_made_again(
    store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](publish(store).path)
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedArtifact) as caught:
        store.usable("pretrain", KEY)
    assert caught.value.exit_code == 6
    (moved,) = (store.root / "damaged").iterdir()
    assert moved.name == f"{KEY}.0"
    assert str(moved) in caplog.text
    assert damage.startswith("manifest") or "file.txt" in caplog.text
    assert not store.has("pretrain", KEY)
    publish(store)
    usable = store.usable("pretrain", KEY)
    assert usable is not None
    assert (usable.path / "file.txt").read_text() == "hello"


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "file-flipped"])
def test_damage_that_shows_without_reading_the_files_counts_as_not_made(store: Store, damage: str) -> None:
    DAMAGES[damage](publish(store).path)
    assert store.sound("pretrain", KEY) is None
    assert not store.has("pretrain", KEY)
    assert store.sound("pretrain", KEY) is None


def test_an_artifact_that_lost_its_manifest_is_replaced(store: Store) -> None:
    (publish(store).path / "manifest.json").unlink()
    assert store.usable("pretrain", KEY) is None
    check_before_use(publish(store))
    assert (store.root / "damaged" / f"{KEY}.0").is_dir()


def test_an_artifact_of_a_newer_version_is_refused_and_stays(store: Store) -> None:
    path = publish(store).path / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ArtifactError, match="newer") as caught:
        store.sound("pretrain", KEY)
    assert (caught.value.code, caught.value.exit_code) == ("newer-schema", 6)
    assert path.is_file()


def test_damage_of_what_ships_with_the_package_is_an_error_and_stays(store: Store, tmp_path: Path) -> None:
    DAMAGES["file-truncated"](publish(store).path)
    above = Store(tmp_path / "above", (store.root,))
    above.prepare()
    with pytest.raises(ArtifactError, match="package is damaged"):
        above.sound("pretrain", KEY)
    assert store.has("pretrain", KEY)


def test_files_are_read_once_a_process_and_again_when_they_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("ddgd_ray.storage.soundness.file_sha256", lambda path: (read.append(path.name), file_sha256(path))[1])
    artifact = publish(store)
    for _ in range(3):
        store.usable("pretrain", KEY)
    assert read == ["file.txt"]
    (artifact.path / "file.txt").write_text("jello")
    with pytest.raises(DamagedArtifact):
        store.usable("pretrain", KEY)


def test_large_files_are_compared_by_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddgd_ray.storage.soundness.HASHED_BYTES", 3)
    DAMAGES["file-flipped"](publish(store).path)
    assert store.usable("pretrain", KEY) is not None
    with pytest.raises(DamagedArtifact, match="SHA-256"):
        found = store.get("pretrain", KEY)
        assert found is not None
        compare_files(found)


def test_what_was_made_again_meanwhile_is_not_set_aside(store: Store) -> None:
    publish(store)
    store.set_aside("pretrain", KEY, "an old finding")
    assert store.has("pretrain", KEY)


def test_processes_that_find_the_same_damage_set_it_aside_once(store: Store) -> None:
    DAMAGES["file-truncated"](publish(store).path)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(store.sound("pretrain", KEY))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 8
    assert [path.name for path in (store.root / "damaged").iterdir()] == [f"{KEY}.0"]


def test_a_job_with_a_damaged_input_may_be_repeated_and_one_with_a_damaged_output_makes_it_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(store)

    def write(spec: object, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
        (out / "made.txt").write_text((inputs["latents"] / "file.txt").read_text())
        return {"loss": 1.0}

    monkeypatch.setitem(sys.modules, "ddgd_ray.stages.pretrain", SimpleNamespace(run=write))
    call = StageCall(PretrainSpec(steps=9), {"latents": Ref("pretrain", KEY)})
    job = Job("prepare", "test", (call,))
    DAMAGES["file-truncated"](made.path)
    outcome = run_job(job, store, ResourcesSpec())
    assert ("file.txt has 4 bytes" in outcome.error, outcome.is_final, outcome.exit_code) == (True, False, 6)
    publish(store)
    assert run_job(job, store, ResourcesSpec()).error == ""
    output = store.get(*call.ref)
    assert output is not None
    (output.path / "made.txt").unlink()
    assert run_job(job, store, ResourcesSpec()).error == ""
    again, was_there = publish_call(call, store, Context())
    assert was_there
    compare_files(again)


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "absolute name": lambda manifest: manifest["files"].update({"/tmp/forged": manifest["files"]["file.txt"]}),
    "name above": lambda manifest: manifest["files"].update({"../../forged": manifest["files"]["file.txt"]}),
    "name of the manifest": lambda manifest: manifest["files"].update({"manifest.json": manifest["files"]["file.txt"]}),
    "empty name": lambda manifest: manifest["files"].update({"": manifest["files"]["file.txt"]}),
    "name with NUL": lambda manifest: manifest["files"].update({"a\0b": manifest["files"]["file.txt"]}),
    "other stage": lambda manifest: manifest.update(stage="../../elsewhere"),
    "files as a list": lambda manifest: manifest.update(files=["file.txt"]),
    "no size": lambda manifest: manifest["files"]["file.txt"].pop("bytes"),
    "no hash": lambda manifest: manifest["files"]["file.txt"].update(sha256="/etc/passwd"),
    "copy elsewhere": lambda manifest: manifest.update(copy="../../elsewhere"),
    "seconds of text": lambda manifest: manifest.update(seconds="1"),
}


@pytest.mark.parametrize("forge", FORGED)
def test_a_forged_manifest_is_damage(store: Store, forge: str) -> None:
    path = publish(store).path / "manifest.json"
    manifest = json.loads(path.read_text())
    FORGED[forge](manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact):
        store.get("pretrain", KEY)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"schema": 1}', '{"schema": 1, "key": 3, "files": 4}', ""])
def test_a_manifest_that_holds_something_else_is_damage(store: Store, text: str) -> None:
    (publish(store).path / "manifest.json").write_text(text)
    with pytest.raises(DamagedArtifact):
        store.get("pretrain", KEY)


def test_a_named_pipe_in_place_of_a_manifest_or_a_file_is_damage_and_hangs_nobody(store: Store) -> None:
    for name in ("manifest.json", "file.txt"):
        folder = publish(store).path
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(DamagedArtifact, match="named pipe"):
            store.usable("pretrain", KEY)
        assert not store.has("pretrain", KEY)


def test_a_file_that_is_reached_by_a_link_is_damage(store: Store, tmp_path: Path) -> None:
    folder = publish(store).path
    (tmp_path / "outside.txt").write_bytes((folder / "file.txt").read_bytes())
    (folder / "file.txt").unlink()
    (folder / "file.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(DamagedArtifact, match="link"):
        store.usable("pretrain", KEY)


def test_files_of_the_package_may_be_links_as_some_installers_make_them(store: Store, tmp_path: Path) -> None:
    folder = publish(store).path
    (folder / "file.txt").rename(tmp_path / "outside.txt")
    (folder / "file.txt").symlink_to(tmp_path / "outside.txt")
    above = Store(tmp_path / "above", (store.root,))
    above.prepare()
    assert above.usable("pretrain", KEY) is not None


@pytest.mark.parametrize("ref", [("../../x", KEY), ("pretrain", "../../x"), ("/etc", KEY), ("", KEY), ("pretrain", "a\0")])
def test_a_ref_that_leads_out_of_the_store_names_no_artifact(store: Store, ref: tuple[str, str]) -> None:
    with pytest.raises(ArtifactError, match="names no artifact"):
        store.get(*ref)
