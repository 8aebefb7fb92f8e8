"""Whatever objective a sweep names, its report names the best arm and draws what there is to draw; runs are planned ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.report.build import Report, write_report
from ddgd_ray.report.notes import selection_note
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.storage.store import MANIFEST

MadeRun = Callable[..., Path]
SECONDS = {"metric": "seconds", "direction": "minimize"}
BETTER, WORSE = "0.008", "0.0"
"""By accuracy and by coverage; as fast as one another until `slow_down` says otherwise."""


def opened(folder: Path) -> Run:
    return read_run(folder, open_store(folder.parent))


def reported(folder: Path) -> Report:
    return write_report(folder, open_store(folder.parent), with_page=True)


def page_of(report: Report) -> str:
    assert report.page is not None
    return report.page.read_text()


def slow_down(folder: Path, arm: str, by_s: float) -> None:
    """Make every sampling of an arm take so much longer."""
    run = opened(folder)
    for trial in run.of_arm(arm):
        assert trial.set is not None
        manifest = run.store.root / trial.set.stage / trial.set.key / MANIFEST
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"seconds": content["seconds"] + by_s}))


def test_two_objectives_have_the_fronts_table_and_its_figure(made_run: MadeRun) -> None:
    folder = made_run({"objective": {"metric": "val_top1", "also": (SECONDS,)}})
    slow_down(folder, BETTER, 3.0)
    report = reported(folder)
    assert "## Pareto front, 2 of 2 configurations" in report.markdown, "one is better, the other is faster"
    page = page_of(report)
    assert 'data-title="Pareto front, 2 of 2 configurations"' in page
    assert "<h3>Pareto front, val_top1 and seconds</h3>" in page
    assert "Not beaten by any other: 0.008, 0.0. val_top1: maximize; seconds: minimize." in page
    assert f"**{BETTER}**" in report.brief
    slow_down(folder, WORSE, 30.0)
    assert "## Pareto front, 1 of 2 configurations" in reported(folder).markdown


def test_three_objectives_have_a_figure_for_each_after_the_first(made_run: MadeRun) -> None:
    further = (SECONDS, {"metric": "latents/coverage", "direction": "maximize"})
    page = page_of(reported(made_run({"objective": {"metric": "val_top1", "also": further}})))
    for second in ("seconds", "latents/coverage"):
        assert f"<h3>Pareto front, val_top1 and {second}</h3>" in page


@pytest.mark.parametrize(
    ("objective", "best", "said"),
    [
        ({"metric": "val_top1"}, BETTER, "the test images chose nothing"),
        (SECONDS, WORSE, "no image chose"),
        ({"metric": "core_hours", "direction": "minimize"}, WORSE, "no image chose"),
        ({"metric": "latents/coverage"}, BETTER, "by features latents; the test images chose nothing"),
        ({"metric": "top1_last"}, BETTER, "an oracle"),
    ],
    ids=["accuracy", "seconds", "core-hours", "coverage", "oracle"],
)
def test_the_report_names_the_best_arm_by(made_run: MadeRun, objective: dict[str, Any], best: str, said: str) -> None:
    folder = made_run({"objective": objective})
    slow_down(folder, BETTER, 3.0)
    report = reported(folder)
    (line,) = [line for line in report.brief.splitlines() if line.startswith("Best by")]
    assert f"Best by {objective['metric']}" in line
    assert f"**{best}**" in line
    assert said in line
    assert "No arm has finished" not in report.markdown + page_of(report)
    assert opened(folder).ranked[0] == best


def test_a_cost_far_below_one_is_shown_with_its_digits(made_run: MadeRun) -> None:
    note = selection_note(opened(made_run({"objective": {"metric": "core_hours", "direction": "minimize"}})))
    assert "0.000" not in note
    # fine-tuning, sampling, two classifiers, features and quality at two sizes of 2 s each
    assert f", {2 * 8 / 3600:.4g} ± 0 (n=3)," in note


def test_a_constraint_decides_and_the_report_says_so(made_run: MadeRun) -> None:
    bounded = {"objective": {"metric": "val_top1", "constraints": ({"metric": "seconds", "max": 17.0},)}}
    folder = made_run(bounded)
    slow_down(folder, BETTER, 3.0)
    note = selection_note(opened(folder))
    assert f"**{WORSE}**" in note
    assert "It keeps seconds ≤ 17." in note
    slow_down(folder, WORSE, 3.0)
    note = selection_note(opened(folder))
    assert f"**{BETTER}**" in note
    assert "NO arm keeps seconds ≤ 17: it is the best of those that do not." in note


def test_the_table_of_the_front_counts_what_keeps_the_constraints(made_run: MadeRun) -> None:
    bounded = {"metric": "val_top1", "also": (SECONDS,), "constraints": ({"metric": "seconds", "max": 17.0},)}
    folder = made_run({"objective": bounded})
    slow_down(folder, BETTER, 3.0)
    report = reported(folder)
    assert "1 of 2 finished configurations keep the constraints" in report.markdown
    assert "1 arms break a constraint; they have the third colour." in page_of(report)


def test_an_objective_that_nothing_measured_is_named(made_run: MadeRun) -> None:
    folder = made_run({"objective": {"metric": "latents/frechet", "direction": "minimize"}})
    assert "No arm has a value of latents/frechet." in reported(folder).markdown
    assert "No arm has finished." in reported(made_run(is_done=False)).markdown


def test_a_race_by_something_else_than_accuracy_has_its_winner(made_run: MadeRun) -> None:
    """The record of the race names seconds; classifiers do not measure them."""
    from ddgd_ray.report.race import seed_policy_tables
    from ddgd_ray.run.decisions import PlannedRecord, RaceRecord
    from ddgd_ray.run.reading import SEED_POLICY
    from ddgd_ray.spec.fidelity_spec import RaceSpec

    folder = made_run({"objective": SECONDS})
    slow_down(folder, BETTER, 3.0)
    run = opened(folder)
    full = [
        PlannedRecord(
            arm=trial.arm,
            seed=trial.seed,
            calls=(*trial.prepare, *trial.own_refs()),
            evaluators=tuple(one.ref for one in trial.main_evaluators),
        )
        for trial in run.trials
        if not trial.is_control
    ]
    race = RaceRecord(
        metric="seconds",
        direction="minimize",
        settings=RaceSpec(),
        alpha=0.05,
        num_arms=2,
        num_looks=1,
        is_over=True,
        left=(WORSE, BETTER),
        failed=(),
        drops=(),
        full=tuple(full),
    )
    (folder / SEED_POLICY).write_text(race.as_text(sort_keys=False))
    (table,) = seed_policy_tables(run)
    assert f"Winner by seconds: {WORSE}, 16." in table.note
    assert "saved: 0%" in table.note, "features count on both sides"
