"""What a configuration is worth: searches and reports count the same."""

import random
from pathlib import Path
from typing import Any

import pytest
from ddgd_ray.run.objectives import Worth, front_of, in_order, made_of, value_of

from ddgd_ray.conduct.sweep import planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.run.folder import TrialProgress, open_store
from ddgd_ray.run.objective import value_of
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from tests.fake_store import FakeStore


def test_a_trial_costs_the_same_in_a_report_as_in_a_search(tiny: Any) -> None:
    trial = planned_trials(tiny({"quality": ("latents",), "evaluate.also": ("noaug",)}))[-1]
    record, store = TrialProgress(trial, "done"), FakeStore({call.ref for call in trial.calls()})
    searched = value_of(record, "seconds", store)  # type: ignore[arg-type]
    reported = value_of(made_of(record.as_json()), "seconds", store, ResourcesSpec())  # type: ignore[arg-type]
    assert searched == reported == 6.0, "fine-tuning, sampling, two classifiers, features and their comparison"


def test_a_line_of_before_has_no_features(tiny: Any) -> None:
    record = TrialProgress(planned_trials(tiny({"quality": ("latents",)}))[-1], "done").as_json()
    stages = [stage for stage, _ in made_of(record).own]
    del record["measures"]
    assert [stage for stage, _ in made_of(record).own] == [stage for stage in stages if stage != "features"]


def test_hours_go_by_what_the_jobs_held_whatever_the_sweep_says_today(tiny: Any, tmp_path: Path) -> None:
    holds = {"resources.cpus": 0.5, "resources.stages": {"finetune": {"cpus": 2.0}}}
    result = run_sweep(tiny({"seeds.distill": (0,), **holds}), tmp_path, run_in_process)
    store, record = open_store(tmp_path), result.records[-1]
    seconds = {call.stage: store.get(*call.ref).seconds for call in record.trial.calls()}  # type: ignore[union-attr]
    held = 2.0 * seconds["finetune"] + 0.5 * (seconds["sample"] + seconds["evaluate"])
    for today in (ResourcesSpec(), ResourcesSpec(cpus=64, gpus=8)):
        assert value_of(record, "core_hours", store, today) == pytest.approx(held / 3600)
        assert value_of(record, "gpu_hours", store, today) == 0.0


def test_hours_of_artifacts_that_do_not_say_what_was_held_go_by_the_sweep(tiny: Any) -> None:
    trial = planned_trials(tiny())[-1]
    store = FakeStore({call.ref for call in trial.calls()})
    value = value_of(TrialProgress(trial, "done"), "core_hours", store, ResourcesSpec(cpus=3))  # type: ignore[arg-type]
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
