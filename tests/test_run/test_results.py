"""Rows: what the records and the store say, each result under its protocol."""

import csv
import io
import json
from typing import Any

from ddgd_ray.report.notes import missing_note, readings_note
from ddgd_ray.report.per_class import per_class_csv
from ddgd_ray.report.quality import quality_tables
from ddgd_ray.report.render import markdown
from ddgd_ray.run.results import over_seeds, protocols_of, rows_of, stage_costs


def record(arm: str, seed: int, *evaluators: dict[str, Any], **more: Any) -> dict[str, Any]:
    place = {"params": {}, "is_control": False, "state": "done", "prepare": [], "build": []}
    return {"arm": arm, "seed": seed, "evaluators": list(evaluators), **place, **more}


def evaluator(ref: list[str], **more: Any) -> dict[str, Any]:
    return {"network": "net", "ipc": 10, "seed": 0, "stage": ref[0], "key": ref[1], **more}


def test_the_test_artifact_of_an_evaluator_is_merged_over_it(store: Any, publish: Any) -> None:
    ref = publish("evaluate", "e1", {"val_top1": 0.6, "train_loss": 1.0}, name="quick")
    test = publish("test", "t1", {"top1_last": 0.7, "train_loss": 2.0})
    (row,) = rows_of([record("a", 0, evaluator(ref, test=test))], store)
    assert row.metrics == {"val_top1": 0.6, "top1_last": 0.7, "train_loss": 2.0}
    assert (row.key, row.tested_by) == ("e1", ("test", "t1"))


def test_a_test_that_is_not_published_leaves_validation_alone(store: Any, publish: Any) -> None:
    ref = publish("evaluate", "e1", {"val_top1": 0.6}, name="quick")
    (row,) = rows_of([record("a", 0, evaluator(ref, test=["test", "t1"]))], store)
    assert row.metrics == {"val_top1": 0.6}
    assert row.tested_by == ()


def test_a_protocols_label_goes_before_its_name(store: Any, publish: Any) -> None:
    refs = [
        publish("evaluate", "plain", {"top1_last": 0.5}, name="quick", label="quick-noaug"),
        publish("evaluate", "augmented", {"top1_last": 0.6}, name="quick"),
    ]
    rows = rows_of([record("a", 0, *map(evaluator, refs))], store)
    assert [row.protocol for row in rows] == ["quick-noaug", "quick"]
    assert protocols_of(rows) == ["quick", "quick-noaug"]


def test_the_note_counts_each_trained_classifier_that_read_the_test_images_once(store: Any, publish: Any) -> None:
    shared = evaluator(publish("evaluate", "e1", {"top1_last": 0.7}, name="quick"))
    rows = rows_of([record("a", 0, shared), record("a", 1, shared)], store)
    assert readings_note(rows) == "Test images were read by 1 trained classifier."


def test_the_note_says_when_only_finalists_were_tested(store: Any, publish: Any) -> None:
    refs = [publish("evaluate", f"e{seed}", {"val_top1": 0.6}, name="quick") for seed in range(3)]
    test = publish("test", "t0", {"top1_last": 0.7})
    rows = rows_of(
        [record("a", 0, evaluator(refs[0], test=test)), *(record("b", 0, evaluator(ref)) for ref in refs[1:])], store
    )
    assert readings_note(rows) == "The test set was touched by the finalists alone: 1 of 3 trained classifiers (a)."
    assert readings_note(rows[1:]) == "Test images were read by none of the 2 trained classifiers."


def test_evaluators_without_a_result_are_counted(store: Any, publish: Any) -> None:
    records = [record("a", 0, evaluator(publish("evaluate", "e1", {}, name="quick")), evaluator(["evaluate", "absent"]))]
    assert missing_note(records, rows_of(records, store)).startswith("1 of 2 evaluators have no result")


def test_quality_has_a_table_for_each_feature_space(store: Any, publish: Any) -> None:
    records = []
    for arm in ("a", "b"):
        for seed in range(2):
            values = {"coverage": 0.5 + 0.1 * seed, "frechet": 123.4 + seed}
            quality = [[*publish("quality", f"{arm}{seed}{label}", values), label] for label in ("dino", "inception")]
            records.append(record(arm, seed, quality=quality))
    first, second = quality_tables(records, store)
    assert "features dino" in first.title
    assert "features inception" in second.title
    lines = markdown(first).splitlines()
    assert lines[2] == "| arm | n | coverage | frechet |"
    assert lines[4] == "| a | 2 | 0.550 ± 0.071 | 123.9 ± 0.7 |"


def test_records_without_quality_have_no_such_table(store: Any) -> None:
    assert quality_tables([record("a", 0)], store) == []


def test_costs_count_tests_and_quality_too(store: Any, publish: Any) -> None:
    ref = publish("evaluate", "e1", {}, name="quick")
    shared = evaluator(ref, test=publish("test", "t1", {}))
    records = [record("a", seed, shared, quality=[[*publish("quality", f"q{seed}", {}), "dino"]]) for seed in range(2)]
    costs = {cost.stage: (cost.count, cost.seconds) for cost in stage_costs(records, store)}
    assert costs == {"evaluate": (1, 2.0), "test": (1, 2.0), "quality": (2, 4.0)}


def test_rows_without_a_metric_have_no_mean_of_it(row: Any) -> None:
    assert over_seeds([row(val_top1=0.5)], "top1_last") is None


def test_each_class_of_each_classifier_is_a_line(row: Any, publish: Any, store: Any) -> None:
    for key, stage, measured_on in (("one", "evaluate", "validation"), ("two", "test", "test")):
        publish(stage, key, {})
        result = {"measured_on": measured_on, "per_class_top1": {"cat": 0.5, "dog": 0.25}}
        (store.root / stage / key / "result.json").write_text(json.dumps(result))
    seen = row("a", key="other", tested_by=("test", "two"), top1_last=0.375)
    lines = list(csv.DictReader(io.StringIO(per_class_csv([row("b", key="one"), seen], store))))
    assert [(line["arm"], line["measured_on"], line["class"], line["top1"]) for line in lines] == [
        ("b", "validation", "cat", "0.5"),
        ("b", "validation", "dog", "0.25"),
        ("a", "test", "cat", "0.5"),
        ("a", "test", "dog", "0.25"),
    ]
