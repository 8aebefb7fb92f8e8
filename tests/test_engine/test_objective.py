"""What a configuration is worth: searches and reports count the same."""

from typing import Any

from ddgd_ray.engine.objective import trial_value
from ddgd_ray.engine.run_folder import TrialRecord
from ddgd_ray.engine.sweep import planned_trials
from ddgd_ray.report.objectives import made_of, value_of
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from tests.test_engine.fake_store import FakeStore


def test_a_trial_costs_the_same_in_a_report_as_in_a_search(tiny: Any) -> None:
    trial = planned_trials(tiny({"quality": ("latents",), "evaluate.also": ("noaug",)}))[-1]
    record, store = TrialRecord(trial, "done"), FakeStore({call.ref for call in trial.calls()})
    searched = trial_value(record, "seconds", store)  # type: ignore[arg-type]
    reported = value_of(made_of(record.as_json()), "seconds", store, ResourcesSpec())  # type: ignore[arg-type]
    assert searched == reported == 6.0, "fine-tuning, sampling, two classifiers, features and their comparison"


def test_a_line_of_before_has_no_features(tiny: Any) -> None:
    record = TrialRecord(planned_trials(tiny({"quality": ("latents",)}))[-1], "done").as_json()
    stages = [stage for stage, _ in made_of(record).own]
    del record["measures"]
    assert [stage for stage, _ in made_of(record).own] == [stage for stage in stages if stage != "features"]
