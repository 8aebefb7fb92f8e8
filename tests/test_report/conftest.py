"""Rows without a store, and a store of manifests alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row
from ddgd_ray.spec.preset import read_preset
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store

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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Sweep]) -> Path:
    """The folder of a small run with a numeric grid, controls and quality. Made once: copy it before changing anything."""
    runs = tmp_path_factory.mktemp("report-runs")
    changes = {"vary": {"finetune.lambda_g": (0.0, 0.128)}, "controls": ("random_real", "plain", "full_data")}
    few = {"images.validation_per_class": 110}  # 30 a class are left to train on
    sweep = tiny({**changes, **few, "quality": ("latents",), "seeds.distill": (0, 1)})
    return run_sweep(sweep, runs, run_in_process).folder.path


@pytest.fixture
def run_of(store: Store, tmp_path: Path) -> Callable[..., Run]:
    """run_of(rows, **of the spec): a run that has these rows and no artifacts."""

    def build(rows: list[Row], records: list[dict[str, Any]] | None = None, **given: Any) -> Run:
        spec = {"name": "made", "preset": "digits", "vary": {}, "search": None, "quality": [], "controls": []}
        spec |= {"seeds": {"distill": [0], "evaluate": [0]}, "evaluate": {"networks": ["net"], "ipc": [20]}}
        spec |= {"objective": {"metric": "val_top1", "direction": "maximize"}, **given}
        identity = {"settings": read_preset("digits").data, "space": {}, "preset": "digits", "vary": spec["vary"]}
        return Run(tmp_path / "made", {"spec": spec, "identity": identity}, records or [], rows, store)

    return build
