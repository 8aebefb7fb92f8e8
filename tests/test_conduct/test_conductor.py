"""The conductor's bookkeeping, with a fake store that publishes by word of mouth: no stage runs."""

from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.conduct.work import run_job
from ddgd_ray.errors import StageError
from ddgd_ray.plan.jobs import Job, Outcome, jobs_of
from ddgd_ray.run.objective import Worth, value_of
from ddgd_ray.search.ask_tell import GridSearch, Proposal
from ddgd_ray.spec.sweep import read_sweep
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from tests.fake_store import FakeStore, conduct, drain, finish

FINALISTS = {"test": "finalists", "images.validation_per_class": 20}


@pytest.mark.parametrize("seed", range(5))
def test_every_job_runs_once_and_after_its_inputs(tiny: Any, tmp_path: Path, seed: int) -> None:
    store, sweep = FakeStore(), tiny()
    jobs = drain(conduct(sweep, tmp_path, store), store, seed)
    assert len({job.id for job in jobs}) == len(jobs)
    seen: set[tuple[str, str]] = set()
    for job in jobs:
        assert job.needs <= seen
        seen |= {call.ref for call in job.calls}
    assert seen == {call.ref for trial in planned_trials(sweep) for call in trial.calls()}


def test_a_second_start_finds_everything_done(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny()
    drain(conduct(sweep, tmp_path, store), store)
    again = conduct(sweep, tmp_path, store)
    assert again.is_finished
    assert {record.state for record in again.records} == {"done"}
    assert again.next() is None


def test_a_start_after_a_crash_repeats_only_what_was_running(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny()
    first = conduct(sweep, tmp_path, store)
    for _ in range(5):
        job = first.next()
        assert job is not None
        finish(first, store, job)
    before = set(store.published)
    rest = drain(conduct(sweep, tmp_path, store), store)
    assert not {call.ref for job in rest for call in job.calls} & before


def test_a_failed_evaluator_is_repeated_alone(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny()
    conductor = conduct(sweep, tmp_path, store)
    handed: list[Job] = []
    broken = ""
    while not conductor.is_finished:
        job = conductor.next()
        assert job is not None
        handed.append(job)
        if job.kind == "evaluate" and not broken:
            broken = job.id
            conductor.ended(job.id, Outcome("the worker process died"))
        else:
            finish(conductor, store, job)
    counts = [sum(job.id == other.id for other in handed) for job in handed]
    assert max(counts) == 2
    assert [job.id for job in handed].count(broken) == 2
    assert all(record.state == "done" for record in conductor.records)


def test_a_final_failure_fails_its_trial_and_what_depends_on_it_and_nothing_else(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny()
    conductor = conduct(sweep, tmp_path, store)
    broken: Job | None = None
    while not conductor.is_finished:
        job = conductor.next()
        assert job is not None
        if job.kind == "finetune" and job.label.startswith("max") and broken is None:
            broken = job
            conductor.ended(job.id, Outcome("error[non-finite]: L_real", is_final=True))
        else:
            finish(conductor, store, job)
    assert broken is not None
    failed = [record for record in conductor.records if record.state == "failed"]
    assert [f"{record.trial.name} finetune" for record in failed] == [broken.label]
    assert "error[non-finite]: L_real" in failed[0].errors.values()


def test_a_job_whose_worker_dies_every_time_ends_as_failed(tiny: Any, tmp_path: Path) -> None:
    store = FakeStore()
    sweep = tiny({"resources.max_failures": 2, "resources.max_failed_share": 1.0})
    conductor = conduct(sweep, tmp_path, store)
    attempts = 0
    while not conductor.is_finished:
        job = conductor.next()
        assert job is not None
        if job.label == "fifo-s1 finetune":
            attempts += 1
            conductor.ended(job.id, Outcome("the worker process died"))
        else:
            finish(conductor, store, job)
    assert attempts == 3
    assert [record.state for record in conductor.records].count("failed") == 1


def test_a_worker_that_died_after_publishing_has_not_failed(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny()
    conductor = conduct(sweep, tmp_path, store)
    job = conductor.next()
    assert job is not None
    store.published.update(call.ref for call in job.calls)
    conductor.ended(job.id, Outcome("the worker process died"))
    assert conductor.jobs.num_done == 1


@pytest.mark.parametrize(("code", "is_final"), [("storage", False), ("non-finite", True)])
def test_storage_that_does_not_answer_is_no_fault_of_the_job(code: str, is_final: bool, tiny: Any) -> None:
    def publish(*args: Any) -> None:
        raise StageError("no", code=code, where="here")

    job = next(jobs_of(planned_trials(tiny())[0], ResourcesSpec()))
    assert run_job(job, FakeStore(), ResourcesSpec(), publish).is_final == is_final  # type: ignore[arg-type]


def test_too_many_failures_stop_the_sweep(tiny: Any, tmp_path: Path) -> None:
    store = FakeStore()
    conductor = conduct(tiny({"resources.max_failed_share": 0.2}), tmp_path, store)
    failures = 0
    while (job := conductor.next()) is not None:
        if job.kind == "evaluate":
            failures += 1
            conductor.ended(job.id, Outcome("error", is_final=True))
        else:
            finish(conductor, store, job)
    assert conductor.stop_reason == "failures"
    assert failures < 6


def test_draining_hands_out_nothing_more(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny()
    conductor = conduct(sweep, tmp_path, store)
    job = conductor.next()
    assert job is not None
    conductor.stop("interrupted")
    assert conductor.next() is None
    assert not conductor.is_finished
    finish(conductor, store, job)
    assert conductor.is_finished


def test_an_interrupt_while_it_drains_for_another_reason_stops_running_jobs_too(tiny: Any, tmp_path: Path) -> None:
    conductor = conduct(tiny(), tmp_path, FakeStore())
    assert conductor.next() is not None
    conductor.stop("budget")
    assert not conductor.folder.is_told_to_stop
    conductor.stop("interrupted")
    assert conductor.folder.is_told_to_stop
    assert conductor.stop_reason == "budget"


def test_the_search_is_told_the_mean_over_seeds_once_per_configuration(tiny: Any, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []

    class Listening(GridSearch):
        def tell(self, proposal: Proposal, score: Worth | None) -> None:
            told.append((proposal.arm, score.values[0] if score else None))

    sweep = tiny()
    values = {item.call.key: 0.25 * trial.seed for trial in planned_trials(sweep) for item in trial.evaluators}
    store = FakeStore(value=lambda key: values.get(key, 0.0))
    drain(conduct(sweep, tmp_path, store, Listening(sweep)), store)
    assert sorted(told) == [("fifo", 0.125), ("max", 0.125)]


def test_a_configuration_that_cannot_run_counts_as_failed_and_the_search_goes_on(tiny: Any, tmp_path: Path) -> None:
    told: dict[str, Worth | None] = {}

    class Jointly(GridSearch):
        """Proposes what a file's check cannot know of: each value alone is fine."""

        def __init__(self, sweep: Any) -> None:
            super().__init__(sweep)
            self._open.insert(1, Proposal(9, "empty", {"finetune.t_min": 600, "finetune.t_max": 500}))

        def tell(self, proposal: Proposal, score: Worth | None) -> None:
            told[proposal.arm] = score

    sweep, store = tiny(), FakeStore()
    conductor = conduct(sweep, tmp_path, store, Jointly(sweep))
    drain(conductor, store)
    assert conductor.is_finished
    assert told["empty"] is None
    assert told["max"] is not None
    assert told["fifo"] is not None


def test_equal_calls_of_two_trials_are_one_job(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({"controls": ("pretrained", "random_real")})
    trials = [trial for trial in planned_trials(sweep) if trial.arm == "pretrained"]
    keys = {trial.build[0].key for trial in trials}
    assert len(trials) == 2
    assert len(keys) == 1, "without fine-tuning all seeds share one adapter"
    assert len({job.id for trial in trials for job in jobs_of(trial, ResourcesSpec()) if job.kind == "prepare"}) == 4


def test_the_test_images_are_seen_by_the_best_arm_and_the_controls_alone_and_last(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(FINALISTS)
    better = {item.call.key for trial in planned_trials(sweep) if trial.arm == "fifo" for item in trial.evaluators}
    store = FakeStore(value=lambda key: 0.6 if key in better else 0.5)
    jobs = drain(conduct(sweep, tmp_path, store), store)
    kinds = [job.kind for job in jobs]
    assert kinds[-4:] == ["test"] * 4
    assert "test" not in kinds[:-4]
    assert {job.label.partition("-s")[0] for job in jobs[-4:]} == {"fifo", "random_real"}
    again = conduct(sweep, tmp_path, store)
    assert again.is_finished
    firsts = {record.trial.name: record.record.evaluators[0] for record in again.records}
    assert {name for name, evaluator in firsts.items() if evaluator.test is not None} == {
        "fifo-s0",
        "fifo-s1",
        "random_real-s0",
        "random_real-s1",
    }


def test_an_arm_that_failed_at_a_seed_is_no_finalist(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny(FINALISTS | {"seeds.distill": (0, 1, 2), "controls": (), "resources.max_failed_share": 1.0})
    lucky = {item.call.key for trial in planned_trials(sweep) if trial.name == "fifo-s0" for item in trial.evaluators}
    store = FakeStore(value=lambda key: 0.9 if key in lucky else 0.5)
    conductor = conduct(sweep, tmp_path, store)
    while (job := conductor.next()) is not None:
        if job.label in ("fifo-s1 finetune", "fifo-s2 finetune"):
            conductor.ended(job.id, Outcome("diverged", is_final=True))
        else:
            finish(conductor, store, job)
    assert {record.trial.arm for record in conductor.records if record.is_finalist} == {"max"}


def test_more_finalists_continue_the_sweep(tiny: Any, tmp_path: Path) -> None:
    store = FakeStore()
    drain(conduct(tiny(FINALISTS), tmp_path, store), store)
    more = drain(conduct(tiny(FINALISTS | {"objective.finalists": 2}), tmp_path, store), store)
    assert [job.kind for job in more] == ["test", "test"]


def test_seeds_of_one_classifier_are_one_job_where_they_are_packed(tiny: Any) -> None:
    sweep = tiny({"seeds.evaluate": (0, 1, 2), "evaluate.networks": ("convnet3_slim", "resnet_slim")})
    trial = planned_trials(sweep)[0]

    def sizes(**resources: Any) -> list[int]:
        return [len(job.calls) for job in jobs_of(trial, ResourcesSpec(**resources)) if job.kind == "evaluate"]

    assert sizes() == [1] * 6
    assert sizes(pack=2) == [2, 1, 2, 1]
    assert sizes(gpus=1.0) == [3, 3]
    assert sizes(gpus=1.0, pack=1) == [1] * 6


def test_quality_is_measured_beside_the_classifiers(tiny: Any, tmp_path: Path) -> None:
    store, sweep = FakeStore(), tiny({"quality": ("latents", "network"), "controls": ("herding", "full_data")})
    jobs = drain(conduct(sweep, tmp_path, store), store)
    measured = [job for job in jobs if job.kind == "measure"]
    assert len(measured) == 2 * 6, "two spaces, two arms and herding at two seeds; full data is what sets are compared with"
    assert {call.stage for job in measured for call in job.calls} == {"features", "quality"}
    found = {record.trial.name: record.record.quality for record in conduct(sweep, tmp_path, store).records}
    assert [one.label for one in found["herding-s0"]] == ["latents, 2 images per class", "network, 2 images per class"]
    assert [(one.space, one.ipc) for one in found["herding-s0"]] == [("latents", 2), ("network", 2)]
    assert found["full_data-s0"] == ()


def test_the_main_protocol_named_once_more_is_no_further_one(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\npreset: digits\nvary: {finetune.steps: [5, 6]}\nevaluate: {also: [quick-digits, noaug]}\n")
    for trial in planned_trials(read_sweep(path, {})):
        keys = [item.call.key for item in trial.evaluators]
        assert len(set(keys)) == len(keys)
        assert {item.protocol for item in trial.evaluators if not item.is_main} == {"quick-digits-noaug"}


def test_another_protocol_does_not_enter_the_objective(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({"evaluate.also": ("noaug",)})
    main = {item.call.key for trial in planned_trials(sweep) for item in trial.evaluators if item.is_main}
    store = FakeStore(value=lambda key: 0.5 if key in main else 0.9)
    conductor = conduct(sweep, tmp_path, store)
    drain(conductor, store)
    assert {value_of(record.record, "val_top1", conductor.store) for record in conductor.records} == {0.5}
    assert {len(record.trial.evaluators) for record in conductor.records} == {2}
