"""What a configuration is worth: searches and reports count the same."""

import random
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.run.folder import TrialProgress, open_store
from ddgd_ray.run.objective import Worth, front_of, in_order, measure, rank, ranking_of, value_of
from ddgd_ray.run.reading import read_run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.spec.search_spec import ObjectiveSpec
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from tests.fake_store import FakeStore


def done(trial: Any) -> TrialRecord:
    return TrialProgress(trial, "done").record


def test_a_trial_costs_what_its_own_stages_took(tiny: Any) -> None:
    trial = planned_trials(tiny({"quality": ("latents",), "evaluate.also": ("noaug",)}))[-1]
    store = FakeStore({call.ref for call in trial.calls()})
    value = value_of(done(trial), "seconds", store)  # type: ignore[arg-type]
    assert value == 6.0, "fine-tuning, sampling, two classifiers, features and their comparison"


def test_a_record_of_before_has_no_features(tiny: Any) -> None:
    record = done(planned_trials(tiny({"quality": ("latents",)}))[-1])
    before = record.model_copy(update={"measures": ()})
    assert before.own_refs() == [ref for ref in record.own_refs() if ref.stage != "features"]


def test_hours_go_by_what_the_jobs_held_whatever_the_sweep_says_today(tiny: Any, tmp_path: Path) -> None:
    holds = {"resources.cpus": 0.5, "resources.stages": {"finetune": {"cpus": 2.0}}}
    result = run_sweep(tiny({"seeds.distill": (0,), **holds}), tmp_path, run_in_process)
    store, record = open_store(tmp_path), result.records[-1]
    seconds = {call.stage: store.get(*call.ref).seconds for call in record.trial.calls()}  # type: ignore[union-attr]
    trial = record.record
    held = 2.0 * seconds["finetune"] + 0.5 * (seconds["sample"] + seconds["evaluate"])
    for today in (ResourcesSpec(), ResourcesSpec(cpus=64, gpus=8)):
        assert value_of(trial, "core_hours", store, today) == pytest.approx(held / 3600)
        assert value_of(trial, "gpu_hours", store, today) == 0.0


def test_hours_of_artifacts_that_do_not_say_what_was_held_go_by_the_sweep(tiny: Any) -> None:
    trial = planned_trials(tiny())[-1]
    store = FakeStore({call.ref for call in trial.calls()})
    value = value_of(done(trial), "core_hours", store, ResourcesSpec(cpus=3))  # type: ignore[arg-type]
    assert value == 3 * 3 / 3600, "fine-tuning, sampling, one classifier of a second each"


def beats(one: Worth, other: Worth, directions: tuple[str, ...]) -> bool:
    """At least as good in every objective and better in one."""
    pairs = zip(one.values, other.values, directions, strict=True)
    gains = [a - b if direction == "maximize" else b - a for a, b, direction in pairs]
    return min(gains) >= 0 and max(gains) > 0


@pytest.mark.parametrize("directions", [("maximize",), ("minimize", "maximize"), ("maximize", "maximize", "minimize")])
def test_fronts_are_those_found_by_taking_one_away_after_the_other(directions: tuple[str, ...]) -> None:
    rng = random.Random(len(directions))
    worths = {
        str(arm): Worth(tuple(rng.randrange(5) / 5 for _ in directions), (rng.choice([-1.0, 0.0, 1.0]),)) for arm in range(60)
    }
    expected: list[str] = []
    for group in (True, False):
        left = {arm: Worth(worth.values) for arm, worth in worths.items() if worth.is_feasible == group}
        while left:
            front = [arm for arm, own in left.items() if not any(beats(other, own, directions) for other in left.values())]
            front.sort(key=lambda arm: -left[arm].values[0] if directions[0] == "maximize" else left[arm].values[0])
            assert front_of(left, directions) == front
            expected += front
            left = {arm: worth for arm, worth in left.items() if arm not in front}
    assert in_order(worths, directions) == expected
    assert in_order({}, directions) == []


def test_thousands_of_arms_are_ranked() -> None:
    worths = {str(arm): Worth((float(arm), float(-arm % 7))) for arm in range(5000)}
    assert in_order({arm: Worth(worth.values[:1]) for arm, worth in worths.items()}, ("maximize",))[0] == "4999"
    assert in_order(worths, ("maximize", "maximize"))[0] == "4999"


ACCURACY = ObjectiveSpec()
FAST = ObjectiveSpec(metric="seconds", direction="minimize")


def test_an_arm_with_fewer_seeds_comes_after_all_that_have_more() -> None:
    """The first seeds are lucky ones, for every arm."""
    measured = {
        "dropped": {0: (0.9,), 1: (0.9,)},
        "low": dict.fromkeys(range(4), (0.6,)),
        "high": dict.fromkeys(range(4), (0.8,)),
    }
    ranking = rank(measured, ACCURACY)
    assert ranking.order == ["high", "low", "dropped"]
    assert (ranking.best, ranking.contenders, ranking.front) == ("high", ["high", "low"], ["high"])


def test_arms_that_lack_different_seeds_are_ranked_all_the_same() -> None:
    lacks = {"low": (3, 0.5), "high": (2, 0.9), "middle": (1, 0.7)}
    measured = {arm: {seed: (worth,) for seed in range(4) if seed != gone} for arm, (gone, worth) in lacks.items()}
    assert rank(measured, ACCURACY).order == ["high", "middle", "low"]


def test_what_is_to_be_small_is_best_when_it_is_smallest() -> None:
    assert rank({"slow": {0: (9.0,)}, "quick": {0: (2.0,)}}, FAST).order == ["quick", "slow"]


def test_an_arm_without_a_finite_value_has_no_worth() -> None:
    assert rank({"a": {0: (float("nan"),)}, "b": {0: (0.2,)}, "c": {0: (float("inf"),)}}, ACCURACY).order == ["b"]
    assert rank({}, ACCURACY).best == ""


def test_what_breaks_a_constraint_comes_last_and_is_on_no_front() -> None:
    bounded = ObjectiveSpec.model_validate({"constraints": ({"metric": "seconds", "max": 5.0},)})
    ranking = rank({"good": {0: (0.9, 6.0)}, "fair": {0: (0.5, 5.0)}}, bounded)
    assert (ranking.order, ranking.front) == (["fair", "good"], ["fair"])
    assert rank({"good": {0: (0.9, 6.0)}}, bounded).best == "good", "where nothing keeps them, there is a best all the same"


def test_controls_and_trials_that_failed_or_were_cheaper_compete_with_nobody(made_run: Any) -> None:
    folder = made_run()
    run = read_run(folder, open_store(folder.parent))
    assert set(run.ranking.order) == {trial.arm for trial in run.trials} - {"random_real"}
    best = run.ranking.best
    for change in ({"state": "failed"}, {"rung": 0}, {"is_control": True}):
        trials = [trial.model_copy(update=change) if trial.arm == best else trial for trial in run.trials]
        assert best not in ranking_of(trials, run.spec.objective, run.store).order, change


def test_a_ranking_is_of_what_its_trials_measured(made_run: Any) -> None:
    folder = made_run()
    run = read_run(folder, open_store(folder.parent))
    for trial in run.trials:
        if not trial.is_control:
            (value,) = measure(trial, run.spec.objective, run.store)
            assert run.ranking.seed_values[trial.arm][trial.seed] == value
