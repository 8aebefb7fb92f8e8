"""Commit points: a process may die at any of them. Full disks: an error that says what to do, and nothing half made."""

import errno
import os
import resource
from pathlib import Path

import pytest

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.storage import commit
from ddgd_ray.storage.commit import create_atomically, room_for, write_atomically
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Store, key_of

SPEC = PretrainSpec(steps=7)
INPUTS = {"latents": "a" * 64}
KEY = key_of(SPEC, INPUTS)


def publish(store: Store, text: str = "hello") -> None:
    with store.scratch(KEY) as scratch:
        (scratch / "file.txt").write_text(text)
        store.publish(scratch, SPEC, INPUTS, {"loss": 0.5}, seconds=1.5)


def publish_in_child(store: Store, **environment: str) -> int:
    """The exit status of a process that publishes, with its commit points counted from 1."""
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        try:
            publish(store)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_process_that_dies_at_any_commit_point_leaves_all_or_nothing(tmp_path: Path) -> None:
    points = tmp_path / "points"
    assert publish_in_child(Store(tmp_path / "calm"), DDGD_CRASH_COUNT=str(points)) == 0
    names = [line.split()[2] for line in points.read_text().splitlines()]
    assert {"before-sync-file", "before-replace", "before-publish", "after-rename", "after-publish"} <= set(names)
    for number in range(1, len(names) + 1):
        store = Store(tmp_path / str(number))
        assert publish_in_child(store, DDGD_CRASH_AT=str(number)) == 137
        found = store.get("pretrain", KEY)
        assert (found is not None) == (number > names.index("after-rename"))
        if found is not None:
            compare_files(found)
        store.clean_scratch()
        assert list((store.root / "scratch").iterdir()) == []
        assert publish_in_child(store) == 0
        again = store.get("pretrain", KEY)
        assert again is not None
        compare_files(again)


def test_a_point_by_number_is_that_of_the_count(tmp_path: Path) -> None:
    points = tmp_path / "points"
    assert publish_in_child(Store(tmp_path / "a"), DDGD_CRASH_COUNT=str(points), DDGD_CRASH_AT="3") == 137
    assert [line.split()[1] for line in points.read_text().splitlines()] == ["1", "2", "3"]


def test_of_two_creators_one_wins_and_the_content_is_his(tmp_path: Path) -> None:
    assert create_atomically(tmp_path / "a", b"first")
    assert not create_atomically(tmp_path / "a", b"second")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"first")]


@pytest.mark.parametrize("failing", ["write_atomically", "publish"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_last_good_file_and_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, number: int
) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    (tmp_path / "file").write_text("good")
    monkeypatch.setattr(commit.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(StageError, match=r"need \d+ bytes, have [\d,]+ bytes") as caught:
        write_atomically(tmp_path / "file", "better") if failing == "write_atomically" else publish(store)
    monkeypatch.undo()
    assert (caught.value.exit_code, caught.value.code) == (5, "disk-full")
    assert (tmp_path / "file").read_text() == "good"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "store"]
    assert list((store.root / "scratch").iterdir()) == []
    publish(store)  # there is room again


def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            write_atomically(tmp_path / "file", "x" * 2000)
        except StageError as err:
            code = 0 if "need 2,000 bytes" in str(err) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("1000 requested and 0 written"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
    ids=["os", "numpy", "safetensors"],
)
def test_whoever_meets_the_full_disk_it_is_one_error(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "part").write_bytes(b"12345")
    with pytest.raises(StageError, match="more than the 5 bytes written so far"), room_for(tmp_path):
        raise error


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"), room_for(tmp_path):
        raise ValueError("shape")
