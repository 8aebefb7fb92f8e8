"""Races and rungs over the fake store: who gets which trials, and that only results decide it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.plan.jobs import Outcome
from ddgd_ray.plan.plan import Trial, plan_arm
from ddgd_ray.report.build import write_report
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.objective import Worth
from ddgd_ray.search.ask_tell import GridSearch, Proposal
from ddgd_ray.search.rungs import rung_trials
from ddgd_ray.spec.fidelity import at_rung
from ddgd_ray.spec.sweep import Sweep
from tests.fake_store import FakeStore, conduct, drain, finish

POPS = ("max_similarity", "min_similarity", "fifo", "random", "reservoir", "kcenter")
HELD_OUT = {"images.validation_per_class": 20}
RACE: dict[str, Any] = HELD_OUT | {
    "vary": {"finetune.memory_real.pop": POPS[:4]},
    "seeds.distill": tuple(range(6)),
    "race": {"first_seeds": 2, "pool_variance": True},
    "controls": ("random_real",),
}
RUNGS: dict[str, Any] = HELD_OUT | {
    "vary": {"finetune.memory_real.pop": POPS},
    "rungs": {"settings": ({"finetune.steps": 2, "seeds.distill": (0,)}, {"seeds.distill": (0,)}, {}), "eta": 2},
    "controls": ("random_real",),
}
CONTROLS = {"random_real-s0", "random_real-s1"}
WORTH = {"max": 0.8, "min": 0.5, "fifo": 0.79, "random": 0.4, "reservoir": 0.3, "kcenter": 0.2}


def noise(key: str) -> float:
    return (int(key[:6], 16) / 16**6 - 0.5) * 0.02


def judged(sweep: Sweep, worth: dict[str, float], of_seed: Callable[[int], float] = lambda seed: 0.0) -> FakeStore:
    """Every evaluator's value is its arm's worth, what its seed adds, and some noise by its key, at any rung."""
    values = {}
    for trial in every_trial(sweep):
        base = worth.get(trial.arm, 0.1) + of_seed(trial.seed)
        values.update({item.call.key: base + noise(item.call.key) for item in trial.evaluators})
    return FakeStore(value=lambda key: values.get(key, 0.1))


def every_trial(sweep: Sweep) -> Iterator[Trial]:
    """At every seed and every rung."""
    num_rungs = len(sweep.spec.rungs.settings) if sweep.spec.rungs else 0
    for number, (arm, params) in enumerate({trial.arm: trial.params for trial in planned_trials(sweep)}.items()):
        yield from plan_arm(sweep, arm, params)
        for rung in range(num_rungs):
            yield from rung_trials(sweep, rung, Proposal(number, arm, params))


def seeds_of(conductor: Conductor) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in conductor.records:
        found.setdefault(record.trial.arm, []).append(record.trial.seed)
    return found


def ledger(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tiny" / "allotment.json").read_text()))


def test_a_race_gives_further_seeds_to_those_that_may_win(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    found = seeds_of(conductor)
    assert {arm: len(seeds) for arm, seeds in found.items() if arm in ("min", "random")} == {"min": 2, "random": 2}
    assert len(found["max"]) >= 3
    assert len(found["random_real"]) == 6, "controls have every seed"
    assert {drop["arm"] for drop in ledger(tmp_path)["drops"]} >= {"min", "random"}
    assert {arm.proposal.arm: arm.end for arm in conductor.arms}["min"] == "dropped after 2 seeds"


@pytest.mark.parametrize("seed", range(4))
def test_timing_and_restarts_do_not_change_a_race(tiny: Any, tmp_path: Path, seed: int) -> None:
    sweep = tiny(RACE)
    calm = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path / "calm", calm), calm)
    store = judged(sweep, WORTH)
    while True:  # seven jobs a start
        conductor = conduct(sweep, tmp_path / "broken", store)
        for _ in range(7):
            job = conductor.next()
            if job is None:
                break
            finish(conductor, store, job)
        if conductor.is_finished:
            break
    other = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path / "other", other), other, seed=seed, width=5)
    assert calm.published == store.published == other.published
    texts = {(tmp_path / name / "tiny" / "allotment.json").read_text() for name in ("calm", "broken", "other")}
    assert len(texts) == 1


def test_a_full_grid_in_the_store_does_not_change_a_race(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path / "race", store), store)
    full = judged(sweep, WORTH)
    full.published = {call.ref for trial in planned_trials(sweep) for call in trial.calls()}
    assert len(full.published) > len(store.published)
    again = conduct(sweep, tmp_path / "full", full)
    assert again.is_finished
    assert ledger(tmp_path / "full") == ledger(tmp_path / "race")


def test_a_failed_arm_leaves_the_race_and_the_others_go_on(tiny: Any, tmp_path: Path) -> None:
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
    assert {arm.proposal.arm: arm.end for arm in conductor.arms} == {
        "max": "failed",
        "min": "dropped after 2 seeds",
        "fifo": "won",
        "random": "dropped after 2 seeds",
    }


def test_a_race_of_equals_uses_all_seeds(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, dict.fromkeys(WORTH, 0.5))
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    assert {arm.end for arm in conductor.arms} == {"complete"}
    assert {len(seeds) for seeds in seeds_of(conductor).values()} == {6}


def test_finalists_of_a_race_are_of_the_kept(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE | {"test": "finalists"})
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    jobs = drain(conductor, store)
    tested = {job.label.partition("-s")[0] for job in jobs if job.kind == "test"}
    assert "random_real" in tested
    assert len(tested - {"random_real"}) == 1
    assert tested & {"max", "fifo"}


def test_an_arm_that_was_dropped_at_lucky_seeds_is_no_finalist(tiny: Any, tmp_path: Path) -> None:
    """Seeds have an effect that all arms share, which is why a race goes by pairs: a mean over the first of them is high."""
    sweep = tiny(RACE | {"test": "finalists", "race": {"first_seeds": 3, "pool_variance": True}})
    store = judged(sweep, WORTH | {"min": 0.76}, of_seed=lambda seed: 0.05 if seed < 3 else -0.02)
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    assert {arm.proposal.arm: arm.end for arm in conductor.arms}["min"] == "dropped after 3 seeds"
    finalists = {record.trial.arm for record in conductor.records if record.is_finalist}
    assert finalists - {"random_real"} < {"max", "fifo"}


def test_a_stopped_race_goes_on_where_it_was(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    for _ in range(20):
        job = conductor.next()
        assert job is not None
        finish(conductor, store, job)
    conductor.stop("budget")
    assert conductor.is_finished
    rest = drain(conduct(sweep, tmp_path, store), store)
    assert rest
    whole = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path / "whole", whole), whole)
    assert store.published == whole.published


def test_rungs_halve_to_the_full_setting(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RUNGS)
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    names = {record.trial.name for record in conductor.records if not record.trial.is_control}
    assert {name for name in names if "@r0" in name} == {f"{arm}@r0-s0" for arm in WORTH}
    assert {name for name in names if "@r1" in name} == {"max@r1-s0", "min@r1-s0", "fifo@r1-s0"}
    assert {name for name in names if "@" not in name} == {"max-s0", "max-s1", "fifo-s0", "fifo-s1"}
    lines = [json.loads(path.read_text()) for path in (tmp_path / "tiny" / "trials").glob("*@r0*.json")]
    assert {line["rung"] for line in lines} == {0}


def test_who_breaks_a_constraint_goes_out_first(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RUNGS | {"objective": {"constraints": ({"metric": "top1_last", "max": 0.4},)}})
    store = judged(sweep, WORTH)
    slow = {item.call.key for trial in every_trial(sweep) if trial.arm == "max" for item in trial.evaluators}
    store.more = lambda key: {"top1_last": 0.5} if key in slow else {}
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    ends = {arm.proposal.arm: arm.end for arm in conductor.arms}
    assert ends["max"] == "out at rung 0"
    assert ends["fifo"] == "complete"


def test_rungs_go_by_the_quality_of_sets_where_the_objective_does(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RUNGS | {"quality": ("latents", "network"), "objective": {"metric": "latents/coverage"}})
    assert at_rung(sweep, 0).spec.quality == ("latents",)
    store = judged(sweep, WORTH)
    store.more = lambda key: {"coverage": noise(key)}
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    assert sorted(arm.end for arm in conductor.arms) == ["complete"] * 2 + ["out at rung 0"] * 3 + ["out at rung 1"]


def test_equal_stages_of_two_rungs_run_once(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RUNGS)
    store = judged(sweep, WORTH)
    jobs = drain(conduct(sweep, tmp_path, store), store)
    labels = [job.label for job in jobs if job.kind == "finetune" and job.label.startswith("max")]
    assert sorted(labels) == ["max-s1 finetune", "max@r0-s0 finetune", "max@r1-s0 finetune"], "rung 1 is seed 0 of the last"


def test_a_second_start_of_rungs_finds_everything_done(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RUNGS)
    store = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path, store), store)
    before = ledger(tmp_path)
    again = conduct(sweep, tmp_path, store)
    assert again.is_finished
    assert again.next() is None
    assert ledger(tmp_path) == before


def test_the_search_is_told_at_which_rung_a_configuration_went_out(tiny: Any, tmp_path: Path) -> None:
    told: dict[str, int | None] = {}

    class Listening(GridSearch):
        def tell(self, proposal: Proposal, score: Worth | None) -> None:
            assert score is not None
            told[proposal.arm] = score.rung

    sweep = tiny(RUNGS)
    store = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path, store, Listening(sweep)), store)
    assert told == {"max": None, "fifo": None, "min": 1, "random": 0, "reservoir": 0, "kcenter": 0}


def test_finalists_of_rungs_are_tested_at_the_full_setting(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RUNGS | {"test": "finalists"})
    store = judged(sweep, WORTH)
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    finalists = {record.trial.name for record in conductor.records if record.is_finalist}
    assert finalists in ({"max-s0", "max-s1", *CONTROLS}, {"fifo-s0", "fifo-s1", *CONTROLS})


def test_a_race_for_real_says_what_it_saved_and_whether_the_winner_changed(tiny: Any, tmp_path: Path) -> None:
    # at seeds where the two arms of this coarse accuracy are not equally far apart: without a spread nobody is dropped
    changes = HELD_OUT | {"seeds.distill": (1, 2, 3), "race": {"first_seeds": 2, "confidence": 0.5, "min_effect": 0.9}}
    changes |= {"vary": {"finetune.learning_rate": (1e-4, 1e-2)}, "controls": ()}
    result = run_sweep(tiny(changes), tmp_path, run_in_process)
    assert result.exit_code == 0
    store = open_store(tmp_path)
    text = write_report(result.folder.path, store).markdown
    assert "## Race" in text
    assert "dropped after 2 seeds" in text
    assert "Whether the full grid has the same winner is not known" in text
    spent, full, share = re.findall(r"arms: (\d+) core-seconds; the full grid: (\d+), .* saved: (\d+)%", text)[0]
    assert int(spent) <= int(full)
    assert 0 < int(share) < 60, "one or two of six fine-tunings"
    run_sweep(tiny(changes | {"name": "full", "race": None}), tmp_path, run_in_process)
    again = write_report(result.folder.path, store).markdown
    assert "all of which is in the store" in again
    assert "estimated" not in again.partition("## Race")[2]


def test_rungs_for_real_have_a_table_of_their_own_and_stay_out_of_the_others(tiny: Any, tmp_path: Path) -> None:
    changes = {
        "rungs": {"settings": ({"finetune.steps": 1, "seeds.distill": (0,), "evaluate.protocol.steps": 2}, {}), "eta": 2},
        "quality": ("latents",),
    }
    result = run_sweep(tiny(HELD_OUT | changes), tmp_path, run_in_process)
    assert result.exit_code == 0
    report = write_report(result.folder.path, open_store(tmp_path))
    rungs, _, _ = report.markdown.partition("## Quality")
    arms, _, rungs = rungs.partition("## Rungs")
    assert "rung 0: finetune.steps 1, seeds.distill [0], evaluate.protocol.steps 2; rung 1: the full setting" in rungs
    assert rungs.count("| 0 |") == 2
    assert rungs.count("| complete |") == 1
    assert "Test images were read by 2 classifiers of rungs before the last" in rungs
    assert "evaluators have no result" not in arms
    lines = report.results.read_text().splitlines()
    assert len(lines) == 1 + 4, "one arm and the control at two seeds"


def test_plain_seeds_again_forget_the_race(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(RACE)
    store = judged(sweep, WORTH)
    drain(conduct(sweep, tmp_path, store), store)
    conduct(tiny(RACE | {"race": None}), tmp_path, store)
    assert not (tmp_path / "tiny" / "allotment.json").exists()
