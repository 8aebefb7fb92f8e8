"""A run in a notebook: frames that agree with the tables, pictures, and none of the frameworks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ddgd_ray
from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.report.tables import averaged_csv
from ddgd_ray.run.results import over_seeds
from ddgd_ray.spec.search_spec import SearchSpec

FRAMEWORKS = ("torch", "ray", "mlflow", "optuna")


@pytest.fixture(scope="module")
def path(made_run: Callable[..., Path]) -> Path:
    return made_run()


@pytest.fixture
def run(path: Path) -> Any:
    return ddgd_ray.open_run(path)


def in_a_fresh_process(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "MPLBACKEND": ""},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_of_a_run_needs_a_framework(path: Path, tmp_path: Path) -> None:
    code = f"""
import json, sys
import ddgd_ray
early = sorted(name for name in ("pandas", "numpy", "PIL", "pydantic") if name in sys.modules)
run = ddgd_ray.open_run({str(path)!r})
frames = [run.trials, run.evaluations, run.quality, run.costs, run.curves("0.0-s0"), run.table()]
run._repr_html_(), run.images(), run.best, run.selection, run.export("hf", {str(tmp_path / "out")!r})
late = "matplotlib" in sys.modules
run.plot("lambda_g")
print(json.dumps([early, late, [name for name in {FRAMEWORKS!r} if name in sys.modules], list(map(len, frames))]))
"""
    early, is_drawing_early, frameworks, lengths = in_a_fresh_process(code)
    assert early == []
    assert not is_drawing_early
    assert frameworks == []
    assert all(lengths)


def test_the_command_needs_no_framework_either(path: Path, tmp_path: Path) -> None:
    words = ["export", str(path), "--format", "webdataset", "--to", str(tmp_path / "out")]
    code = f"""
import json, sys
from ddgd_ray import cli
try:
    cli.main({words!r})
except SystemExit as err:
    assert not err.code, err.code
print(json.dumps([name for name in {FRAMEWORKS!r} if name in sys.modules]))
"""
    assert in_a_fresh_process(code) == []


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    assert {"open_run", "Run", "__version__"} <= set(dir(ddgd_ray))
    with pytest.raises(AttributeError, match="no attribute 'open_rum'"):
        ddgd_ray.open_rum  # type: ignore[attr-defined]  # noqa: B018


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="this is no run folder"):
        ddgd_ray.open_run(tmp_path)


def test_every_trial_has_a_line_in_the_order_of_the_tables(run: Any) -> None:
    trials = run.trials
    assert list(trials.index) == [f"{arm}-s{seed}" for arm in ("0.0", "0.008", "random_real") for seed in (0, 1, 2)]
    assert list(trials.loc["0.008-s1", ["seed", "state", "finetune.lambda_g", "num_evaluated"]]) == [1, "done", 0.008, 2]
    assert np.isnan(trials.loc["random_real-s0", "finetune.lambda_g"])
    assert trials.loc["0.008-s1", "objective"] == pytest.approx(0.307)
    assert len(trials.loc["0.008-s1", "finetune"]) == 64


def test_every_classifier_has_a_line(run: Any) -> None:
    frame = run.evaluations
    assert len(frame) == 9 * 2
    assert not frame["key"].duplicated().any()
    means = frame[frame["ipc"] == 3].groupby("arm")["val_top1"].mean()
    assert means["0.008"] == pytest.approx(over_seeds([row for row in run.data.rows if row.arm == "0.008"], "val_top1").mean)


def test_the_table_holds_what_the_report_writes(run: Any) -> None:
    import csv
    import io

    lines = list(csv.DictReader(io.StringIO(averaged_csv(run.data.rows, ["convnet3_slim"]))))
    for metric in ("val_top1", "top1_last"):
        table = run.table(metric, ipc=2)
        assert table.attrs["metric"] == metric
        for line in lines:
            if (line["metric"], line["ipc"], line["network"]) == (metric, "2", "all"):
                ours = table.loc[line["arm"], ["mean", "std", "n", "low", "high"]].tolist()
                assert ours == [float(line[name]) for name in ("mean", "std", "n", "ci_low", "ci_high")]
    assert list(run.table().index) == ["0.0", "0.008", "random_real"]
    assert run.table().attrs == {"metric": "top1_last", "ipc": 3, "protocol": "quick-digits"}


def test_best_is_the_arm_that_the_report_names(run: Any) -> None:
    assert run.best == "0.008"
    assert "**0.008**" in run.selection


def test_quality_costs_and_curves(run: Any) -> None:
    assert set(run.quality.columns) >= {"trial", "arm", "seed", "finetune.lambda_g", "space", "ipc", "coverage"}
    assert len(run.quality) == 9 * 2
    costs = run.costs
    assert dict(costs.groupby("stage")["key"].count())["finetune"] == 6
    assert costs.loc[costs["stage"] == "encode", "num_trials"].item() == 6  # made once for all fine-tunings
    curve = run.curves("0.008-s0", "finetune")
    assert list(curve["step"]) == [0, 1, 2]
    assert list(curve["loss"]) == [1.0, 0.5, pytest.approx(1 / 3)]
    assert set(run.curves("0.008-s0")["stage"]) >= {"finetune", "evaluate"}


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda run: run.table("val_top"), "no metric 'val_top'.*\n  help: did you mean val_top1?"),
        (lambda run: run.table(ipc=50), "no ipc 50; there: 2, 3"),
        (lambda run: run.table(protocol="idc"), "no protocol 'idc'; there: quick-digits"),
        (lambda run: run.curves("0.008"), "no trial '0.008'.*\n  help: did you mean 0.008-s"),
        (lambda run: run.curves("0.008-s0", "tune"), "no stage 'tune'; there: .*\n  help: did you mean finetune?"),
        (lambda run: run.plot("lambda_r"), "'lambda_r' does not vary in this run; varied: finetune.lambda_g"),
        (lambda run: run.figure("arm"), "no figure 'arm'; known: arms, sensitivity, costs"),
        (lambda run: run.images("0.08"), "no arm '0.08'"),
        (lambda run: run.images(seed=9), "no seed 9; there: 0, 1, 2"),
        (lambda run: run.export("zip"), "no layout 'zip'"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(ask: Callable[[Any], Any], what: str, run: Any) -> None:
    with pytest.raises(SpecError, match=what):
        ask(run)


def test_images_are_those_of_the_arm(run: Any) -> None:
    images = run.images("0.0", seed=1, ipc=2)
    assert list(images) == list("0123456789")
    assert {len(of_class) for of_class in images.values()} == {2}
    folder = run.data.store.get("sample", run.trials.loc["0.0-s1", "set"]).path
    assert np.array_equal(np.asarray(images["7"][1]), np.asarray(Image.open(folder / "images" / "7" / "00001.png")))


def test_a_plot_shows_every_seed_and_the_means(run: Any) -> None:
    axes = run.plot("lambda_g", "val_top1", controls=True)
    (dots,) = axes.collections
    points = sorted(map(tuple, dots.get_offsets().tolist()))
    rows = run.evaluations[(run.evaluations["ipc"] == 3) & ~run.evaluations["is_control"]]
    assert points == sorted(zip(rows["finetune.lambda_g"], rows["val_top1"], strict=True))
    line = axes.lines[0]
    assert list(line.get_xdata()) == [0.0, 0.008]
    assert list(line.get_ydata()) == list(run.table("val_top1").loc[["0.0", "0.008"], "mean"])
    assert axes.get_xlabel() == "finetune.lambda_g"
    assert axes.lines[1].get_label() == "random_real (control)"


def test_words_on_x_stand_in_the_order_of_the_sweep_file(made_run: Callable[..., Path]) -> None:
    pops = ("max_similarity", "fifo")
    two = {"finetune.memory_gen.pop": pops, "finetune.memory_real.pop": pops}
    run = ddgd_ray.open_run(made_run({"vary": two, "seeds.distill": (0,), "quality": ()}))
    axes = run.plot("memory_gen.pop")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["max_similarity", "fifo"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "memory_real.pop max_similarity",
        "memory_real.pop fifo",
    ]
    with pytest.raises(SpecError, match="'pop' is the end of finetune.memory_gen.pop and of finetune.memory_real.pop"):
        run.plot("pop")


def test_a_search_is_one_cloud_without_a_line(made_run: Callable[..., Path]) -> None:
    two = {"finetune.lambda_g": (0.1, 0.2), "finetune.lambda_r": (0.3, 0.4)}
    grid = ddgd_ray.open_run(made_run({"vary": two, "seeds.distill": (0,), "quality": ()}))
    spec = grid.spec.model_copy(update={"vary": {}, "search": SearchSpec(space="some.yaml")})
    searched = replace(grid.data, sweep=grid.data.sweep.model_copy(update={"spec": spec}))
    (means,) = ddgd_ray.Run(searched).plot("lambda_g").lines
    assert means.get_linestyle() == "None"
    assert list(means.get_xdata()) == [0.1, 0.1, 0.2, 0.2]
    assert len(grid.plot("lambda_g").lines) == 2


@pytest.mark.parametrize("name", ["arms", "sensitivity", "costs"])
def test_each_figure_is_drawn(name: str, run: Any, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = run.figure(name)
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    assert len(set(Image.open(tmp_path / "figure.png").convert("L").tobytes())) > 10


def test_a_notebook_shows_the_table_with_names_escaped(run: Any) -> None:
    shown = run._repr_html_()
    assert "<b>made: preset digits</b>" in shown
    assert "<th>0.008</th>" in shown
    assert "random_real" in shown
    assert "no claim of significance" in shown
    assert repr(run) == "<Run made: 3 arms, trials 9 done, best 0.008>"


def test_a_run_without_results_opens_and_shows_itself(made_run: Callable[..., Path]) -> None:
    run = ddgd_ray.open_run(made_run(is_done=False))
    assert run.best is None
    assert list(run.trials["state"]) == ["planned"] * 9
    assert [len(frame) for frame in (run.evaluations, run.quality, run.costs, run.table(), run.curves("0.0-s0"))] == [0] * 5
    assert "trials: 9 planned" in run._repr_html_()
    assert "No arm has finished." in run._repr_html_()


def test_a_run_is_as_it_was_until_refreshed(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path.parent, tmp_path / "runs")) / path.name
    run = ddgd_ray.open_run(copy)
    for file in (copy / "trials").glob("random_real-*"):
        file.unlink()
    assert run.arms == ["0.0", "0.008", "random_real"]
    assert run.refresh().arms == ["0.0", "0.008"]
