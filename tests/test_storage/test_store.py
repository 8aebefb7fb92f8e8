"""The store: what is there is complete, one writer wins, damage is seen."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddgd_ray.errors import ArtifactError, DdgdError, SpecError, StageError
from ddgd_ray.spec.stages import MemorySpec, PretrainSpec
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Artifact, Store, file_sha256, key_of

SPEC = PretrainSpec(steps=7)
INPUTS = {"latents": "a" * 64}


def publish(store: Store, text: str = "hello", spec: PretrainSpec = SPEC) -> Artifact:
    with store.scratch(key_of(spec, INPUTS)) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file.txt").write_text(text)
        return store.publish(scratch, spec, INPUTS, {"loss": 0.5}, seconds=1.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_a_published_artifact_is_found_with_its_files_and_metrics(store: Store) -> None:
    published = publish(store)
    found = store.get("pretrain", key_of(SPEC, INPUTS))
    assert found == published
    assert (found.path / "sub" / "file.txt").read_text() == "hello"
    assert (found.metrics, found.seconds) == ({"loss": 0.5}, 1.5)
    compare_files(found)


def test_nothing_is_left_in_scratch_after_publishing_or_failing(store: Store) -> None:
    publish(store)
    with pytest.raises(RuntimeError), store.scratch("b" * 64) as scratch:
        (scratch / "half").write_text("...")
        raise RuntimeError
    assert list((store.root / "scratch").iterdir()) == []


def test_the_first_of_two_writers_wins(store: Store) -> None:
    publish(store, "first")
    again = publish(store, "second")
    assert (again.path / "sub" / "file.txt").read_text() == "first"


def _race(root: Path, number: int, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    publish(Store(root), f"writer {number}")


def test_writers_that_race_leave_one_complete_artifact(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    writers = [context.Process(target=_race, args=(store.root, number, barrier)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    artifact = store.get("pretrain", key_of(SPEC, INPUTS))
    assert artifact is not None
    compare_files(artifact)


@pytest.mark.parametrize("point", ["before-manifest", "before-replace", "before-publish", "after-publish"])
def test_a_process_that_dies_at_a_commit_point_leaves_all_or_nothing(store: Store, point: str) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from ddgd_ray.storage.store import Store
import importlib.util
spec = importlib.util.spec_from_file_location("me", {__file__!r}); me = importlib.util.module_from_spec(spec)
spec.loader.exec_module(me)
me.publish(Store(Path({str(store.root)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "DDGD_CRASH_AT": point}, check=False)
    assert done.returncode == 137
    found = store.get("pretrain", key_of(SPEC, INPUTS))
    assert (found is not None) == (point == "after-publish")
    if found is not None:
        compare_files(found)
    store.clean_scratch()
    assert list((store.root / "scratch").iterdir()) == []
    compare_files(publish(store))


def test_scratch_of_a_living_process_is_kept(store: Store) -> None:
    with store.scratch("c" * 64) as scratch:
        assert store.clean_scratch() == 0
        assert scratch.is_dir()
        assert store.in_progress() == ["c" * 16]
    assert store.in_progress() == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_a_file_is_seen_and_named(store: Store, damage: str) -> None:
    artifact = publish(store)
    path = artifact.path / "sub" / "file.txt"
    if damage == "remove":
        path.unlink()
    else:
        path.write_text("jello" if damage == "flip" else "hell")
    with pytest.raises(ArtifactError, match=r"sub/file\.txt"):
        compare_files(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}'])
def test_a_damaged_manifest_is_an_error_with_a_way_out(store: Store, text: str) -> None:
    artifact = publish(store)
    (artifact.path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="delete this folder") as caught:
        store.get("pretrain", artifact.key)
    assert caught.value.exit_code == 6


def test_an_artifact_that_speaks_of_another_key_is_refused(store: Store) -> None:
    artifact = publish(store)
    other = "d" * 64
    artifact.path.rename(artifact.path.with_name(other))
    with pytest.raises(ArtifactError, match="found schema 1 of pretrain"):
        store.get("pretrain", other)


def test_a_read_only_layer_is_looked_up_and_never_written(store: Store, tmp_path: Path) -> None:
    publish(store)
    above = Store(tmp_path / "above", (store.root,))
    above.prepare()
    found = above.get("pretrain", key_of(SPEC, INPUTS))
    assert found is not None
    assert found.path.is_relative_to(store.root)
    publish(above, spec=PretrainSpec(steps=8))
    assert not store.has("pretrain", key_of(PretrainSpec(steps=8), INPUTS))


def test_a_store_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="--run-dir"):
        Store(tmp_path / "file" / "store").prepare()


def test_the_key_depends_on_every_field_version_and_input() -> None:
    keys = {
        key_of(SPEC, INPUTS),
        key_of(PretrainSpec(steps=8), INPUTS),
        key_of(SPEC, {"latents": "b" * 64}),
        key_of(SPEC, {"other": "a" * 64}),
        key_of(type("Next", (PretrainSpec,), {"version": 99})(steps=7), INPUTS),
    }
    assert len(keys) == 5


def test_the_key_does_not_depend_on_how_defaults_are_given() -> None:
    explicit = PretrainSpec(**{name: getattr(SPEC, name) for name in PretrainSpec.model_fields})
    assert key_of(explicit, INPUTS) == key_of(SPEC, INPUTS)


def test_file_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = SpecError("what", code="code", where="where", fix="fix")
    copy: DdgdError = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (SpecError, "error[code]: where: what\n  help: fix")


def test_specs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        MemorySpec().size = 3  # type: ignore[misc]


def test_the_manifest_is_readable_json_that_names_versions(store: Store) -> None:
    manifest = json.loads((publish(store).path / "manifest.json").read_text())
    assert manifest["versions"]["torch"] != "absent"
    assert manifest["spec"]["steps"] == 7
