"""What every stage promises: writes into its folder only, the same bytes for the same spec, finite numbers, honest progress."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.spec.evaluation import STAGE_SPECS, PortraySpec
from ddgd_ray.spec.stages import AdoptSpec
from ddgd_ray.stages.base import Context, Outside, StageCall
from ddgd_ray.stages.curves import CURVES
from ddgd_ray.stages.publish import publish_call, run_call
from ddgd_ray.storage.soundness import compare_files
from ddgd_ray.storage.store import Store, file_sha256

OTHER_WAYS: tuple[dict[str, Any], ...] = (
    {"sample.guide": "manifold", "sample.guide.stop": 0.0, "sample.start": "inversion", "sample.start.groups": 3},
    {"autoencoder.kind": "kl", "autoencoder.widths": (8, 8), "autoencoder.steps": 3, "sample.spectral_gain": 3.0},
    {"evaluate.protocol.labels": "stored", "evaluate.protocol.stored_classes": 3},
    {"select.rule": "el2n", "select.pool": 2, "select.of": "both", "select.trainings": 1},
)
"""Sweeps of other ways to make a set, until every stage is used."""


@pytest.fixture(scope="module")
def made(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, StageCall]]:
    """A store with one published call of every stage."""
    store = Store(tmp_path_factory.mktemp("contract"))
    store.prepare()
    calls: dict[str, StageCall] = {}
    changes = {"seeds.distill": (0,), "test": "finalists", "quality": ("network",), "images.validation_per_class": 20}
    for trial in planned_trials(tiny(changes | {"controls": ("random_real", "herding")})):
        tests = [item.test for item in trial.evaluators if item.test is not None]
        for call in (*trial.calls(), *tests):
            publish_call(call, store, Context())
            calls.setdefault(call.stage, call)
    for changes in OTHER_WAYS:
        for trial in planned_trials(tiny({"seeds.distill": (0,), "controls": (), **changes})):
            for call in trial.calls():
                publish_call(call, store, Context())
                calls.setdefault(call.stage, call)
    trained = store.get(*calls["pretrain"].ref)
    assert trained is not None
    adopt = StageCall(AdoptSpec(part="backbone", timestep_shift=1), {"weights": Outside("of the tiny DiT", str(trained.path))})
    publish_call(adopt, store, Context())
    calls["adopt"] = adopt
    images = calls["sample"].spec.images  # type: ignore[attr-defined]
    calls["portray"] = StageCall(
        PortraySpec(images=images), {"adapter": calls["finetune"].ref, "autoencoder": calls["autoencoder"].ref}
    )
    publish_call(calls["portray"], store, Context())
    return store, calls


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of each file; curves hold times, so they are compared by their values."""
    hashes = {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
    points = [json.loads(line) for line in (folder / CURVES).read_text().splitlines()]
    hashes[CURVES] = str([{name: value for name, value in point.items() if name != "time"} for point in points])
    hashes.pop("manifest.json", None)
    return hashes


def stage_names() -> Iterator[str]:
    yield from STAGE_SPECS


@pytest.mark.parametrize("stage", stage_names())
def test_the_same_call_gives_the_same_bytes(made: tuple[Store, dict[str, StageCall]], stage: str, tmp_path: Path) -> None:
    store, calls = made
    call = calls[stage]
    published = store.get(*call.ref)
    assert published is not None
    metrics = run_call(call, store, tmp_path, Context(chunk=7))  # another chunk: how, not what
    found, expected = contents(tmp_path), contents(published.path)
    if stage in ("sample", "features"):  # their progress is reported batch by batch
        found[CURVES] = expected[CURVES]
    assert found == expected
    assert metrics == published.metrics


@pytest.mark.parametrize("stage", stage_names())
def test_inputs_are_only_read(made: tuple[Store, dict[str, StageCall]], stage: str) -> None:
    store, calls = made
    for value in calls[stage].inputs.values():
        if isinstance(value, tuple):
            artifact = store.get(*value)
            assert artifact is not None
            compare_files(artifact)


@pytest.mark.parametrize("stage", ["finetune", "sample", "evaluate"])
def test_another_seed_gives_another_artifact(made: tuple[Store, dict[str, StageCall]], stage: str, tmp_path: Path) -> None:
    store, calls = made
    call = calls[stage]
    other = dataclasses.replace(call, spec=call.spec.model_copy(update={"seed": 77}))
    assert other.key != call.key
    published = store.get(*call.ref)
    assert published is not None
    run_call(other, store, tmp_path, Context())
    assert contents(tmp_path) != contents(published.path)


@pytest.mark.parametrize("stage", stage_names())
def test_the_spec_of_a_stage_survives_the_manifest(made: tuple[Store, dict[str, StageCall]], stage: str) -> None:
    store, calls = made
    artifact = store.get(*calls[stage].ref)
    assert artifact is not None
    again = STAGE_SPECS[stage].model_validate_json(json.dumps(artifact.manifest["spec"]))
    assert StageCall(again, calls[stage].inputs).key == artifact.key
