"""Folders whose names mean something else in an address: two of them never share one."""

import sqlite3
from pathlib import Path

import pytest

from ddgd_ray.storage.addresses import plain_link
from ddgd_ray.tracking.mlflow import connect
from ddgd_ray.tracking.tracker import default_uri


def test_a_plain_folder_is_its_own_address(tmp_path: Path) -> None:
    assert plain_link(tmp_path / "a b-é") == tmp_path / "a b-é"


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a%b?c#d"])
def test_another_is_reached_by_a_link_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    link = plain_link(tmp_path / name)
    assert not set("?#%") & set(str(link))
    assert link.resolve() == tmp_path / name
    assert plain_link(tmp_path / name) == link
    assert plain_link(tmp_path / f"{name}2") != link


def test_the_database_of_such_a_run_directory_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs?x#%20"
    runs.mkdir()
    connect(default_uri(runs)).create_experiment("here")
    with sqlite3.connect(runs / "mlflow.db") as database:
        assert ("here",) in database.execute("select name from experiments").fetchall()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "runs?x#%20"]
