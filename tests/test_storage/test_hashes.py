"""Hashes are remembered as long as a file is as it was, and a cache out of order costs time alone."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ddgd_ray.errors import StageError
from ddgd_ray.storage import hashes
from ddgd_ray.storage.hashes import Content, contents

AN_HOUR_AGO = time.time_ns() - 3_600_000_000_000  # files changed within two seconds are not remembered


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone, as is what the process remembers."""
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_unsaved", {})
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [write(tmp_path / f"{index:03d}.jpg", f"content {index}".encode()) for index in range(70)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the path of each file that is read."""
    paths: list[str] = []
    read = hashes._read

    def counting(path: str) -> Content:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(hashes, "_read", counting)
    return paths


def write(path: Path, content: bytes, changed_ns: int = AN_HOUR_AGO) -> str:
    path.write_bytes(content)
    os.utime(path, ns=(changed_ns, changed_ns))
    return str(path)


def test_the_content_is_the_sha256_and_the_first_bytes_of_each_file_in_order(files: list[str]) -> None:
    expected = [f"content {index}".encode() for index in range(70)]
    assert list(contents(files)) == [Content(hashlib.sha256(data).hexdigest(), data[:12]) for data in expected]


def test_a_second_call_reads_no_file(files: list[str], reads: list[str]) -> None:
    first = list(contents(files))
    assert sorted(reads) == files
    reads.clear()
    assert list(contents(files)) == first
    assert reads == []


def test_what_one_call_hashed_before_it_was_interrupted_stays_known(
    files: list[str], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "CHUNK", 10)
    interrupted = contents(files)
    next(interrupted)
    interrupted.close()
    reads.clear()
    list(contents(files))
    assert sorted(reads) == files[10:]


def test_more_files_than_one_query_takes_are_all_found(
    files: list[str], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "NUM_VARIABLES", 8)
    list(contents(files))
    reads.clear()
    list(contents(files))
    assert reads == []


def test_a_file_given_twice_is_read_once_and_returned_twice(files: list[str], reads: list[str]) -> None:
    first, second = contents([files[0], files[0]])
    assert first == second
    assert reads == [files[0]]


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_and_no_other_is_hashed_again(files: list[str], reads: list[str], change: str) -> None:
    before = list(contents(files))
    reads.clear()
    path = Path(files[3])
    changed = b"CONTENT 3" + b"!" * (change == "size")
    if change == "inode":
        os.replace(write(path.with_suffix(".new"), changed), path)
    else:
        write(path, changed, AN_HOUR_AGO + (change == "time"))
    after = list(contents(files))
    assert reads == [files[3]]
    assert after[3].sha256 == hashlib.sha256(changed).hexdigest()
    assert after[:3] + after[4:] == before[:3] + before[4:]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "new.jpg", b"new", time.time_ns())
    list(contents([path]))
    list(contents([path]))
    assert reads == [path, path]


def test_the_cache_lies_where_ddgd_cache_says(
    files: list[str], reads: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(contents(files))
    assert [path.name for path in cache.iterdir()] == ["hashes.sqlite"]
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "other"))
    reads.clear()
    list(contents(files))
    assert sorted(reads) == files
    assert (tmp_path / "other" / "hashes.sqlite").is_file()


def test_without_ddgd_cache_the_cache_lies_in_the_home_folder(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDGD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    list(contents(files))
    assert (tmp_path / "home" / ".cache" / "ddgd-ray" / "hashes.sqlite").is_file()


def no_database(cache: Path) -> None:
    cache.mkdir()
    (cache / "hashes.sqlite").write_bytes(b"this is no database, and longer than the header of one is " * 4)


def another_table(cache: Path) -> None:
    """With rows for the very files, as an older version may have left them."""
    cache.mkdir()
    with closing(sqlite3.connect(cache / "hashes.sqlite")) as database, database:
        database.execute("CREATE TABLE files (path BLOB PRIMARY KEY, sha256 TEXT)")
        paths = [(os.fsencode(path),) for path in cache.parent.glob("*.jpg")]
        database.executemany("INSERT INTO files VALUES (?, 'wrong')", paths)


def a_file_for_the_folder(cache: Path) -> None:
    cache.write_text("")


def a_folder_for_the_file(cache: Path) -> None:
    (cache / "hashes.sqlite").mkdir(parents=True)


BROKEN = [no_database, another_table, a_file_for_the_folder, a_folder_for_the_file]


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_cache_that_cannot_be_used_costs_time_once_a_process_and_a_warning(
    files: list[str], reads: list[str], cache: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    spoil(cache)
    first = list(contents(files))
    assert first[3].sha256 == hashlib.sha256(b"content 3").hexdigest()
    assert list(contents(files)) == first
    assert sorted(reads) == files
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [f"{cache / 'hashes.sqlite'} cannot be written" in warning for warning in warnings] == [True]


def test_a_file_whose_name_is_not_utf8_is_remembered_too(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / os.fsdecode(b"caf\xe9.jpg"), b"latin-1")
    first = list(contents([path]))
    assert list(contents([path])) == first
    assert reads == [path]


def test_a_file_that_cannot_be_read_is_named(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be read: No such file") as caught:
        list(contents([*files, str(tmp_path / "gone.jpg")]))
    assert caught.value.where == str(tmp_path / "gone.jpg")
