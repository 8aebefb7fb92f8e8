"""`ddgd-ray store`: damage is found in full, and only what nobody will use is removed."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from ddgd_ray import cli
from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.storage.remote import Remote
from ddgd_ray.storage.remote_store import RemoteStore
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Artifact, Store, key_of
from ddgd_ray.storage.upkeep import collect_garbage, verify_all

INPUTS = {"latents": "a" * 64}


def publish(store: Store, steps: int) -> Artifact:
    spec = PretrainSpec(steps=steps)
    with store.scratch(key_of(spec, INPUTS)) as scratch:
        (scratch / "file.txt").write_text("hello")
        return store.publish(scratch, spec, INPUTS, {"loss": 0.5}, seconds=1.5)


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    store = Store(tmp_path / "store") if request.param == "folder" else RemoteStore(Remote(f"file://{tmp_path}/there"))
    store.prepare()
    return store


def test_every_artifact_is_read_and_the_damaged_one_set_aside(store: Store) -> None:
    sound, damaged = publish(store, 1), publish(store, 2)
    if isinstance(store, RemoteStore):
        for artifact in (sound, damaged):
            store._forget("pretrain", artifact.key)  # another host looks
        (name,) = store.remote.sizes(f"files/pretrain/{damaged.key}")
        store.remote.write(f"files/pretrain/{damaged.key}/{name}", b"jello")
    else:
        (damaged.path / "file.txt").write_text("jello")
    found = {checked.key: checked.problem for checked in verify_all(store)}
    assert found == {sound.key: "", damaged.key: "file.txt has another SHA-256 than when it was published"}
    assert [checked.problem for checked in verify_all(store)] == [""]


def test_what_dead_processes_left_goes_and_what_is_used_stays(store: Store) -> None:
    artifact = publish(store, 1)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True, text=True)
    (store.root / "scratch" / f"abc.{os.uname().nodename}.{dead.stdout.strip()}.123456").mkdir()
    (store.root / "kept" / artifact.key).mkdir(parents=True)
    (store.root / "kept" / ("f" * 64)).mkdir()
    (store.root / "kept" / ("f" * 64) / "manifest.json").write_text("{}")
    if isinstance(store, RemoteStore):
        store.remote.write(f"files/pretrain/{artifact.key}/dead/file.txt", b"half")
    removed = collect_garbage(store)
    assert (removed["scratch"], removed["checkpoints"], removed.get("uploads", 1)) == (1, 1, 1)
    assert (store.root / "kept" / ("f" * 64)).is_dir()
    found = store.usable("pretrain", artifact.key)
    assert found is not None
    compare_files(found)


def test_an_upload_that_began_during_the_listing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path / "cache"))
    store, key = RemoteStore(Remote(f"file://{tmp_path}/there")), "e" * 64
    store.prepare()
    sizes = Remote.sizes
    with ExitStack() as writer:

        def listed_late(remote: Remote, folder: str) -> dict[str, int]:
            if folder == "files":
                writer.enter_context(store.lease(key))
                store.remote.write(f"files/pretrain/{key}/copy/file.txt", b"half")
            return sizes(remote, folder)

        monkeypatch.setattr(Remote, "sizes", listed_late)
        assert collect_garbage(store)["uploads"] == 0
        assert list(sizes(store.remote, "files")) == [f"pretrain/{key}/copy/file.txt"]


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    artifact = publish(store, 1)
    for action, code, said in (("verify", 0, " artifacts, 0 damaged"), ("gc", 0, "removed scratch 0")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["store", action, "--run-dir", str(tmp_path)])
        assert ended.value.code == code
        assert said in capsys.readouterr().out
    (artifact.path / "file.txt").write_text("jello")
    with pytest.raises(SystemExit) as ended:
        cli.main(["store", "verify", "--run-dir", str(tmp_path)])
    assert ended.value.code == 6
    assert "file.txt has another SHA-256" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["store", "gc", "--damaged", "--run-dir", str(tmp_path)])
    assert not (store.root / "damaged").exists()
