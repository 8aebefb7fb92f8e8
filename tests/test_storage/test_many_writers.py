"""Eight processes on one store: every key is made once, whatever fails, dies or stalls meanwhile."""

import multiprocessing
import os
import random
from pathlib import Path

import pytest

from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.storage.leases import Pace
from ddgd_ray.storage.remote import Remote
from ddgd_ray.storage.remote_store import RemoteStore
from ddgd_ray.storage.store import Store, key_of

NUM_PROCESSES, NUM_KEYS = 8, 125  # 1000 claims
INPUTS = {"latents": "a" * 64}
SPECS = [PretrainSpec(steps=number) for number in range(1, NUM_KEYS + 1)]
PACE = Pace(beat_s=0.5, stale_s=60.0, poll_s=0.01)  # the dead are seen to be dead: they are of this host


def work(store: Store, seed: int, journal: Path, num_keys: int) -> None:
    """Claim every key in an order of our own; commit it, fail at it, or die over it, until all are there."""
    chance = random.Random(seed)
    order = chance.sample(SPECS[:num_keys], num_keys)
    while order:
        spec = order.pop(0)
        key = key_of(spec, INPUTS)
        with store.lease(key):
            if store.get("pretrain", key) is not None:
                continue
            fate = chance.random()
            if fate < 0.05:
                os._exit(137)
            try:
                with store.scratch(key) as scratch:
                    (scratch / "by.txt").write_text(f"{seed}")
                    if fate < 0.2:
                        raise RuntimeError("this attempt fails")
                    store.publish(scratch, spec, INPUTS, {"loss": 0.5}, seconds=1.0)
                    with journal.open("a") as file:
                        file.write(f"{key} {seed}\n")
            except RuntimeError:
                order.append(spec)


@pytest.mark.parametrize(
    ("kind", "num_keys"), [("flock", NUM_KEYS), ("heartbeat", 50), ("url", 25)], ids=["flock", "heartbeat", "url"]
)
def test_of_a_thousand_claims_none_is_lost_or_doubled(
    kind: str, num_keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    if kind == "heartbeat":
        monkeypatch.setenv("DDGD_LEASES", "heartbeat")

    def as_host(number: int) -> Store:
        if kind != "url":
            return Store(tmp_path / "store", pace=PACE)
        monkeypatch.setenv("DDGD_CACHE", str(tmp_path / f"host{number % 3}"))  # two or three processes share one
        return RemoteStore(Remote(f"file://{tmp_path}/there", timeout_s=20), pace=PACE)

    context = multiprocessing.get_context("fork")
    for round_ in range(20):  # a process that died is started again
        workers = []
        for number in range(NUM_PROCESSES):
            store = as_host(number)
            store.prepare()
            seed = 100 * round_ + number
            workers.append(context.Process(target=work, args=(store, seed, journal, num_keys)))
            workers[-1].start()
        for worker in workers:
            worker.join(60)
        if all(worker.exitcode == 0 for worker in workers):
            break
    store = as_host(0)
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert (
        sorted(key for key, _ in lines) == sorted(key_of(spec, INPUTS) for spec in SPECS[:num_keys]) == store.keys("pretrain")
    )
    for key, seed in lines:
        artifact = store.usable("pretrain", key)
        assert artifact is not None
        assert (artifact.path / "by.txt").read_text() == seed
    store.clean_scratch()
    assert store.in_progress() == []
