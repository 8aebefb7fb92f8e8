"""A race for verdicts over the fake store: who gets how many seeds, what is concluded, and that only results decide it."""

from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.errors import SpecError
from ddgd_ray.plan.jobs import Outcome
from ddgd_ray.report.build import write_report
from ddgd_ray.report.race import seed_policy_tables
from ddgd_ray.report.verdicts import alpha_of_pair, judge
from ddgd_ray.run.decisions import VerdictsRecord
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run, read_seed_policy
from ddgd_ray.search.until_decided import reference_arm
from tests.fake_store import conduct, drain, finish
from tests.test_search.test_fidelity import judged, seeds_of

POPS = ("max_similarity", "min_similarity", "fifo", "random")
RACE: dict[str, Any] = {
    "images.validation_per_class": 20,
    "vary": {"finetune.memory_real.pop": POPS},
    "seeds.distill": tuple(range(12)),
    "race": {"goal": "verdicts", "first_seeds": 3},
    "claims": {"smallest_effect": 0.05},
    "controls": ("random_real",),
}
WORTH = {"max": 0.6, "min": 0.3, "fifo": 0.6, "random": 0.9}
"""Noise is within 0.01: max is the preset's own value, so the reference; fifo is its equal."""


def decisions(folder: Path) -> VerdictsRecord:
    found = read_seed_policy(folder / "tiny")
    assert isinstance(found, VerdictsRecord)
    return found


def test_seeds_go_on_until_every_arm_has_its_verdict_and_no_longer(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    found = decisions(tmp_path)
    assert {one.arm: one.word for one in found.verdicts} == {"min": "worse", "fifo": "equivalent", "random": "better"}
    assert found.reference == "max"
    assert found.is_over
    seeds = {arm: len(of_arm) for arm, of_arm in seeds_of(conductor).items()}
    assert {one.arm: one.num_seeds for one in found.verdicts} == {arm: seeds[arm] for arm in ("min", "fifo", "random")}
    assert seeds["max"] == max(seeds[arm] for arm in ("min", "fifo", "random")) < 12
    ends = {arm.proposal.arm: arm.end for arm in conductor.arms}
    assert ends["min"] == f"worse after {seeds['min']} seeds"
    assert ends["max"] == "complete"


def test_each_verdict_is_the_first_that_falls_when_its_seeds_are_looked_at_one_by_one(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({**RACE, "claims": {"smallest_effect": 0.02}})
    store = judged(sweep, {**WORTH, "fifo": 0.605})
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    values: dict[str, dict[int, float]] = {}
    for record in conductor.records:
        (item,) = record.trial.evaluators
        values.setdefault(record.trial.arm, {})[record.trial.seed] = store.value(item.call.key)
    for one in decisions(tmp_path).verdicts:
        differences = [values[one.arm][seed] - values["max"][seed] for seed in sorted(values[one.arm])]
        words = [judge(differences[:n], 0.02, alpha_of_pair(0.95, 3)).word for n in range(3, len(differences) + 1)]
        assert words[-1] == one.word
        assert set(words[:-1]) <= {"undecided"}
        assert one.difference == pytest.approx(sum(differences) / len(differences))


def test_what_no_seed_decides_ends_undecided_at_the_last(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({**RACE, "seeds.distill": (0, 1, 2, 3), "claims": {"smallest_effect": 1e-5}})
    store = judged(sweep, {**WORTH, "min": 0.6, "random": 0.6})
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    assert {one.word for one in decisions(tmp_path).verdicts} == {"undecided"}
    assert {arm.proposal.arm: arm.end for arm in conductor.arms} == {
        "max": "complete",
        "min": "undecided",
        "fifo": "undecided",
        "random": "undecided",
    }


@pytest.mark.parametrize("seed", range(3))
def test_timing_and_restarts_change_nothing(tiny: Any, tmp_path: Path, seed: int) -> None:
    sweep = tiny(RACE)
    calm = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path / "calm", calm), calm)
    store = judged(sweep, WORTH)
    while not (conductor := conduct(sweep, tmp_path / "broken", store)).is_finished:
        for _ in range(5):
            if (job := conductor.next()) is not None:
                finish(conductor, store, job)
    other = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path / "other", other), other, seed=seed, width=5)
    assert calm.published == store.published == other.published
    assert decisions(tmp_path / "calm") == decisions(tmp_path / "broken") == decisions(tmp_path / "other")


def test_more_seeds_continue_an_undecided_race(tiny: Any, tmp_path: Path) -> None:
    early = {**RACE, "race": {"goal": "verdicts", "first_seeds": 2}}
    few = tiny({**early, "seeds.distill": (0, 1, 2)})  # too few for any verdict over three pairs
    store = judged(tiny(early), WORTH)
    drain(conduct(few, tmp_path, store), store)
    assert {one.word for one in decisions(tmp_path).verdicts} == {"undecided"}
    before = set(store.published)
    drain(conduct(tiny(early), tmp_path, store), store)
    assert before < store.published
    assert "undecided" not in {one.word for one in decisions(tmp_path).verdicts}


def test_without_its_reference_a_race_judges_nobody(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    while not conductor.is_finished:
        job = conductor.next()
        assert job is not None
        if job.label == "max-s1 finetune":
            conductor.ended(job.id, Outcome("error[non-finite]: L_real", is_final=True))
        else:
            finish(conductor, store, job)
    ends = {arm.proposal.arm: arm.end for arm in conductor.arms}
    assert ends["max"] == "failed"
    assert ends["fifo"] == "not judged: the reference failed"
    assert decisions(tmp_path).verdicts == ()


def test_the_reference_is_named_or_the_presets_own_values_and_never_a_control(tiny: Any) -> None:
    assert reference_arm(tiny(RACE)) == "max"
    assert reference_arm(tiny({**RACE, "vary": {"finetune.memory_real.pop": ("fifo", "random")}})) == "fifo"
    assert reference_arm(tiny({**RACE, "claims": {"smallest_effect": 0.01, "reference": "random"}})) == "random"
    with pytest.raises(SpecError, match="they are max, min, fifo, random"):
        reference_arm(tiny({**RACE, "claims": {"smallest_effect": 0.01, "reference": "random_real"}}))


def test_where_small_is_better_a_smaller_value_is_better(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({**RACE, "objective": {"metric": "val_top1", "direction": "minimize"}})
    store = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path, store), store)
    found = {one.arm: one for one in decisions(tmp_path).verdicts}
    assert (found["min"].word, found["random"].word) == ("better", "worse")
    assert found["min"].difference == pytest.approx(-0.3, abs=0.01)
    assert found["min"].low is not None
    assert found["min"].high is not None
    assert found["min"].low < found["min"].difference < found["min"].high


def test_the_report_says_who_was_judged_how_at_how_many_seeds(tiny: Any, tmp_path: Path) -> None:
    few: dict[str, Any] = {"vary": {"finetune.memory_real.pop": POPS[:2]}, "seeds.distill": (0, 1, 2)}
    few["race"] = {"goal": "verdicts", "first_seeds": 2}
    result = run_sweep(tiny({**RACE, **few}), tmp_path, run_in_process)
    run = read_run(result.folder.path, open_store(tmp_path))
    (table,) = seed_policy_tables(run)
    assert table.title == "Race for verdicts"
    assert [(name, [cell.text for cell in cells][:2]) for name, cells in table.rows] == [
        ("max", ["3", "reference"]),
        ("min", ["3", "undecided"]),
    ]
    assert "better or worse than max, or equivalent within 0.05, up to 3" in table.note
    assert "the full grid" in table.note
    assert "## Race for verdicts" in write_report(result.folder.path, open_store(tmp_path)).markdown
