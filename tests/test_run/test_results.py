"""Rows: what the records and the store say, each result under its protocol."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest

from ddgd_ray.report.notes import missing_note, readings_note
from ddgd_ray.report.per_class import per_class_csv
from ddgd_ray.report.quality import quality_tables
from ddgd_ray.report.render import markdown
from ddgd_ray.run.records import QualityRecord
from ddgd_ray.run.results import over_seeds, protocols_of, rows_of, stage_costs
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Store
from tests.run_parts import evaluator, publish, row, run_with, trial


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def evaluate(store: Store, key: str, metrics: dict[str, float], **protocol: str) -> Ref:
    """A published classifier."""
    return publish(store, "evaluate", key, metrics, spec={"protocol": protocol or {"name": "quick"}})


def test_the_test_artifact_of_an_evaluator_is_merged_over_it(store: Store) -> None:
    ref = evaluate(store, "e1", {"val_top1": 0.6, "train_loss": 1.0})
    test = publish(store, "test", "t1", {"top1_last": 0.7, "train_loss": 2.0})
    (row,) = rows_of([trial("a", 0, [evaluator(ref, test=test)])], store)
    assert row.metrics == {"val_top1": 0.6, "top1_last": 0.7, "train_loss": 2.0}
    assert (row.key, row.tested_by) == ("e1", Ref("test", "t1"))


def test_a_test_that_is_not_published_leaves_validation_alone(store: Store) -> None:
    ref = evaluate(store, "e1", {"val_top1": 0.6})
    (row,) = rows_of([trial("a", 0, [evaluator(ref, test=Ref("test", "t1"))])], store)
    assert row.metrics == {"val_top1": 0.6}
    assert row.tested_by is None


def test_a_protocols_label_goes_before_its_name(store: Store) -> None:
    refs = [
        evaluate(store, "plain", {"top1_last": 0.5}, name="quick", label="quick-noaug"),
        evaluate(store, "augmented", {"top1_last": 0.6}),
    ]
    rows = rows_of([trial("a", 0, map(evaluator, refs))], store)
    assert [row.protocol for row in rows] == ["quick-noaug", "quick"]
    assert protocols_of(rows) == ["quick", "quick-noaug"]


def test_the_note_counts_each_trained_classifier_that_read_the_test_images_once(store: Store) -> None:
    shared = evaluator(evaluate(store, "e1", {"top1_last": 0.7}))
    rows = rows_of([trial("a", seed, [shared]) for seed in range(2)], store)
    assert readings_note(rows) == "Test images were read by 1 trained classifier."


def test_the_note_says_when_only_finalists_were_tested(store: Store) -> None:
    refs = [evaluate(store, f"e{seed}", {"val_top1": 0.6}) for seed in range(3)]
    test = publish(store, "test", "t0", {"top1_last": 0.7})
    others = [trial("b", seed, [evaluator(ref)]) for seed, ref in enumerate(refs[1:])]
    rows = rows_of([trial("a", 0, [evaluator(refs[0], test=test)]), *others], store)
    assert readings_note(rows) == "The test set was touched by the finalists alone: 1 of 3 trained classifiers (a)."
    assert readings_note(rows[1:]) == "Test images were read by none of the 2 trained classifiers."


def test_evaluators_without_a_result_are_counted(store: Store, tmp_path: Path) -> None:
    rows = [row("a", 0), row("b", 0)]
    absent = trial("b", 1, [evaluator(Ref("evaluate", "absent"))])
    assert missing_note(run_with(tmp_path, store, rows)) == ""
    assert missing_note(run_with(tmp_path, store, rows, [absent])).startswith("1 of 3 evaluators have no result")


def test_quality_has_a_table_for_each_feature_space(store: Store) -> None:
    trials = []
    for arm in ("a", "b"):
        for seed in range(2):
            values = {"coverage": 0.5 + 0.1 * seed, "frechet": 123.4 + seed}
            quality = tuple(
                QualityRecord(*publish(store, "quality", f"{arm}{seed}{space}", values), f"{space}, 10 images per class")
                for space in ("dino", "inception")
            )
            trials.append(trial(arm, seed, quality=quality))
    first, second = quality_tables(trials, store)
    assert "features dino" in first.title
    assert "features inception" in second.title
    lines = markdown(first).splitlines()
    assert lines[2] == "| arm | n | coverage | frechet |"
    assert lines[4] == "| a | 2 | 0.550 ± 0.071 | 123.9 ± 0.7 |"


def test_records_without_quality_have_no_such_table(store: Store) -> None:
    assert quality_tables([trial("a", 0)], store) == []


def test_costs_count_tests_and_quality_too(store: Store) -> None:
    shared = evaluator(evaluate(store, "e1", {}), test=publish(store, "test", "t1", {}))
    trials = []
    for seed in range(2):
        features, quality = publish(store, "features", f"f{seed}", {}), publish(store, "quality", f"q{seed}", {})
        measured = (QualityRecord(*quality, "dino, 10 images per class"),)
        trials.append(trial("a", seed, [shared], quality=measured, measures=((features, quality),)))
    costs = {cost.stage: (cost.count, cost.seconds) for cost in stage_costs(trials, store)}
    assert costs == {"evaluate": (1, 2.0), "test": (1, 2.0), "features": (2, 4.0), "quality": (2, 4.0)}


def test_rows_without_a_metric_have_no_mean_of_it() -> None:
    assert over_seeds([row(val_top1=0.5)], "top1_last") is None


def test_each_class_of_each_classifier_is_a_line(store: Store) -> None:
    for key, stage, measured_on in (("one", "evaluate", "validation"), ("two", "test", "test")):
        result = json.dumps({"measured_on": measured_on, "per_class_top1": {"cat": 0.5, "dog": 0.25}}).encode()
        files = {"result.json": {"sha256": hashlib.sha256(result).hexdigest(), "bytes": len(result)}}
        publish(store, stage, key, {}, files=files)
        (store.root / stage / key / "result.json").write_bytes(result)
    seen = row("a", key="other", tested_by=Ref("test", "two"), top1_last=0.375)
    lines = list(csv.DictReader(io.StringIO(per_class_csv([row("b", key="one"), seen], store))))
    assert [(line["arm"], line["measured_on"], line["class"], line["top1"]) for line in lines] == [
        ("b", "validation", "cat", "0.5"),
        ("b", "validation", "dog", "0.25"),
        ("a", "test", "cat", "0.5"),
        ("a", "test", "dog", "0.25"),
    ]
