"""Leases among hosts: one holder at a time, none lost for ever, and no comparison of clocks."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddgd_ray.storage.leases import Holder, Lease, Pace, heartbeat_lease, needs_heartbeats, started_at, this_host
from ddgd_ray.storage.shared_files import FolderFiles
from ddgd_ray.storage.store import Store

PACE = Pace(beat_s=5, stale_s=30, poll_s=1)


class Clock:
    """Seconds that pass when somebody sleeps. start: what the host's clock shows, right or wrong."""

    def __init__(self, start: float) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FilesElsewhere(FolderFiles):
    """Makes everybody a process of a host of his own, so that nobody's end can be seen from here."""

    def create(self, name: str, data: bytes) -> bool:
        return super().create(name, data.replace(this_host().encode(), b"elsewhere"))

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data.replace(this_host().encode(), b"elsewhere"))


@pytest.fixture
def files(tmp_path: Path) -> FolderFiles:
    return FilesElsewhere(tmp_path / "leases")


def observer(files: FolderFiles, clock: Clock) -> Lease:
    return Lease(files, "key", PACE, clock=clock, sleep=clock.sleep)


def test_a_lease_is_held_by_one_and_free_after_its_release(files: FolderFiles) -> None:
    clock = Clock(0)
    with heartbeat_lease(files, "key", PACE):
        assert not observer(files, clock).look()
    assert observer(files, clock).look()


@pytest.mark.parametrize("skew_s", [-3600, 0, 3600])
def test_a_clock_that_is_an_hour_off_steals_no_living_lease_and_takes_a_dead_one_in_time(
    files: FolderFiles, skew_s: float
) -> None:
    holder_clock, clock = Clock(0), Clock(skew_s)
    holder, waiting = observer(files, holder_clock), observer(files, clock)
    assert holder.look()
    for _ in range(100):  # 500 s of life
        assert holder.beat()
        assert not waiting.look()
        clock.sleep(PACE.beat_s)
    died_at = clock.now
    while not waiting.look():
        clock.sleep(PACE.poll_s)
    assert PACE.stale_s - PACE.beat_s <= clock.now - died_at <= PACE.stale_s + PACE.poll_s


def test_a_stalled_holders_lease_is_taken_over_once_and_the_holder_learns_of_it(files: FolderFiles) -> None:
    holder = observer(files, Clock(0))
    assert holder.look()
    clocks = [Clock(start) for start in (0, 1e6, -50)]
    waiting = [observer(files, clock) for clock in clocks]
    assert not any(lease.look() for lease in waiting)
    for clock in clocks:
        clock.sleep(PACE.stale_s)
    assert [lease.look() for lease in waiting] == [True, False, False]
    assert not holder.beat()
    assert holder.is_lost
    holder.release()  # it is not his to free
    for clock in clocks:
        clock.sleep(PACE.poll_s)
    assert not waiting[1].look()


def test_observers_that_race_for_a_stale_lease_end_with_one_holder(files: FolderFiles) -> None:
    for round_ in range(20):
        lease = Lease(files, f"key{round_}", PACE)
        assert lease.look()
        clocks = [Clock(0) for _ in range(4)]
        waiting = [Lease(files, f"key{round_}", PACE, clock=clock, sleep=clock.sleep) for clock in clocks]
        for one, clock in zip(waiting, clocks, strict=True):
            one.look()
            clock.sleep(PACE.stale_s)
        barrier, won = threading.Barrier(4), []

        def race(one: Lease, barrier: threading.Barrier = barrier, won: list[bool] = won) -> None:
            barrier.wait()
            won.append(one.look())

        threads = [threading.Thread(target=race, args=(one,)) for one in waiting]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) == 1


def test_a_taker_that_died_half_way_does_not_block_the_lease_for_ever(files: FolderFiles) -> None:
    assert observer(files, Clock(0)).look()
    clock = Clock(0)
    first = observer(files, clock)
    first.look()
    clock.sleep(PACE.stale_s)
    write, files.write = files.write, None  # type: ignore[method-assign, assignment]  # it dies before it writes
    with pytest.raises(TypeError):
        first.look()
    files.write = write  # type: ignore[method-assign]
    later = Clock(0)
    second = observer(files, later)
    while not second.look():
        later.sleep(PACE.poll_s)
        assert later.now <= 3 * PACE.stale_s


def test_the_lease_of_a_dead_process_of_this_host_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from ddgd_ray.storage.leases import Lease\n"
        "from ddgd_ray.storage.shared_files import FolderFiles\n"
        f"Lease(FolderFiles(Path({str(tmp_path)!r})), 'key').acquire(); os._exit(137)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 137
    assert Lease(FolderFiles(tmp_path), "key").look()


def test_a_zombie_holds_no_lease(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        Lease(FolderFiles(tmp_path), "key").look()
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert Lease(FolderFiles(tmp_path), "key").look()
    os.waitpid(child, 0)


def test_a_process_number_that_was_used_again_is_another_process() -> None:
    mine = Holder.me()
    assert not mine.is_gone
    assert Holder(mine.token, mine.host, mine.pid, started="1").is_gone
    assert started_at(mine.pid) == mine.started


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 1}', b"\xff\xfe"])
def test_a_lease_that_cannot_be_read_goes_stale_like_any_other(files: FolderFiles, content: bytes) -> None:
    files.folder.mkdir()
    (files.folder / "key").write_bytes(content)
    clock = Clock(0)
    lease = observer(files, clock)
    assert not lease.look()
    clock.sleep(PACE.stale_s)
    assert lease.look()


def test_who_does_not_want_to_wait_for_the_living_is_told_at_the_first_heartbeat(files: FolderFiles) -> None:
    holder = observer(files, Clock(0))
    assert holder.look()
    clock = Clock(0)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now % PACE.beat_s == 0:
            holder.beat()

    second = Lease(files, "key", PACE, clock=clock, sleep=sleep)
    assert not second.acquire(unless_alive=True)
    assert clock.now <= 2 * PACE.beat_s
    assert str(second.holder).startswith("process ")


def test_heartbeats_go_on_by_themselves(files: FolderFiles) -> None:
    with heartbeat_lease(files, "key", Pace(beat_s=0.01)):
        seen = set()
        for _ in range(200):
            seen.add((files.folder / "key").read_bytes())
            threading.Event().wait(0.005)
            if len(seen) > 3:
                break
    assert len(seen) > 3
    assert list(files.folder.iterdir()) == []


def test_a_store_takes_heartbeats_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not needs_heartbeats(tmp_path)
    monkeypatch.setenv("DDGD_LEASES", "heartbeat")
    store = Store(tmp_path)
    with store.lease("a" * 64):
        assert (tmp_path / "leases" / ("a" * 64)).is_file()
    assert list((tmp_path / "leases").iterdir()) == []
