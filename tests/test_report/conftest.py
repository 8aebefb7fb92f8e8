"""Rows by hand, a store, and one small run that really ran."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import Row
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.storage.store import Store
from tests import run_parts


@pytest.fixture
def row() -> Callable[..., Row]:
    return run_parts.row


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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
    """run_of(rows, trials, **of the sweep file): a run that has these rows, and these trials besides."""

    def build(rows: list[Row], others: list[TrialRecord] | None = None, **asked: Any) -> Run:
        return run_parts.run_with(tmp_path / "made", store, rows, others or [], **asked)

    return build
