"""Records of a run by the classes that a sweep writes them with, where a test needs numbers that no small sweep would give."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import EvaluatorRecord, SweepRecord, TrialRecord
from ddgd_ray.run.results import Row
from ddgd_ray.spec.preset import read_preset
from ddgd_ray.spec.sweep_spec import SweepSpec
from ddgd_ray.storage.manifest import Ref, write_manifest
from ddgd_ray.storage.store import Store

NETWORK = "convnet3_slim"


def row(arm: str = "arm", seed: int = 0, **given: Any) -> Row:
    """row(arm, seed, **metrics), the rest by name."""
    place = {"params": {}, "is_control": False, "network": NETWORK, "ipc": 20, "evaluate_seed": 0, "protocol": "quick"}
    place |= {name: given.pop(name) for name in list(given) if name in place}
    key = given.pop("key", None) or hashlib.sha256(repr((arm, seed, sorted(place.items(), key=str))).encode()).hexdigest()
    tested_by = given.pop("tested_by", Ref("evaluate", key) if "top1_last" in given else None)
    return Row(arm=arm, seed=seed, key=key, tested_by=tested_by, metrics=given, **place)


def publish(store: Store, stage: str, key: str, metrics: dict[str, float], **fields: Any) -> Ref:
    """The name of an artifact of which the store has the manifest alone. fields: of the manifest, besides the metrics."""
    folder = store.root / stage / key
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"schema": 1, "key": key, "stage": stage, "version": 1, "spec": {}, "inputs": {}, "files": {}, "seconds": 2.0}
    write_manifest(folder, manifest | {"metrics": metrics} | fields)
    return Ref(stage, key)


def evaluator(ref: Ref, **given: Any) -> EvaluatorRecord:
    fields = {"network": NETWORK, "ipc": 10, "seed": 0, "protocol": "quick", "stage": ref.stage, "key": ref.key}
    return EvaluatorRecord.model_validate(fields | given)


def trial(arm: str = "arm", seed: int = 0, evaluators: Iterable[EvaluatorRecord] = (), **given: Any) -> TrialRecord:
    fields = {"name": f"{arm}-s{seed}", "arm": arm, "params": {}, "seed": seed, "is_control": False, "state": "done"}
    fields |= {"prepare": (), "build": (), "evaluators": tuple(evaluators), "errors": {}, "finished": 1.0}
    return TrialRecord.model_validate(fields | given)


def run_with(path: Path, store: Store, rows: Sequence[Row], others: Sequence[TrialRecord] = (), **asked: Any) -> Run:
    """A run whose trials have these rows, each published in the store. others: trials besides; asked: of the sweep file."""
    given = {"name": "made", "preset": "digits", "vary": {"finetune.lambda_g": (0.0, 0.008)}, **asked}
    given = {"seeds": {"distill": (0,), "evaluate": (0,)}, "evaluate": {"networks": (NETWORK,), "ipc": (20,)}} | given
    spec = SweepSpec.model_validate(given)
    identity = {"settings": read_preset("digits").data, "space": {}}
    sweep = SweepRecord(ddgd_ray="0", name=spec.name, identity=identity, spec=spec)
    of_trial: dict[tuple[str, int], list[Row]] = {}
    for one in rows:
        publish(store, "evaluate", one.key, dict(one.metrics), spec={"protocol": {"name": one.protocol}})
        of_trial.setdefault((one.arm, one.seed), []).append(one)
    trials = [_trial_of(found) for found in of_trial.values()]
    return Run(path, sweep, (*trials, *others), store)


def _trial_of(rows: Sequence[Row]) -> TrialRecord:
    first = rows[0]
    places = ({"network": one.network, "ipc": one.ipc, "seed": one.evaluate_seed, "protocol": one.protocol} for one in rows)
    found = [evaluator(Ref("evaluate", one.key), **place) for one, place in zip(rows, places, strict=True)]
    return trial(first.arm, first.seed, found, params=dict(first.params), is_control=first.is_control)
