"""Files are looked at before they are read: what is no file, or has no end, is an error at once."""

import os
import socket
from pathlib import Path

import pytest

from ddgd_ray.plain_files import NoPlainFile, is_plain_name, read_bytes, read_json, read_text


def test_what_is_no_regular_file_is_refused_with_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    expected = {"pipe": "named pipe", "folder": "folder", "link": "named pipe", "socket": "socket", "/dev/zero": "device"}
    for name, kind in expected.items():
        with pytest.raises(NoPlainFile, match=kind):
            read_bytes(tmp_path / name)


def test_a_link_that_leads_in_a_circle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        read_bytes(tmp_path / "a")


def test_no_more_than_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(NoPlainFile, match="more than 4 bytes"):
        read_bytes(tmp_path / "a", 4)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf[1]")
    assert (read_text(tmp_path / "a"), read_json(tmp_path / "a")) == ("[1]", [1])


@pytest.mark.parametrize(("text", "why"), [("[" * 100_000, "deep"), ("", "Expecting"), ("{", "Expecting"), ("\xff", "utf-8")])
def test_text_that_is_no_json_is_a_value_error(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=why):
        read_json(tmp_path / "a")


@pytest.mark.parametrize("name", ["a", "a/b.png", "..a", "a..b/c"])
def test_a_plain_name_stays_below_its_folder(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/", ".", "a\0", 3, None])
def test_a_name_that_may_lead_elsewhere_is_not_plain(name: object) -> None:
    assert not is_plain_name(name)
