"""Rows without a store, and a store of manifests alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.report.results import Row
from ddgd_ray.store import Store

Publish = Callable[..., list[str]]


@pytest.fixture
def row() -> Callable[..., Row]:
    """row(arm, seed, **metrics), the rest by name."""

    def build(arm: str = "arm", seed: int = 0, **given: Any) -> Row:
        place = {"params": {}, "is_control": False, "network": "net", "ipc": 20, "evaluate_seed": 0, "protocol": "quick"}
        place |= {name: given.pop(name) for name in list(given) if name in place}
        key = given.pop("key", f"{arm}-{seed}-{place['network']}-{place['evaluate_seed']}-{place['protocol']}-{place['ipc']}")
        tested_by = given.pop("tested_by", ("evaluate", key) if "top1_last" in given else ())
        return Row(arm=arm, seed=seed, key=key, tested_by=tested_by, metrics=given, **place)

    return build


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def publish(store: Store) -> Publish:
    """Put an artifact's manifest into the store; returns [stage, key]."""

    def write(stage: str, key: str, metrics: dict[str, float], **protocol: str) -> list[str]:
        folder = store.root / stage / key
        folder.mkdir(parents=True)
        manifest = {"schema": 1, "key": key, "stage": stage, "metrics": metrics, "seconds": 2.0, "spec": {"protocol": protocol}}
        (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
        return [stage, key]

    return write
