"""A store behind a URL: hosts see nothing or everything, the first wins, slow and failing storage is waited for, then named."""

import json
import logging
import os
import pickle
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.errors import ArtifactError, DamagedArtifact, StageError
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.storage.addresses import is_url, local_folder, url_of
from ddgd_ray.storage.leases import Pace
from ddgd_ray.storage.mirror import Mirror
from ddgd_ray.storage.remote import Remote
from ddgd_ray.storage.remote_store import RemoteStore
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Artifact, Store, key_of

SPEC = PretrainSpec(steps=7)
INPUTS = {"latents": "a" * 64}
KEY = key_of(SPEC, INPUTS)
FAST = Pace(beat_s=0.1, stale_s=0.5, poll_s=0.02)
PATIENT = Pace(beat_s=0.1, stale_s=60, poll_s=0.02)  # no lease goes stale because the machine is busy
STALLED = Pace(beat_s=1000, stale_s=0.5, poll_s=0.02)

Host = Callable[..., RemoteStore]


def publish(store: Store, text: str = "hello") -> Artifact:
    with store.scratch(KEY) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file.txt").write_text(text)
        (scratch / "other.txt").write_text(text)
        return store.publish(scratch, SPEC, INPUTS, {"loss": 0.5}, seconds=1.5)


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place of each kind."""
    if request.param == "file":
        return f"file://{tmp_path}/there"
    return f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """host(name, url): the store as that host sees it, with a cache of its own."""

    def of(name: str, url: str, pace: Pace = PATIENT) -> RemoteStore:
        monkeypatch.setenv("DDGD_CACHE", str(tmp_path / name))
        store = RemoteStore(Remote(url, timeout_s=5), pace=pace)
        store.prepare()
        return store

    return of


class Faulty:
    """A file system with a plan: before each call, the next fault happens."""

    def __init__(self, fs: Any, faults: list[Callable[[], None]]) -> None:
        self.fs, self.faults, self.num_calls = fs, faults, 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            if self.faults:
                self.faults.pop(0)()
            return getattr(self.fs, name)(*args, **kwargs)

        return call


def with_faults(remote: Remote, *faults: Callable[[], None]) -> Faulty:
    fs, base = remote.opened
    faulty = Faulty(fs, list(faults))
    remote.__dict__["opened"] = (faulty, base)
    return faulty


def times_out() -> None:
    raise TimeoutError("the storage is slow")


def test_what_one_host_publishes_another_finds_and_reads(host: Host, url: str) -> None:
    a, b = host("a", url), host("b", url)
    assert not b.has("pretrain", KEY)
    assert b.get("pretrain", KEY) is None
    mine = publish(a)
    assert (mine.path / "sub" / "file.txt").read_text() == "hello"
    found = b.usable("pretrain", KEY)
    assert found is not None
    assert (found.metrics, found.seconds, found.path != mine.path) == ({"loss": 0.5}, 1.5, True)
    assert (found.path / "sub" / "file.txt").read_text() == "hello"
    assert b.has("pretrain", KEY)
    assert b.keys("pretrain") == [KEY]
    compare_files(found)


def test_metrics_are_read_without_the_files_and_then_without_the_network(host: Host, url: str) -> None:
    publish(host("a", url))
    b = host("b", url)
    found = b.get("pretrain", KEY)
    assert found is not None
    assert not found.folder.exists()
    faulty = with_faults(b.remote)
    again = b.get("pretrain", KEY)
    assert again is not None
    assert (again.metrics, faulty.num_calls) == ({"loss": 0.5}, 0)


def test_a_reader_during_the_upload_sees_nothing(host: Host, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = host("a", url), host("b", url)
    seen = []
    create = a.remote.create

    def look_first(name: str, data: bytes) -> bool:
        seen.append((b.get("pretrain", KEY), b.keys("pretrain")))
        return create(name, data)

    monkeypatch.setattr(a.remote, "create", look_first)
    publish(a)
    assert seen == [(None, [])]
    assert b.get("pretrain", KEY) is not None


def test_the_second_of_two_writers_is_dropped_counted_and_leaves_nothing(
    host: Host, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = host("a", url), host("b", url)
    publish(a, "first")
    with caplog.at_level(logging.WARNING):
        second = publish(b, "second")
    assert (second.path / "sub" / "file.txt").read_text() == "first"
    assert (b.num_dropped, "our copy is dropped (1 so far)" in caplog.text) == (1, True)
    assert len(a.remote.sizes(f"files/pretrain/{KEY}")) == 2


def test_a_stalled_holder_is_taken_over_and_its_late_publication_dropped(
    host: Host, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = host("a", url, STALLED), host("b", url, FAST)
    with caplog.at_level(logging.WARNING), a.lease(KEY):
        assert b.in_progress() == [KEY[:16]]
        with b.lease(KEY):  # after 0.5 s without a heartbeat
            publish(b, "first")
        late = publish(a, "second")
    assert (late.path / "other.txt").read_text() == "first"
    assert "left its lease behind" in caplog.text
    assert a.num_dropped == 1
    assert a.in_progress() == []


RACE = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_remote_store as me
store = me.RemoteStore(me.Remote(sys.argv[2]), pace=me.PATIENT)
store.root.mkdir(parents=True)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    with store.lease(me.KEY):
        if store.get("pretrain", me.KEY) is None:
            me.publish(store, sys.argv[3])
            print("made", flush=True)
me.publish(store, sys.argv[3])
print("dropped", store.num_dropped, flush=True)
"""


def test_two_processes_that_race_for_a_key_make_it_once(url: str, tmp_path: Path, host: Host) -> None:
    racers = []
    for name in ("first", "second"):
        command = [sys.executable, "-c", RACE, str(Path(__file__).parent), url, name]
        environment = os.environ | {"DDGD_CACHE": str(tmp_path / name)}
        racers.append(subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    answers = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        answers.append(racer.communicate(timeout=60)[0].splitlines())
        assert racer.returncode == 0
    assert sorted(line for answer in answers for line in answer) == ["dropped 1", "dropped 1", "made"]
    found = host("third", url).usable("pretrain", KEY)
    assert found is not None


def publish_in_child(store: Store, **environment: str) -> int:
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        try:
            with store.lease(KEY):
                publish(store)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_host_that_dies_at_any_commit_point_leaves_all_or_nothing_to_the_others(tmp_path: Path, host: Host) -> None:
    points = tmp_path / "points"
    slow = Pace(beat_s=100)  # heartbeats would be points of their own
    calm = host("calm", f"file://{tmp_path}/calm-there", slow)
    assert publish_in_child(calm, DDGD_CRASH_COUNT=str(points)) == 0
    names = [line.split()[2] for line in points.read_text().splitlines()]
    assert {"before-lease", "after-upload", "after-remote-publish", "after-rename"} <= set(names)
    published = next(n for n, name in enumerate(names) if name == "after-create" and n > names.index("after-upload"))
    for number in range(1, len(names) + 1):
        url = f"file://{tmp_path}/there-{number}"
        a = host(f"a{number}", url, slow)
        assert publish_in_child(a, DDGD_CRASH_AT=str(number)) == 137
        found = host(f"b{number}", url).sound("pretrain", KEY)
        assert (found is not None) == (number > published)
        a.clean_scratch()
        with a.lease(KEY):  # that of the dead process is free at once
            if a.get("pretrain", KEY) is None:
                publish(a)
        again = a.usable("pretrain", KEY)
        assert again is not None
        assert (again.path / "other.txt").read_text() == "hello"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_object_is_seen_on_its_way_set_aside_and_made_again(host: Host, url: str, damage: str) -> None:
    a, b = host("a", url), host("b", url)
    publish(a)
    (name,) = [name for name in a.remote.sizes("files") if name.endswith("sub/file.txt")]
    if damage == "remove":
        a.remote.remove(f"files/{name}")
    else:
        a.remote.write(f"files/{name}", b"hell" if damage == "truncate" else b"jello")
    with pytest.raises(DamagedArtifact, match=r"file.txt|missing"):
        b.usable("pretrain", KEY)
    assert b.get("pretrain", KEY) is None
    assert not b.has("pretrain", KEY)
    assert len(b.remote.sizes("damaged")) == 1
    publish(b)
    assert host("c", url).usable("pretrain", KEY) is not None


def test_what_another_host_set_aside_is_not_taken_from_the_cache_when_it_is_to_be_made(host: Host, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    a, b = host("a", url), host("b", url)
    publish(a)
    assert b.usable("pretrain", KEY) is not None
    a.remote.remove(f"manifests/pretrain/{KEY}.json")
    assert b.has("pretrain", KEY)
    assert not b.still_has("pretrain", KEY)
    assert b.get("pretrain", KEY) is None
    publish(b)
    assert b.still_has("pretrain", KEY)


def test_a_damaged_manifest_is_set_aside_for_all_hosts(host: Host, url: str) -> None:
    a, b = host("a", url), host("b", url)
    publish(a)
    a.remote.write(f"manifests/pretrain/{KEY}.json", b"")
    assert b.sound("pretrain", KEY) is None
    publish(b)
    assert host("c", url).usable("pretrain", KEY) is not None


def test_a_damaged_local_copy_is_fetched_again(host: Host, url: str, caplog: pytest.LogCaptureFixture) -> None:
    a, b = host("a", url), host("b", url)
    publish(a)
    found = b.usable("pretrain", KEY)
    assert found is not None
    (found.path / "other.txt").write_text("jello")
    again = b.usable("pretrain", KEY)
    assert again is not None
    assert (again.path / "other.txt").read_text() == "hello"
    assert "fetched again" in caplog.text


def test_not_there_is_asked_again_after_a_second_and_there_never_again(host: Host, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    a, b = host("a", url), host("b", url)
    faulty = with_faults(b.remote)
    assert [b.has("pretrain", KEY) for _ in range(50)] == [False] * 50
    assert faulty.num_calls == 1
    publish(a)
    time.sleep(1.1)
    assert [b.has("pretrain", KEY) for _ in range(50)] == [True] * 50
    assert faulty.num_calls == 2


def test_storage_that_fails_three_times_is_tried_again(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = host("a", f"file://{tmp_path}/there")
    a.remote.tries = 5
    with_faults(a.remote, times_out, times_out, times_out)
    with caplog.at_level(logging.WARNING):
        publish(a)
    assert caplog.text.count("the storage is slow") == 3
    assert host("b", a.remote.url).usable("pretrain", KEY) is not None


def test_what_cannot_be_cleared_away_is_left_behind(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is published: a clean-up that fails must not undo that."""
    a = host("a", f"file://{tmp_path}/there")
    (a.keep(KEY) / "checkpoint").write_text("as far as this")
    a.push_kept(KEY)
    publish(a)

    def down(prefix: str) -> None:
        raise StageError("no answer", code="storage", where=str(a.remote))

    monkeypatch.setattr(a.remote, "remove_tree", down)
    a.drop_kept(KEY)
    assert caplog.text.count("left behind") == 1


def test_storage_that_hangs_is_given_up_in_time_and_named_without_its_password(tmp_path: Path) -> None:
    word = uuid.uuid4().hex
    remote = Remote(f"file://user:{word}@{tmp_path}/there?token={word}", timeout_s=0.1, tries=2)
    remote.__dict__["opened"] = (Faulty(None, [lambda: time.sleep(30)] * 2), "/x")
    started = time.monotonic()
    with pytest.raises(StageError, match="no answer") as caught:
        remote.read("something")
    assert time.monotonic() - started < 3
    assert caught.value.exit_code == 5
    assert "file://user:***@" in str(caught.value)
    assert word not in str(caught.value)


def test_a_heartbeat_outlives_a_pause_of_the_storage(host: Host, tmp_path: Path) -> None:
    a, b = host("a", f"file://{tmp_path}/there", Pace(beat_s=0.05)), host("b", f"file://{tmp_path}/there")
    with a.lease(KEY):
        faulty = with_faults(a.remote, *[times_out] * 3)
        counter = json.loads(b.remote.read(f"leases/{KEY}") or b"{}")["counter"]
        until = time.monotonic() + 10
        later = counter
        while later <= counter + 1 and time.monotonic() < until:
            time.sleep(0.02)
            later = json.loads(b.remote.read(f"leases/{KEY}") or b"{}")["counter"]
    assert not faulty.faults
    assert later > counter + 1


def test_a_store_without_conditional_writes_is_found_out_and_still_has_one_first(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddgd_ray.storage.remote.SETTLE_S", 0.01)
    monkeypatch.setattr(Remote, "_is_local", False)

    class Ignores:
        def __init__(self, fs: Any) -> None:
            self.fs = fs

        def __getattr__(self, name: str) -> Any:
            return getattr(self.fs, name)

        def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
            self.fs.pipe_file(path, data)

    remote = Remote(f"file://{tmp_path}/there", timeout_s=5)
    fs, base = remote.opened
    remote.__dict__["opened"] = (Ignores(fs), base)
    remote.prepare()
    assert not remote.is_conditional
    assert not pickle.loads(pickle.dumps(remote)).is_conditional
    assert remote.create("x", b"first")
    assert not remote.create("x", b"second")
    assert remote.read("x") == b"first"


def test_what_a_dead_host_kept_is_there_for_the_next_one(host: Host, url: str) -> None:
    a = host("a", url)
    keep = a.keep(KEY)
    (keep / "step-00000001").mkdir()
    (keep / "step-00000001" / "model.safetensors").write_bytes(b"m" * 1000)
    (keep / "step-00000001" / "manifest.json").write_text("{}")
    (keep / "unfinished-00000002").mkdir()
    (keep / "unfinished-00000002" / "model.safetensors").write_bytes(b"half")
    a._mirrors[KEY].push()
    (keep / "step-00000002").mkdir()
    (keep / "step-00000002" / "manifest.json").write_text("{}")
    (keep / "step-00000001" / "manifest.json").unlink()
    (keep / "step-00000001" / "model.safetensors").unlink()
    a._mirrors[KEY].push()
    a._mirrors[KEY].stop(push=False)  # here it dies
    b = host("b", url)
    with b.lease(KEY):
        kept = b.keep(KEY)
        assert [path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()] == [
            "step-00000002/manifest.json"
        ]
        publish(b)
        b.drop_kept(KEY)
    assert b.remote.sizes("kept") == {}
    assert not kept.exists()


def test_a_checkpoint_is_uploaded_while_the_stage_goes_on(host: Host, tmp_path: Path) -> None:
    a = host("a", f"file://{tmp_path}/there")
    with a.lease(KEY):
        (a.keep(KEY) / "curves.jsonl").write_text("{}\n")
        until = time.monotonic() + 10
        while not a.remote.sizes("kept") and time.monotonic() < until:
            time.sleep(0.05)
        assert list(a.remote.sizes("kept")) == [f"{KEY}/curves.jsonl"]


def test_a_run_behind_a_url_has_one_driver_among_hosts_and_outlives_it(host: Host, tmp_path: Path, url: str) -> None:
    a = host("a", url)
    first = RunFolder(url, "tiny")
    first.prepare()
    with first.lock(), first.remote_copy.held(PATIENT):
        (first.trials / "one.json").write_text("{}")
        (first.path / "sweep.log").write_text("log")
        assert host("b", url).root != a.root
        second = RunFolder(url, "tiny")
        second.prepare()
        with pytest.raises(ArtifactError, match=r"locked by process \d+ on"), second.lock(), second.remote_copy.held(PATIENT):
            pass
    second.remote_copy.pull()
    assert (second.trials / "one.json").read_text() == "{}"
    assert (second.path / "sweep.log").read_text() == "log"
    with second.lock(), second.remote_copy.held(PATIENT):
        pass


def test_a_run_whose_drivers_host_died_goes_on_elsewhere(host: Host, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there"
    a = host("a", url)
    a.remote.write("leases/run-tiny", b'{"token": "x", "host": "elsewhere", "pid": 1, "started": "1", "counter": 7}')
    folder = RunFolder(url, "tiny")
    folder.prepare()
    started = time.monotonic()
    with folder.lock(), folder.remote_copy.held(FAST):
        assert FAST.stale_s <= time.monotonic() - started < 60 * FAST.stale_s


def test_a_job_whose_host_died_goes_on_elsewhere_though_the_hosts_share_their_cache(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/there"
    host("shared", url).remote.write(
        "leases/run-tiny", b'{"token": "x", "host": "elsewhere", "pid": 1, "started": "1", "counter": 7}'
    )
    folder = RunFolder(url, "tiny")
    folder.prepare()
    (folder.path / "lock").write_text("process 1 on elsewhere since 2020-01-01 00:00:00 for job slurm/41\n")
    monkeypatch.setenv("DDGD_JOB", "slurm/41")
    with folder.lock(), folder.remote_copy.held(FAST):
        assert folder.remote_copy.holder().startswith(f"process {os.getpid()} ")


def test_a_store_travels_to_workers_without_its_connections(host: Host, url: str) -> None:
    a = host("a", url)
    publish(a)
    copy = pickle.loads(pickle.dumps(host("b", url)))
    assert copy.root.is_relative_to(Path(os.environ["DDGD_CACHE"]))
    assert copy.usable("pretrain", KEY) is not None


def test_the_local_folder_of_a_url_says_what_it_stands_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DDGD_CACHE", str(tmp_path))
    folder = local_folder("s3://bucket/prefix/")
    assert folder == local_folder("s3://bucket/prefix")
    assert url_of(folder) == "s3://bucket/prefix"
    assert (folder / "url").stat().st_mode & 0o077 == 0
    assert str(open_store(folder)) == "s3://bucket/prefix"
    assert type(open_store(tmp_path)) is Store
    assert not is_url("C:/x")


@pytest.mark.parametrize(("url", "named"), [("s3x://bucket/a", "s3x"), ("gs://bucket/a", "gcsfs")])
def test_a_url_that_nothing_here_can_open_is_an_error_with_a_way_out(url: str, named: str) -> None:
    with pytest.raises(StageError, match=named) as caught:
        Remote(url).prepare()
    assert caught.value.exit_code == 5


def test_a_bucket_that_is_not_there_is_an_error_with_a_way_out(s3_bucket: str) -> None:
    with pytest.raises(StageError, match="create the bucket"):
        Remote("s3://no-such-bucket/x").prepare()


def test_a_store_costs_no_imports_until_it_is_asked() -> None:
    code = "import sys; from ddgd_ray.run.folder import open_store; open_store('s3://b/p'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "ray", "mlflow", "fsspec", "s3fs", "boto3"} & set(done.stdout.split())


@pytest.mark.parametrize("name", ["/{}", "../../../{}", "sub/../../../../{}"])
def test_a_forged_manifest_behind_a_url_writes_nothing_here(host: Host, tmp_path: Path, name: str) -> None:
    url = f"file://{tmp_path}/there"
    a = host("a", url)
    publish(a)
    path = tmp_path / "there" / "manifests" / "pretrain" / f"{KEY}.json"
    manifest = json.loads(path.read_text())
    victim = tmp_path / "victim.txt"
    forged = name.format(str(victim).lstrip("/") if name.startswith("/") else "victim.txt")
    manifest["files"][forged] = manifest["files"]["other.txt"]
    there = tmp_path / "there" / "files" / "pretrain" / KEY / manifest["copy"]
    source = Path(f"{there}/{forged}")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("hello")
    path.write_text(json.dumps(manifest))
    before = victim.read_text() if victim.exists() else None
    b = host("b", url)
    with pytest.raises(DamagedArtifact, match="not below its folder"):
        b.usable("pretrain", KEY)
    assert (victim.read_text() if victim.exists() else None) == before
    assert not path.exists(), "the manifest is set aside"


def test_a_record_behind_a_url_with_the_name_of_another_folder_is_not_fetched(tmp_path: Path) -> None:
    class Listing(Remote):
        def sizes(self, prefix: str) -> dict[str, int]:
            return {f"/{tmp_path}/victim.txt": 5, "../victim.txt": 5, f"{tmp_path}/victim.txt": 5}

    folder = tmp_path / "here" / "run"
    folder.mkdir(parents=True)
    mirror = Mirror(Listing(f"file://{tmp_path}/there"), "runs/run", folder)
    assert mirror.pull(prefer_remote=True) == 0
