"""A sweep whose store is behind a URL: the same results, and any host goes on where another one stopped."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddgd_ray import cli
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_in_process, run_job
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.reading import read_run
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import stop_now_file
from ddgd_ray.storage.store import Store

SMALL = {"seeds.distill": (0,)}


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """on_host("b"): from now on this process has that host's cache."""
    before = os.environ["DDGD_CACHE"]
    caches = tmp_path_factory.mktemp("caches")

    def go(name: str) -> None:
        os.environ["DDGD_CACHE"] = str(caches / name)

    yield go
    os.environ["DDGD_CACHE"] = before


@pytest.fixture(scope="module")
def url(s3_bucket: str, tiny: Callable[..., Sweep], on_host: Callable[[str], None]) -> str:
    """A sweep that host a began and host b finished."""
    url = f"{s3_bucket}/runs"
    on_host("a")

    def four_jobs(conductor: Conductor, store: Store, resources: ResourcesSpec) -> None:
        for _ in range(4):
            job = conductor.next()
            assert job is not None
            conductor.ended(job.id, run_job(job, store, resources))

    first = run_sweep(tiny(SMALL), url, four_jobs)
    assert (first.exit_code, first.num_ran) == (75, 4)
    on_host("b")
    second = run_sweep(tiny(SMALL), url, run_in_process)
    assert (second.exit_code, second.failed) == (0, [])
    return url


def table(result: Result, run_dir: Path | str) -> dict[str, dict[str, float]]:
    rows = read_run(result.folder.path, open_store(run_dir)).rows
    timing = ("seconds", "_s", "per_second")
    return {row.key: {name: value for name, value in row.metrics.items() if not name.endswith(timing)} for row in rows}


def test_two_hosts_make_the_table_that_one_makes_in_a_folder(
    url: str, tiny: Callable[..., Sweep], tmp_path: Path, on_host: Callable[[str], None]
) -> None:
    in_folder = run_sweep(tiny(SMALL), tmp_path, run_in_process)
    on_host("c")
    again = run_sweep(tiny(SMALL), url, run_in_process)
    assert again.num_ran == 0
    assert table(again, url) == table(in_folder, tmp_path) != {}


def test_status_and_report_take_a_url(url: str, on_host: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    on_host("d")
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", f"{url}/tiny", "--json"])
    assert ended.value.code == 0
    status = json.loads(capsys.readouterr().out)
    assert status["trials"]["done"] > 0
    assert status["stages"]["evaluate"]["done"] > 0
    assert status["stages"]["evaluate"]["waiting"] == 0
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", f"{url}/tiny"])
    assert ended.value.code == 0
    assert "fifo" in capsys.readouterr().out
    on_host("e")
    with pytest.raises(SystemExit):
        cli.main(["report", f"{url}/tiny"])
    assert (open_store(url).root.parent / "tiny" / "report" / "table.md").is_file()


def test_an_order_to_stop_from_another_host_reaches_the_driver(
    tmp_path: Path, on_host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddgd_ray.run.remote_copy.LOOK_S", 0.05)
    url = f"file://{tmp_path}/there"
    on_host("driver")
    driver = RunFolder(url, "tiny")
    driver.prepare()
    on_host("other")
    other = RunFolder(url, "tiny")
    other.prepare()
    assert (other.holder(), other.remote_copy.holder()) == ("", "")
    with driver.lock(), driver.remote_copy.held():
        assert other.remote_copy.holder().startswith("process ")
        other.remote_copy.order_stop(now=True)
        deadline = time.monotonic() + 10
        while not stop_now_file(driver.stop_file).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert driver.is_told_to_stop
        driver.withdraw_stop()
        time.sleep(0.3)
        assert not driver.is_told_to_stop
    assert other.remote_copy.holder() == ""
