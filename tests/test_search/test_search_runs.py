"""Searches as whole sweeps: started from another run, for several objectives, stopped and continued."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.conductor import Conductor, Event
from ddgd_ray.conduct.sweep import PROPOSALS, Result, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.errors import SpecError
from ddgd_ray.report.build import write_report
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run
from ddgd_ray.search.ask_tell import Drawn, Proposals
from ddgd_ray.spec.sweep import Sweep, read_sweep
from tests.conftest import TINY

SPACE = """\
finetune.memory_real.pop: {type: choice, values: [max_similarity, fifo]}
finetune.memory_real.size: {type: int, low: 8, high: 32}
"""
SEARCH = """\
search: {space: space.yaml, trials: 4, parallel: 2, startup: 2}
quality: [latents]
objective:
  also: [{metric: seconds, direction: minimize}, {metric: latents/coverage, direction: maximize}]
  constraints: [{metric: seconds, max: 1000}]
"""


@pytest.fixture(scope="module")
def grid_run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A grid of max_similarity and fifo at the preset's size of 32, two seeds."""
    return run_sweep(tiny(), tmp_path_factory.mktemp("runs"), run_in_process)


@pytest.fixture
def searching(tmp_path: Path) -> Callable[..., Sweep]:
    def read(more: str = "", space: str = SPACE, **overrides: Any) -> Sweep:
        (tmp_path / "space.yaml").write_text(space)
        head, _, rest = TINY.partition("vary:")
        rest = rest[rest.index("seeds:") :]
        text = head.replace("name: tiny", "name: searched") + rest.replace("distill: [0, 1]", "distill: [0]")
        (tmp_path / "sweep.yaml").write_text(
            text + (more or "search: {space: space.yaml, trials: 4, parallel: 2, startup: 2}\n")
        )
        return read_sweep(tmp_path / "sweep.yaml", {name.replace("__", "."): value for name, value in overrides.items()})

    return read


def test_a_search_starts_from_the_configurations_of_another_run(grid_run: Result, searching: Callable[..., Sweep]) -> None:
    sweep = searching(search__warm_start=("tiny",))
    result = run_sweep(sweep, grid_run.folder.run_dir, run_in_process)
    assert result.exit_code == 0
    kept = json.loads((result.folder.path / "warm_start.json").read_text())
    assert [one["params"] for one in kept["trials"]] == [
        {"finetune.memory_real.pop": pop, "finetune.memory_real.size": 32} for pop in ("fifo", "max_similarity")
    ]
    assert all(0 <= one["score"]["values"][0] <= 1 for one in kept["trials"])
    (grid_run.folder.path / "trials" / "fifo-s0.json").rename(grid_run.folder.path / "moved")  # the other run changes
    again = run_sweep(sweep, grid_run.folder.run_dir, run_in_process)
    (grid_run.folder.path / "moved").rename(grid_run.folder.path / "trials" / "fifo-s0.json")
    assert again.num_ran == 0
    assert [record.trial.params for record in again.records] == [record.trial.params for record in result.records]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"finetune.lambda_g": 0.5}, "2 made under other settings"),
        ({"evaluate.ipc": (3,)}, "2 made under other settings"),
        ({"search.warm_start": ("tinny",)}, "expected a readable sweep.json"),
        ({"search.warm_start": ("foreign",)}, "cannot start from itself"),
    ],
)
def test_a_warm_start_that_fits_nothing_is_refused(
    overrides: dict[str, Any], words: str, grid_run: Result, searching: Callable[..., Sweep]
) -> None:
    sweep = searching(**{"name": "foreign", "search.warm_start": ("tiny",)} | overrides)
    with pytest.raises(SpecError) as caught:
        run_sweep(sweep, grid_run.folder.run_dir, run_in_process)
    assert words in str(caught.value)
    assert "search.warm_start" in caught.value.where
    assert not (grid_run.folder.run_dir / "foreign" / "sweep.json").exists()


def test_what_lies_outside_the_space_is_skipped(grid_run: Result, searching: Callable[..., Sweep]) -> None:
    space = SPACE.replace("[max_similarity, fifo]", "[fifo, random]")
    sweep = searching(space=space, name="part", search__warm_start=("tiny",), search__trials=1)
    run_sweep(sweep, grid_run.folder.run_dir, run_in_process)
    kept = json.loads((grid_run.folder.run_dir / "part" / "warm_start.json").read_text())
    assert len(kept["trials"]) == 1
    assert kept["skipped"] == {"tiny": {"outside the space": 1}}


def test_several_objectives_give_a_front_in_the_report(tmp_path: Path, searching: Callable[..., Sweep]) -> None:
    sweep = searching(SEARCH)
    result = run_sweep(sweep, tmp_path / "runs", run_in_process)
    assert result.exit_code == 0
    store = open_store(tmp_path / "runs")
    report = write_report(result.folder.path, store)
    assert "## Pareto front, " in report.markdown
    assert "| arm | n | val_top1 (high) | seconds (low) | latents/coverage (high) |" in report.markdown
    ranking = read_run(result.folder.path, store).ranking
    front = report.markdown.partition("## Pareto front")[2]
    assert front.index(f"| {ranking.best} |") < front.index("Configurations that keep")


def test_a_search_that_is_stopped_proposes_the_same_when_continued(tmp_path: Path, searching: Callable[..., Sweep]) -> None:
    sweep = searching()
    calm = run_sweep(sweep, tmp_path / "calm", run_in_process)

    def stop_after_three(conductor: Conductor) -> None:
        def emit(event: Event) -> None:
            if event.kind == "trial":
                ended.append(event)
            if len(ended) == 3:
                conductor.stop("interrupted")

        ended: list[Event] = []
        conductor.emit = emit

    stopped = run_sweep(sweep, tmp_path / "stopped", run_in_process, on_start=stop_after_three)
    assert stopped.exit_code == 75
    (stopped.folder.path / PROPOSALS).unlink()  # a view: it may be lost
    result = run_sweep(sweep, tmp_path / "stopped", run_in_process)
    names = [(record.trial.name, record.trial.params) for record in calm.records]
    assert [(record.trial.name, record.trial.params) for record in result.records] == names
    assert (result.folder.path / PROPOSALS).read_bytes() == (calm.folder.path / PROPOSALS).read_bytes()


def test_a_file_of_proposals_that_skips_a_number_is_cut_there(tmp_path: Path) -> None:
    file = Proposals(tmp_path / "p.jsonl")
    for number in (0, 1, 3):
        file.add([Drawn(number, {"a": number}, "sampler")])
    assert [drawn.number for batch in file.read() for drawn in batch] == [0, 1]
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 2
