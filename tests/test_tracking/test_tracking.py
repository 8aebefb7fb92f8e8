"""MLflow: three levels of runs from the outbox, named for its comparisons; sending twice changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.errors import ArtifactError
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.reading import read_run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.tracking import tracker
from ddgd_ray.tracking.mlflow import Runs, connect
from ddgd_ray.tracking.outbox import Outbox
from ddgd_ray.tracking.pictures import Picture

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def record_of(folder: RunFolder, name: str) -> TrialRecord:
    return TrialRecord.read(folder.trials / f"{name}.json")


@pytest.fixture(scope="module")
def shipped(tracked: Any) -> Path:
    database: Path = tracked.database()
    folder = tracked.copy()
    assert tracker.waiting(folder) == ["fifo-s0", "max-s0", "random_real-s0"]
    assert not tracked.send(folder, database)
    return database


@pytest.fixture(scope="module")
def runs(shipped: Path) -> dict[str, Any]:
    client = connect(f"sqlite:///{shipped}")
    experiment = client.get_experiment_by_name("tiny")
    return {run.data.tags["ddgd.key"]: run for run in client.search_runs([experiment.experiment_id])}


def test_runs_are_nested_sweep_trial_evaluator(runs: dict[str, Any]) -> None:
    by_id = {run.info.run_id: run for run in runs.values()}
    kinds: dict[str, list[str]] = {}
    for run in runs.values():
        parent = by_id.get(run.data.tags.get("mlflow.parentRunId", ""))
        kinds.setdefault(run.data.tags["ddgd.kind"], []).append(parent.data.tags["ddgd.kind"] if parent else "")
        assert run.data.tags.get("ddgd.parent_key") == (parent.data.tags["ddgd.key"] if parent else None)
    assert kinds == {"sweep": [""], "trial": ["sweep"] * 3, "evaluator": ["trial"] * 3}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_trial_has_its_parameters_means_curves_and_diagnostics(runs: dict[str, Any]) -> None:
    run = runs["tiny/fifo-s0"]
    assert run.data.params == {"finetune.memory_real.pop": "fifo", "arm": "fifo", "distill_seed": "0"}
    kinds = ("held_out_validation", "test")
    means = {f"{kind}/{what}" for kind in kinds for what in ("mean", "convnet3_slim/ipc2")}
    losses = {"finetune/L_diffusion", "finetune/L_real", "finetune/L_gen", "finetune/vb"}
    memory = {"finetune/memory_gen/mean_age", "finetune/memory_real/mean_cosine", "finetune/memory_gen/effective_rank"}
    assert means | losses | memory <= run.data.metrics.keys()


def test_trials_and_their_evaluators_say_what_made_them(runs: dict[str, Any]) -> None:
    trial, evaluator = runs["tiny/fifo-s0"].data, runs["tiny/fifo-s0/convnet3_slim/ipc2/seed0"].data
    assert {"ddgd.finetune", "ddgd.sample", "ddgd.preset", "ddgd.protocol", "ddgd.distill_seed"} <= trial.tags.keys()
    assert {"ddgd.version.torch", "ddgd.version.ray", "ddgd.version.ddgd_ray"} <= trial.tags.keys()
    assert (
        evaluator.params | {"finetune.memory_real.pop": "fifo", "network": "convnet3_slim", "ipc": "2", "evaluate_seed": "0"}
        == evaluator.params
    )
    assert {"loss", "held_out_validation/top1", "test/top1_by_step", "test/top1"} <= evaluator.metrics.keys()
    assert evaluator.metrics["test/top1"] == trial.metrics["test/mean"]


def test_whoever_compares_runs_meets_validation_before_test(runs: dict[str, Any]) -> None:
    """MLflow lists metrics by name, and its plots begin with the first."""
    for key in ("tiny", "tiny/fifo-s0", "tiny/fifo-s0/convnet3_slim/ipc2/seed0"):
        names = sorted(runs[key].data.metrics)
        read = [name.partition("/")[0] for name in names if name.startswith(("held_out_validation", "test", "top1", "val"))]
        assert read[0] == "held_out_validation"
        assert set(read) <= {"held_out_validation", "test", "test_oracle", "test_selected"}


def test_a_classifier_is_named_with_its_arm_and_seed(runs: dict[str, Any]) -> None:
    names = [run.info.run_name for run in runs.values() if run.data.tags["ddgd.kind"] == "evaluator"]
    assert sorted(names) == [f"{trial}/convnet3_slim/ipc2/seed0" for trial in ("fifo-s0", "max-s0", "random_real-s0")]


def test_the_sweep_has_the_best_arms_parameters_numbers_and_a_tag(tracked: Any, runs: dict[str, Any]) -> None:
    found = read_run(tracked.result.folder.path, tracked.store)
    best, sweep = found.ranking.best, runs["tiny"].data
    assert sweep.tags["ddgd.best"] == best
    assert sweep.tags["ddgd.best.value"] == f"{found.ranking.stat(best)} by val_top1"
    params = found.of_arm(best)[0].params
    assert sweep.params == {path: str(value) for path, value in params.items()} | {"arm": best}
    assert sweep.metrics["objective/val_top1"] == found.ranking.worths[best].values[0]
    assert sweep.metrics["held_out_validation/mean"] == runs[f"tiny/{best}-s0"].data.metrics["held_out_validation/mean"]


def test_another_best_arm_of_a_sweep_that_goes_on_is_told_by_tags_and_refused_by_nobody(tracked: Any) -> None:
    """MLflow never changes a parameter."""
    folder, database = tracked.copy(), tracked.database()
    assert not tracked.send(folder, database)
    best = read_run(folder.path, tracked.store).ranking.best
    for seed_of_best in folder.trials.glob(f"{best}-s*.json"):
        failed = TrialRecord.read(seed_of_best).model_copy(update={"state": "failed"})
        seed_of_best.write_text(failed.as_text())
    assert not tracked.send(folder, database)
    client = connect(f"sqlite:///{database}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "tiny"]
    (sweep,) = client.search_runs([experiment.experiment_id], "tags.`ddgd.kind` = 'sweep'")
    assert sweep.data.params["arm"] == best
    assert sweep.data.tags["ddgd.best"] == ({"max", "fifo"} - {best}).pop()


def test_reused_work_takes_a_run_no_time(tiny: Any, tracked: Any, tmp_path: Path) -> None:
    """The same trials under another name, an hour later, and a classifier seed more: that one alone is work."""
    shutil.copytree(tracked.result.folder.run_dir / "store", tmp_path / "store")
    for manifest in (tmp_path / "store").glob("*/*/manifest.json"):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"created": content["created"] - 3600}))
    more = {"seeds.distill": (0,), "seeds.evaluate": (0, 1), "controls": (), "name": "again"}
    result = run_sweep(tiny(more), tmp_path, run_in_process)
    store, tracked.store = tracked.store, open_store(tmp_path)
    database = tracked.database()
    try:
        assert not tracked.send(result.folder, database)
    finally:
        tracked.store = store
    client = connect(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("again").experiment_id
    runs = {run.data.tags["ddgd.key"]: run for run in client.search_runs([experiment])}
    lasted = {key: (run.info.end_time - run.info.start_time) / 1000 for key, run in runs.items()}
    for trial in ("fifo-s0", "max-s0"):
        assert lasted[f"again/{trial}/convnet3_slim/ipc2/seed0"] == 0
        assert 0 < lasted[f"again/{trial}/convnet3_slim/ipc2/seed1"] < 60
        assert 0 < lasted[f"again/{trial}"] < 600
        assert runs[f"again/{trial}"].data.tags["ddgd.reused"] == "finetune sample"


def test_the_data_are_named_by_digest(runs: dict[str, Any]) -> None:
    def data(key: str) -> dict[str, str]:
        return {item.tags[0].value: item.dataset.digest for item in runs[key].inputs.dataset_inputs}

    of_trial, of_evaluator = data("tiny/fifo-s0"), data("tiny/fifo-s0/convnet3_slim/ipc2/seed0")
    assert of_trial["distilled"] == runs["tiny/fifo-s0"].data.tags["ddgd.sample"][:36]
    assert of_evaluator["training"] == of_trial["distilled"]
    assert of_trial["training"] == data("tiny/random_real-s0")["training"]


def test_the_sweep_has_table_and_pictures_and_a_trial_its_grid_by_step(
    shipped: Path, runs: dict[str, Any], rows_of: Any
) -> None:
    files = {(key, name.partition("+timestamp")[0]) for key, name, _ in rows_of(shipped)["files"]}
    assert {("SWEEP", "report/table.md"), ("SWEEP", "report/table.tex"), ("SWEEP", "report/grid-fifo.png")} <= files
    assert ("SWEEP/fifo-s0", "images/distilled+step+3") in files
    assert "| fifo |" in runs["tiny"].data.tags["mlflow.note.content"]


def test_a_picture_is_named_as_mlflow_names_it(tracked: Any, rows_of: Any) -> None:
    database = tracked.database()
    client = connect(f"sqlite:///{database}")
    runs = Runs(client, "tiny", tracked.scratch.as_uri())
    ours, theirs = (runs.create({"ddgd.key": key, "mlflow.runName": key}, 1.0) for key in ("ours", "theirs"))
    image = Image.new("RGB", (40, 30), "red")
    runs.log_pictures(ours, [Picture(image, "memory/real", 7, 2.5)])
    client.log_image(theirs, image, key="memory/real", step=7, timestamp=2500, synchronous=True)
    found: dict[str, list[str]] = {"ours": [], "theirs": []}
    for key, name, _ in rows_of(database)["files"]:
        start, _, end = name.rpartition("+timestamp+2500+")
        found[key].append(f"{start} {len(end)} {end[36:]}")
    assert found["ours"] == found["theirs"]
    assert client.get_run(ours).data.tags["mlflow.loggedImages"] == client.get_run(theirs).data.tags["mlflow.loggedImages"]


def test_pictures_of_memories_are_sent_by_step(tracked: Any, tmp_path: Path, rows_of: Any) -> None:
    folder, database = tracked.copy("fifo-s0"), tracked.database()
    tuned = record_of(folder, "fifo-s0").finetune
    assert tuned is not None
    shutil.copytree(tracked.store.root, tmp_path / "store")
    place = tmp_path / "store" / "finetune" / tuned.key / "memory"
    place.mkdir()
    for step in (10, 20):
        Image.new("L", (8, 8), step).save(place / f"real-{step:05d}.png")
    portrait = tmp_path / "store" / "portray" / "p"
    portrait.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(portrait / "a.png")
    entries = [{"memory": "gen", "step": step, "class": "0", "files": ["a.png"]} for step in (0, 30)]
    (portrait / "index.json").write_text(json.dumps(entries))
    manifest = {"schema": 1, "key": "p", "stage": "portray", "inputs": {"adapter": tuned.key}, "created": 3.0}
    manifest |= {"metrics": {}, "seconds": 1.0, "version": 1, "spec": {}, "files": {}}
    (portrait / "manifest.json").write_text(json.dumps(manifest))
    store, tracked.store = tracked.store, open_store(tmp_path)
    try:
        assert not tracked.send(folder, database)
    finally:
        tracked.store = store
    names = {name.partition("+timestamp")[0] for _, name, _ in rows_of(database)["files"]}
    assert {"images/memory~real+step+10", "images/memory~real+step+20"} <= names  # files of the fine-tuning
    assert {"images/memory~gen+step+0", "images/memory~gen+step+30"} <= names  # decoded for a report


def test_a_trial_that_is_tested_later_leaves_the_rows_of_one_sent_once(
    tiny: Any, tmp_path: Path, tracked: Any, rows_of: Any
) -> None:
    sent: list[tuple[str, str]] = []

    def note(event: Any) -> None:
        if event.kind == "trial":
            sent.append((event.record.trial.name, event.record.record.as_text()))

    changes = {"test": "finalists", "images.validation_per_class": 20, "seeds.distill": (0,), "controls": ()}
    result = run_sweep(tiny(changes), tmp_path, run_in_process, emit=note)
    twice = [name for name in dict(sent) if [other for other, _ in sent].count(name) == 2]
    assert twice
    store, tracked.store = tracked.store, open_store(tmp_path)
    found = []
    try:
        for texts in (sent, list(dict(sent).items())):
            database = tracked.database()
            for name, text in texts:
                (result.folder.outbox / f"{name}.json").write_text(text)
                assert not tracked.send(result.folder, database)
            found.append(rows_of(database))
    finally:
        tracked.store = store
    assert found[0] == found[1]


def test_a_failed_trial_that_later_succeeds_ends_without_its_error(tracked: Any, rows_of: Any) -> None:
    folder, database = tracked.copy("fifo-s0"), tracked.database()
    sound = record_of(folder, "fifo-s0")
    failed = sound.model_copy(update={"state": "failed", "errors": {"x": "died"}})
    (folder.outbox / "fifo-s0.json").write_text(failed.as_text())
    assert not tracked.send(folder, database)
    assert [row[6] for row in rows_of(database)["runs"] if row[1] == "fifo-s0"] == ["FAILED"]
    (folder.outbox / "fifo-s0.json").write_text(sound.as_text())
    assert not tracked.send(folder, database)
    assert rows_of(database) == tracked.calm("fifo-s0")


def test_an_interrupted_sweep_is_not_shown_as_finished(tracked: Any, rows_of: Any) -> None:
    folder, database = tracked.copy("fifo-s0", "max-s0"), tracked.database()
    planned = record_of(folder, "fifo-s0").model_copy(update={"state": "planned"})
    (folder.trials / "fifo-s0.json").write_text(planned.as_text())
    (folder.outbox / "fifo-s0.json").unlink()
    assert not tracked.send(folder, database)
    assert [row[6] for row in rows_of(database)["runs"] if row[1] == "SWEEP"] == ["KILLED"]


def test_a_record_that_cannot_be_read_does_not_hold_up_the_others(tracked: Any) -> None:
    folder, database = tracked.copy("fifo-s0", "max-s0"), tracked.database()
    (folder.outbox / "fifo-s0.json").write_text("{")
    left = tracked.send(folder, database)
    assert (left.waiting, left.refused) == (0, 1)
    reason = (folder.outbox / "refused" / "fifo-s0.txt").read_text()
    assert "ArtifactError: error[damaged-record]" in reason
    assert "fifo-s0.json: cannot be read" in reason


def test_a_record_that_changes_while_it_is_sent_is_sent_again(tracked: Any) -> None:
    folder = tracked.copy("fifo-s0")
    outbox, later = Outbox(folder.outbox), record_of(folder, "fifo-s0")
    earlier = later.model_copy(update={"state": "failed"})
    with outbox.lock(wait=False):
        (folder.outbox / "fifo-s0.json").write_text(earlier.as_text())
        assert outbox.take("fifo-s0") == earlier
        (folder.outbox / "fifo-s0.json").write_text(later.as_text())
        outbox.done("fifo-s0")
        assert outbox.waiting() == ["fifo-s0"]
        assert outbox.take("fifo-s0") == later


def test_two_shippers_do_not_send_one_run(tracked: Any) -> None:
    folder = tracked.copy()
    with Outbox(folder.outbox).lock(wait=False), pytest.raises(ArtifactError, match="another process"):
        tracked.send(folder, tracked.database())


def test_a_deleted_experiment_is_restored(tracked: Any, rows_of: Any) -> None:
    database = tracked.database()
    client = connect(f"sqlite:///{database}")
    client.delete_experiment(client.create_experiment("tiny", tracked.scratch.as_uri()))
    assert not tracked.send(tracked.copy("fifo-s0"), database)
    assert len(rows_of(database)["runs"]) == 3


PROGRAM = """
import sys
from ddgd_ray.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("loaded", sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "mlflow"}), end.code)
"""


def command(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=110, env=os.environ | environment
    )
    return done.stdout + done.stderr


def test_the_shipper_knows_neither_torch_nor_ray(tracked: Any) -> None:
    folder = tracked.copy("fifo-s0")
    shutil.copytree(tracked.store.root, folder.run_dir / "store")
    text = command("mlflow", "sync", str(folder.path), "--tracking-uri", f"sqlite:///{tracked.database()}")
    assert "loaded ['mlflow'] 0" in text


def test_a_sweep_without_a_server_ends_soon_with_a_warning_and_never_imports_mlflow(
    tiny_file: Path, tracked: Any, tmp_path: Path
) -> None:
    shutil.copytree(tracked.result.folder.run_dir, tmp_path / "runs")
    arguments = ["sweep", str(tiny_file), "--set", "seeds.distill=[0]", "--run-dir", str(tmp_path / "runs")]
    text = command(*arguments, "--executor", "local", "--tracking-required", "--tracking-uri", "http://127.0.0.1:9")
    assert "warning: 4 records are not in MLflow (4 waiting)" in text
    assert "ddgd-ray mlflow sync" in text
    loaded = text[text.index("loaded") :]
    assert "mlflow" not in loaded
    assert loaded.split()[-1] == "5"


def test_a_password_in_an_address_is_not_repeated_in_the_reason(tracked: Any) -> None:
    word = "-".join(["not", "for", "logs"])
    left = tracked.send(tracked.copy("fifo-s0"), f"nowhere://u:{word}@host/db")  # the error cites the address
    assert "nowhere://u:***@host/db" in left.why
    assert word not in left.why


def test_the_process_list_does_not_show_the_address(tracked: Any) -> None:
    folder = tracked.copy()
    word = "-".join(["not", "for", "lists"])
    shipper = tracker.start_shipper(folder, f"http://u:{word}@127.0.0.1:9")
    shown = Path(f"/proc/{shipper.pid}/cmdline").read_bytes().decode()
    left = tracker.close(folder, shipper, 0.0)
    assert shipper.poll() is not None
    assert word not in shown
    assert left.waiting == 4
