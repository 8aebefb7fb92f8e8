"""Records: what was written is read back equal, what an earlier version wrote is read, and damage is named."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.errors import ArtifactError
from ddgd_ray.run.decisions import DropRecord, RaceRecord, RungDecision, RungsRecord
from ddgd_ray.run.folder import RunFolder, TrialProgress, open_store
from ddgd_ray.run.reading import SEED_POLICY, SWEEP_FILE, read_run, read_seed_policy, read_sweep_record, read_trial_records
from ddgd_ray.run.records import Record, SweepRecord, TrialRecord
from ddgd_ray.spec.base import as_tuples
from ddgd_ray.spec.load import Document
from ddgd_ray.spec.sweep import check_sweep
from ddgd_ray.storage.manifest import Ref

BEFORE = Path(__file__).parent / "data" / "before"
"""Run folders as the last version without these classes wrote them: a race that dropped an arm and saw another fail, rungs,
and a search. All that belongs to a run but its JSON is left out."""
RUNS = ("race", "rungs", "searched")

Made = Callable[..., Path]


def class_of(file: Path) -> type[Record]:
    if file.name == SWEEP_FILE:
        return SweepRecord
    if file.name == SEED_POLICY:
        return RaceRecord if file.parent.name == "race" else RungsRecord
    return TrialRecord


def only_what_was(now: Any, before: Any) -> Any:
    """`now` without the fields that a spec has been given since."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {name: only_what_was(value, before[name]) for name, value in now.items() if name in before}
    return now


FILES = sorted(BEFORE.rglob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(BEFORE)))
def test_a_record_of_before_is_read_and_written_as_it_was(file: Path) -> None:
    record = class_of(file).read(file)
    assert only_what_was(json.loads(record.as_text()), json.loads(file.read_text())) == json.loads(file.read_text())
    if isinstance(record, TrialRecord):
        assert record.as_text() == file.read_text(), "to the byte: a start of today leaves them as they are"
    assert class_of(file).from_text(record.as_text(), "here") == record


def test_a_run_of_before_says_what_it_said() -> None:
    store = open_store(BEFORE)
    run = read_run(BEFORE / "race", store)
    trials = {trial.name: trial for trial in run.trials}
    assert [trial.name for trial in run.failed] == ["1e+30-s0"]
    assert "L_diffusion, L_real, L_gen, L_memory is not finite at step 1" in trials["1e+30-s0"].error
    finalist = trials["0.3-s0"]
    assert finalist.params == {"finetune.learning_rate": 0.3}
    assert [ref.stage for ref in finalist.build] == ["finetune", "sample"]
    assert finalist.set == finalist.build[-1]
    assert finalist.finetune == finalist.build[0]
    (classifier,) = finalist.main_evaluators
    assert classifier.name == "convnet3_slim ipc2 seed0"
    assert classifier.test is not None
    assert classifier.test.stage == "test"
    (measure,) = finalist.quality
    assert (measure.space, measure.ipc) == ("latents", 2)
    assert finalist.refs()[-1] == classifier.test
    assert Ref("features", finalist.measures[0][0].key) in finalist.own_refs()
    assert run.spec.race is not None
    assert run.default("finetune.learning_rate") == 0.001


def test_decisions_of_before_say_what_they_said() -> None:
    race, rungs = read_seed_policy(BEFORE / "race"), read_seed_policy(BEFORE / "rungs")
    assert isinstance(race, RaceRecord)
    assert isinstance(rungs, RungsRecord)
    assert (race.left, race.failed, [drop.arm for drop in race.drops]) == (("0.3",), ("1e+30",), ["0.0004"])
    assert [planned.arm for planned in rungs.full] == ["0.0004", "0.3", "0.01"]
    assert {decision.outcome for decision in rungs.decisions} == {"goes on", "out", "complete"}
    assert read_seed_policy(BEFORE / "searched") is None


def test_trials_of_lower_rungs_are_read_when_asked_for() -> None:
    assert {trial.rung for trial in read_trial_records(BEFORE / "rungs")} == {None}
    assert {trial.rung for trial in read_trial_records(BEFORE / "rungs", with_lower_rungs=True)} == {None, 0}


def test_a_search_of_before_has_its_space_and_its_settings() -> None:
    sweep = read_sweep_record(BEFORE / "searched")
    size = sweep.space["finetune.memory_real.size"]
    assert (size["type"], size["low"], size["high"]) == ("int", 8, 64)
    assert sweep.settings["images"]["source"] == "digits"


@pytest.fixture
def progress(tiny: Any) -> list[TrialProgress]:
    """Trials of a sweep with finalists, quality and two protocols, in every state."""
    sweep = tiny({"quality": ("latents",), "test": "finalists", "evaluate.also": ("noaug",), "images.validation_per_class": 20})
    first, second, third, *_ = planned_trials(sweep)
    errors = {"k": 'error[x]: "quoted", ± \n of two lines'}
    return [
        TrialProgress(first),
        TrialProgress(second, "failed", errors=errors, attempts={"k": 3}, finished=1.5),
        TrialProgress(third, "done", finished=2.5, is_finalist=True),
        TrialProgress(replace(third, rung=0), "done"),
    ]


def test_trials_are_read_back_equal(progress: list[TrialProgress]) -> None:
    records = [one.record for one in progress]
    assert [TrialRecord.from_text(record.as_text(), "here") for record in records] == records
    assert [one.test is not None for one in records[2].evaluators].count(True) > 0
    assert all(one.test is None for one in records[1].evaluators)


def test_a_sweep_is_read_back_equal(tiny: Any, tmp_path: Path) -> None:
    sweep = tiny({"objective": {"metric": "val_top1", "constraints": ({"metric": "seconds", "max": 9.0},)}})
    folder = RunFolder(tmp_path, "tiny")
    folder.prepare()
    folder.remember(sweep)
    record = read_sweep_record(folder.path)
    assert record.spec == sweep.spec
    assert SweepRecord.from_text(record.as_text(), "here") == record
    assert list(record.spec.vary) == list(sweep.spec.vary)


def test_decisions_without_a_finite_number_are_read_back_equal() -> None:
    """Two arms that differ by the same at every seed have an infinite t."""
    race = read_seed_policy(BEFORE / "race")
    assert isinstance(race, RaceRecord)
    drop = DropRecord(arm="a", against="b", num_seeds=3, difference=-0.1, bound=0.0, statistic=-math.inf, critical=math.inf)
    changed = race.model_copy(update={"drops": (drop,)})
    assert RaceRecord.from_text(changed.as_text(sort_keys=False), "here") == changed
    decision = RungDecision(rung=0, arm="a", value=None, place=0, of=3, outcome="failed")
    assert RungDecision.from_text(decision.as_text(), "here") == decision


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field of a JSON value; of lists the first element stands for all."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from fields(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield from fields(value[0], (*path, 0))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


FREE = ("params", "errors", "attempts", "identity", "vary", "set", "sets")
"""Mappings whose keys are data."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(BEFORE)))
def test_a_field_of_another_kind_is_refused_by_its_name(file: Path) -> None:
    """Every field of every record, one after the other."""
    content, num = json.loads(file.read_text()), 0
    for path in fields(content):
        if path[0] == "identity" and len(path) > 1:
            continue  # run/identity.py compares it as JSON
        damaged = json.loads(file.read_text())
        at(damaged, path[:-1])[path[-1]] = {"no": {"such": [None]}} if not isinstance(at(content, path), dict) else 5
        with pytest.raises(ArtifactError) as caught:
            class_of(file).from_text(json.dumps(damaged), file)
        assert caught.value.exit_code == 6, path
        assert str(file) in str(caught.value), path
        assert str(path[0]) in caught.value.what, (path, caught.value.what)
        num += 1
    assert num > 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(BEFORE)))
def test_a_misspelt_field_is_refused_by_its_name(file: Path) -> None:
    for path in fields(json.loads(file.read_text())):
        if any(name in FREE for name in path[:-1]) or "settings" in path[:-1]:
            continue
        damaged = json.loads(file.read_text())
        place = at(damaged, path[:-1])
        place[f"{path[-1]}_"] = place.pop(path[-1])
        with pytest.raises(ArtifactError, match=str(path[-1])) as caught:
            class_of(file).from_text(json.dumps(damaged), file)
        assert (caught.value.exit_code, caught.value.where) == (6, str(file)), path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BEFORE / "race", tmp_path / "race"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def not_utf8(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"convnet3", b"convn\xff\xff3").replace(b"0.3", b"0.\xff", 1))


def a_list(file: Path) -> None:
    file.write_text("[]")


def a_number(file: Path) -> None:
    file.write_text("7")


def nothing(file: Path) -> None:
    file.write_text("")


def deep(file: Path) -> None:
    file.write_text('{"params": ' + "[" * 100_000 + "]" * 100_000 + "}")


@pytest.mark.parametrize("damage", [cut, not_utf8, a_list, a_number, nothing, deep], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [SWEEP_FILE, SEED_POLICY, "trials/0.3-s0.json"])
def test_damage_has_its_exit_code_and_names_the_file(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / name)
    with pytest.raises(ArtifactError) as caught:
        read_run(run, open_store(run.parent))
        read_seed_policy(run)
    assert caught.value.exit_code == 6
    assert caught.value.where == str(run / name)
    assert caught.value.fix


@pytest.mark.parametrize("name", [SWEEP_FILE, "trials/0.3-s0.json"])
@pytest.mark.parametrize("more", [{}, {"invented": 1}], ids=["alone", "with-a-field-of-its-own"])
def test_another_schema_is_refused_as_one(run: Path, name: str, more: dict[str, int]) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | {"schema": 99} | more))
    with pytest.raises(ArtifactError, match="schema: expected 1, found 99") as caught:
        read_run(run, open_store(run.parent))
    assert (caught.value.exit_code, caught.value.code, caught.value.where) == (6, "other-schema", str(run / name))


def test_a_folder_without_a_sweep_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="this is no run folder") as caught:
        read_run(tmp_path, open_store(tmp_path))
    assert (caught.value.exit_code, caught.value.code) == (6, "no-run")


def test_a_start_of_today_leaves_records_of_before_alone(made_run: Made) -> None:
    """Whoever tried a job knows how often; a record that says as much as today's is neither written nor shipped again."""
    folder = made_run()
    run = RunFolder(folder.parent, folder.name)
    for path in run.trials.iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attempts": {"k": 2}}))
    before = {path: path.read_bytes() for path in run.trials.iterdir()}
    asked = as_tuples(read_sweep_record(folder).spec.model_dump(mode="json", exclude_unset=True))
    for trial in planned_trials(check_sweep(Document(asked, "made.yaml"), Path(), {})):
        run.write(TrialProgress(trial, "done", finished=9.0))
    assert {path: path.read_bytes() for path in run.trials.iterdir()} == before
    run.write(TrialProgress(trial, "failed", {"k": "no"}, finished=9.0))
    assert {path for path in before if path.read_bytes() != before[path]} == {run.trials / f"{trial.name}.json"}
