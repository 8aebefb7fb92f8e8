"""A sweep small enough to run in a second, and one shared Ray instance."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.spec.sweep import Sweep, read_sweep

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TINY = """\
name: tiny
preset: digits
set:
  backbone.layers: 1
  backbone.steps: 4
  finetune.steps: 3
  finetune.batch_size: 20
  sample.steps: 2
  evaluate.protocol.steps: 4
  evaluate.protocol.steps_large: 4
  evaluate.protocol.num_tests: 2
vary:
  finetune.memory_real.pop: [max_similarity, fifo]
seeds:
  distill: [0, 1]
  evaluate: [0]
evaluate:
  networks: [convnet3_slim]
  ipc: [2]
controls: [random_real]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process a file, so that its fixtures are made once, and one for all tests that need Ray."""
    for item in items:
        needs_ray = "ray_cluster" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if needs_ray else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes into the home folder; processes that tests start inherit this."""
    os.environ["DDGD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Callable[..., Sweep]:
    """The tiny sweep, with overrides by dotted path."""

    def read(overrides: dict[str, Any] | None = None) -> Sweep:
        return read_sweep(tiny_file, overrides or {})

    return read


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that need it: starting one costs seconds."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ddgd_ray.engine.ray_tune import SETTINGS, WAITER

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    ray.init(
        num_cpus=2, resources={WAITER: 1000}, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000
    )
    yield
    ray.shutdown()
