"""One decision on which arm is the best: whoever is asked of a run, by whatever objective, names the same one."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ddgd_ray
from ddgd_ray import cli
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.errors import StageError
from ddgd_ray.exporting.choose import choose
from ddgd_ray.report.notes import selection_note
from ddgd_ray.run.folder import RunFolder, TrialProgress, open_store
from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.search.ask_tell import GridSearch
from ddgd_ray.spec.load import Document
from ddgd_ray.spec.sweep import Sweep, check_sweep
from ddgd_ray.watch.snapshot import best_of, snapshot
from ddgd_ray.watch.view import Tally

CHEAP, GOOD, WIDE = "0.0", "0.008", "0.1"
NUMBERS = {CHEAP: (0.30, 1.0, 0.50), GOOD: (0.40, 5.0, 0.60), WIDE: (0.35, 3.0, 0.90)}
"""{arm: validation accuracy, seconds of its fine-tuning, coverage}: each arm is the best by one of them."""
QUICK = {"metric": "seconds", "direction": "minimize"}
ACCURATE = {"metric": "val_top1", "direction": "maximize"}
NARROW = {"metric": "latents/coverage", "max": 0.55}
AT_MOST_20 = {"metric": "seconds", "max": 20.0}
OBJECTIVES: dict[str, tuple[dict[str, Any], str]] = {
    "validation accuracy": ({}, GOOD),
    "test accuracy": ({"metric": "top1_last"}, GOOD),
    "seconds, minimized": (QUICK, CHEAP),
    "core hours, minimized": ({"metric": "core_hours", "direction": "minimize"}, CHEAP),
    "seconds, maximized": ({"metric": "seconds"}, GOOD),
    "coverage": ({"metric": "latents/coverage"}, WIDE),
    "coverage, minimized": ({"metric": "latents/coverage", "direction": "minimize"}, CHEAP),
    "two objectives": ({"also": (QUICK,)}, GOOD),
    "the cheap one first": (QUICK | {"also": (ACCURATE,)}, CHEAP),
    "three objectives": ({"metric": "latents/coverage", "also": (QUICK, ACCURATE)}, WIDE),
    "a constraint that the best breaks": ({"constraints": (AT_MOST_20,)}, WIDE),
    "a constraint that all break": ({"constraints": ({"metric": "latents/coverage", "min": 0.95},)}, GOOD),
    "two objectives and a constraint": ({"also": (QUICK,), "constraints": (NARROW,)}, CHEAP),
}


@dataclass
class Made:
    """A finished run, the sweep behind it, and the live view's tally of it."""

    sweep: Sweep
    run: Run
    tally: Tally


def made(tmp_path: Path, objective: dict[str, Any], numbers: dict[str, tuple[float, float, float]] = NUMBERS) -> Made:
    """A planned run of three arms at two seeds and a control that beats them all; images and numbers are made up."""
    asked = {
        "name": "made",
        "preset": "digits",
        "vary": {"finetune.lambda_g": tuple(map(float, numbers))},
        "seeds": {"distill": (0, 1), "evaluate": (0,)},
        "evaluate": {"networks": ("convnet3_slim",), "ipc": (2,)},
        "controls": ("random_real",),
        "quality": ("latents",),
        "objective": objective,
    }
    sweep = check_sweep(Document(asked, "made.yaml"), Path(), {})
    folder, store = RunFolder(tmp_path, "made"), open_store(tmp_path)
    store.prepare()
    folder.prepare()
    folder.remember(sweep)
    for trial in planned_trials(sweep):
        accuracy, seconds, coverage = numbers.get(trial.arm, (0.99, 0.1, 0.99))
        for call in trial.calls():
            if not store.has(*call.ref):
                with store.scratch(call.key) as out:
                    (out / "made.txt").write_text("made up")
                    metrics = dict.fromkeys(("val_top1", "top1_last"), accuracy) if call.stage == "evaluate" else {}
                    metrics = {"coverage": coverage} if call.stage == "quality" else metrics
                    store.publish(out, call.spec, call.input_keys(), metrics, seconds)
        folder.write(TrialProgress(trial, "done"))
    tally = Tally()
    conductor = Conductor(sweep, store, GridSearch(sweep), folder, lambda event: None)
    conductor.next()  # everything is published: all trials are found done
    tally.start(conductor)
    return Made(sweep, read_run(folder.path, store), tally)


def named_by_note(run: Run) -> str:
    found = re.search(r"\*\*(.+?)\*\*", selection_note(run))
    return found[1] if found else ""


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_whoever_is_asked_names_the_same_best_arm(kind: str, tmp_path: Path) -> None:
    objective, best = OBJECTIVES[kind]
    found = made(tmp_path, objective)
    live, seen = found.tally.best, snapshot(found.run.path).best
    assert live == seen, "the live panel and `status` tell the same, to the last digit"
    assert seen is not None
    named = {
        "status": seen.arm,
        "notebook": ddgd_ray.open_run(found.run.path).best,
        "export": choose(found.run).arm,
        "report": named_by_note(found.run),
        "page": found.run.ranked[0],
    }
    assert named == dict.fromkeys(named, best)


@pytest.mark.parametrize("kind", ["two objectives", "three objectives", "two objectives and a constraint"])
def test_whoever_is_asked_names_the_same_front(kind: str, tmp_path: Path) -> None:
    objective, best = OBJECTIVES[kind]
    found = made(tmp_path, objective)
    front = found.run.ranking.front
    assert front[0] == best
    assert found.tally.best is not None
    assert list(found.tally.best.front) == ddgd_ray.open_run(found.run.path).front == front


def test_the_value_of_the_best_is_its_mean_by_the_objective(tmp_path: Path) -> None:
    found = made(tmp_path, {"metric": "seconds", "direction": "minimize"})
    best = snapshot(found.run.path).best
    assert best is not None
    stages = [ref.stage for ref in found.run.of_arm(CHEAP)[0].own_refs()]
    assert (best.mean, best.n) == (pytest.approx(NUMBERS[CHEAP][1] * len(stages)), 2)


def test_arms_that_are_equal_are_told_in_the_order_of_the_sweep_file_by_all(tmp_path: Path) -> None:
    found = made(tmp_path, {}, dict.fromkeys(("0.1", "0.0", "0.008"), (0.3, 1.0, 0.5)))
    assert found.tally.best is not None
    assert [found.run.ranking.best, found.tally.best.arm, choose(found.run).arm] == ["0.1"] * 3


def test_without_a_value_nobody_names_an_arm(tmp_path: Path) -> None:
    """An objective on what was never measured: no arm, no crash, and an export that says so."""
    found = made(tmp_path, {"metric": "top1_best"})
    assert found.run.ranking.best == ""
    assert found.tally.best is None
    assert snapshot(found.run.path).best is None
    assert ddgd_ray.open_run(found.run.path).best is None
    assert named_by_note(found.run) == ""
    with pytest.raises(StageError, match="no arm has a result yet"):
        choose(found.run)


def test_controls_and_arms_with_fewer_seeds_do_not_win(tmp_path: Path) -> None:
    found = made(tmp_path, {})
    lost = found.run.of_arm(GOOD)[1]
    (found.run.path / "trials" / f"{lost.name}.json").write_text(lost.model_copy(update={"state": "failed"}).as_text())
    run = read_run(found.run.path, found.run.store)
    assert run.ranking.order == [WIDE, CHEAP, GOOD]
    assert best_of(run.ranking) == snapshot(run.path).best
    assert run.ranking.best == WIDE


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{metric: seconds, direction: minimize}", "Best by seconds: **"),
        ("{metric: latents/coverage}", "Best by latents/coverage: **"),
        ("{also: [{metric: seconds, direction: minimize}]}", "Best by val_top1 at 2 images per class: **"),
        ("{constraints: [{metric: seconds, max: 1e6}]}", "Best by val_top1 at 2 images per class: **"),
    ],
)
def test_a_sweep_names_its_best_arm_and_so_do_status_notebook_and_export(
    section: str, said: str, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        assert not ended.value.code
        return capsys.readouterr().out

    text = tiny_file.read_text().replace("distill: [0, 1]", "distill: [0]")
    (tmp_path / "tiny.yaml").write_text(f"{text}quality: [latents]\nobjective: {section}\n")
    run = tmp_path / "tiny"
    told = shown("sweep", str(tmp_path / "tiny.yaml"), "--run-dir", str(tmp_path), "--executor", "local", "--no-tracking")
    best = ddgd_ray.open_run(run).best
    assert f"{said}{best}**" in told
    assert f"best {best}, " in shown("status", str(run))
    told = shown("export", str(run), "--format", "imagefolder", "--to", str(tmp_path / "out"))
    assert f"arm       {best}, seed 0, best by " in told
    assert "The run's objective prefers this arm: " in (tmp_path / "out" / "README.md").read_text()
