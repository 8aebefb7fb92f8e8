"""Whole sweeps of digits over the ways to make, choose and label a set: each option from its YAML line to its row."""

from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import Result, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.report.build import write_report
from ddgd_ray.report.verify import verify_run
from ddgd_ray.run.folder import open_store
from tests.published import published

ONE_SEED: dict[str, Any] = {"seeds.distill": (0,), "controls": ()}


def swept(tiny: Any, folder: Path, **overrides: Any) -> Result:
    """A sweep of one seed that varies nothing but what is given."""
    return run_sweep(tiny(ONE_SEED | overrides), folder, run_in_process)


def table(result: Result) -> str:
    path = result.folder.path
    write_report(path, open_store(path.parent))
    return (path / "report" / "table.md").read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all sweeps here: they share their backbone."""
    return tmp_path_factory.mktemp("ways")


def test_guides_and_starts_are_arms_of_a_table(tiny: Any, runs: Path) -> None:
    guides = swept(tiny, runs, name="guides", vary={"sample.guide": ("none", "mode", "manifold", "features", "transport")})
    assert guides.exit_code == 0
    assert all(f"| {arm} |" in table(guides) for arm in ("none", "mode", "manifold", "features", "transport"))
    path = guides.folder.path
    assert not verify_run(path, open_store(runs), path / "report").problems
    starts = swept(
        tiny,
        runs,
        name="starts",
        vary={"sample.start": ("noise", "prototype", "inversion")},
        set=dict(tiny().spec.set) | {"sample.sampler": "ddim", "sample.guide": "mode"},
    )
    assert starts.exit_code == 0
    stages = [name.partition("/")[0] for name in published(runs)]
    assert (stages.count("modes"), stages.count("invert")) == (2, 1)  # modes with tangent spaces and without
