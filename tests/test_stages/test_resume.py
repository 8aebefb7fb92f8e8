"""A fine-tuning that was interrupted ends with the bits of one that was not."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddgd_ray.errors import StageError
from ddgd_ray.errors import Stopped as OrderedToStop
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages import finetune
from ddgd_ray.stages.base import Context, Outside, StageCall
from ddgd_ray.stages.curves import ATTEMPTS, CURVES, seconds_before
from ddgd_ray.stages.parts.adapters import ADAPTER_FILE
from ddgd_ray.stages.parts.checkpoint import KEPT
from ddgd_ray.stages.publish import publish_call
from ddgd_ray.storage.store import Store

STEPS = 12


def spec_of(**changes: Any) -> FinetuneSpec:
    values = {
        "steps": STEPS,
        "batch_size": 12,
        "ema_decay": 0.9,
        "lambda_r": 0.1,
        "memory_real": MemorySpec(size=4, pop="max_similarity", max_age=20),
        "memory_gen": MemorySpec(size=4, pop="random"),
    }
    return FinetuneSpec(**{**values, **changes})


class Stopped(Exception):
    pass


def tune(
    inputs: dict[str, Path], folder: Path, *, every: int, stop_at: int | None = None, spec: FinetuneSpec | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Fine-tune with the checkpoints in folder/keep; stop_at: the step at which the process is lost."""

    def report(step: int, metrics: Mapping[str, float]) -> None:
        pass

    out, keep = folder / "out", folder / "keep"
    out.mkdir(parents=True, exist_ok=True)
    keep.mkdir(exist_ok=True)
    step_of = finetune.Tuning.step

    def step(self: finetune.Tuning, number: int) -> None:
        if number == stop_at:
            raise Stopped
        step_of(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.Tuning, "step", step)
        metrics = finetune.run(spec or spec_of(), inputs, out, Context(report, keep=keep, checkpoint_steps=every))
    return load_file(out / ADAPTER_FILE), metrics


def assert_same(found: Any, expected: Any) -> None:
    assert found[0].keys() == expected[0].keys()
    different = [name for name in found[0] if not torch.equal(found[0][name], expected[0][name])]
    assert not different
    assert found[1] == expected[1]  # losses and memory diagnostics


@pytest.mark.parametrize("every", [0, 5])
def test_an_order_to_stop_is_obeyed_after_a_checkpoint_and_loses_nothing(
    latent_inputs: dict[str, Path], tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddgd_ray.stages.parts.checkpoint.LOOK_S", 0.0)
    calm = tune(latent_inputs, tmp_path / "calm", every=0)
    order, out, keep = tmp_path / "stop", tmp_path / "out", tmp_path / "keep"
    out.mkdir()
    keep.mkdir()
    ctx = Context(keep=keep, checkpoint_steps=every, stop_file=order)
    for steps_before in (3, 4):  # stopped twice, further on each time
        order.unlink(missing_ok=True)
        taken: list[int] = []
        step_of = finetune.Tuning.step

        def step(self: finetune.Tuning, number: int) -> None:
            step_of(self, number)  # noqa: B023
            taken.append(number)  # noqa: B023
            if len(taken) == steps_before:  # noqa: B023
                order.touch()

        with monkeypatch.context() as patch, pytest.raises(OrderedToStop, match=f"of {STEPS}"):
            patch.setattr(finetune.Tuning, "step", step)
            finetune.run(spec_of(), latent_inputs, out, ctx)
    order.unlink()
    metrics = finetune.run(spec_of(), latent_inputs, out, ctx)
    assert_same((load_file(out / ADAPTER_FILE), metrics), calm)


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
@pytest.mark.parametrize("every", [1, 3, 5])
def test_stopping_after_any_step_gives_the_bits_of_a_calm_run(
    latent_inputs: dict[str, Path], tmp_path: Path, stop_at: int, every: int
) -> None:
    calm = tune(latent_inputs, tmp_path / "calm", every=0)
    with pytest.raises(Stopped):
        tune(latent_inputs, tmp_path / "b", every=every, stop_at=stop_at)
    kept = sorted(path.name for path in (tmp_path / "b" / "keep").glob("step-*"))
    assert len(kept) == min(KEPT, stop_at // every)
    assert_same(tune(latent_inputs, tmp_path / "b", every=every), calm)
    looks = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "out" / "memories").iterdir()} for run in ("calm", "b")
    ]
    assert looks[0] == looks[1]
    assert len(looks[0]) == 7  # two memories after 3, 6 and 12 steps, and the labels


@pytest.mark.parametrize("pop", ["fifo", "reservoir", "kcenter", "min_similarity"])
def test_every_pop_strategy_goes_on_exactly(latent_inputs: dict[str, Path], tmp_path: Path, pop: Any) -> None:
    memory = MemorySpec(size=5, pop=pop)
    spec = spec_of(memory_real=memory, memory_gen=memory, adapter="full", ema_warmup=True)
    calm = tune(latent_inputs, tmp_path / "calm", every=0, spec=spec)
    for stop_at in (3, 8):
        with pytest.raises(Stopped):
            tune(latent_inputs, tmp_path / "b", every=2, stop_at=stop_at, spec=spec)
    assert_same(tune(latent_inputs, tmp_path / "b", every=2, spec=spec), calm)


def damage(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["deleted", "truncated", "one bit"])
@pytest.mark.parametrize("file", ["weights.safetensors", "memories-0.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    latent_inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, file: str
) -> None:
    if (file, how) == ("manifest.json", "one bit"):
        pytest.skip("which bit decides whether it still reads as JSON")
    calm = tune(latent_inputs, tmp_path / "calm", every=0)
    with pytest.raises(Stopped):
        tune(latent_inputs, tmp_path / "b", every=3, stop_at=10)
    damage(tmp_path / "b" / "keep" / "step-00000009" / file, how)
    with caplog.at_level(logging.INFO):
        found = tune(latent_inputs, tmp_path / "b", every=3)
    assert "step-00000009 is passed over" in caplog.text
    assert "going on from step 6 of 12" in caplog.text
    assert_same(found, calm)


def test_with_every_checkpoint_damaged_the_stage_starts_again(
    latent_inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calm = tune(latent_inputs, tmp_path / "calm", every=0)
    with pytest.raises(Stopped):
        tune(latent_inputs, tmp_path / "b", every=3, stop_at=10)
    for path in (tmp_path / "b" / "keep").glob("step-*/weights.safetensors"):
        damage(path, "one bit")
    assert_same(tune(latent_inputs, tmp_path / "b", every=3), calm)
    assert "going on" not in caplog.text


def test_a_loss_that_is_not_finite_leaves_no_checkpoint_of_it(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    spec = spec_of(learning_rate=1e30)
    for _ in range(2):  # a second try goes on and meets the same step
        with pytest.raises(StageError, match="not finite at step"):
            tune(latent_inputs, tmp_path, every=1, spec=spec)
    for path in (tmp_path / "keep").glob("step-*/weights.safetensors"):
        assert all(torch.isfinite(tensor).all() for name, tensor in load_file(path).items() if name.startswith("adam"))


KILLED = """
import sys, pickle
from pathlib import Path
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.publish import publish_call
call, store = pickle.loads(Path(sys.argv[1]).read_bytes())
publish_call(call, store, Context(checkpoint_steps=3))
"""


def test_a_process_killed_at_a_checkpoint_is_taken_up_by_the_next_one(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    import pickle

    call = StageCall(spec_of(), {name: Outside("test", str(path)) for name, path in latent_inputs.items()})
    stores = {name: Store(tmp_path / name) for name in ("calm", "killed")}
    for store in stores.values():
        store.prepare()
    calm, _ = publish_call(call, stores["calm"], Context())
    order = tmp_path / "order.pickle"
    order.write_bytes(pickle.dumps((call, stores["killed"])))
    environment = os.environ | {"DDGD_CRASH_AT": "before-checkpoint"}
    died = subprocess.run([sys.executable, "-c", KILLED, str(order)], env=environment, capture_output=True, check=False)
    assert died.returncode == 137, died.stderr.decode()
    keep = stores["killed"].root / "kept" / call.key
    assert [path.name for path in keep.glob("unfinished-*")] == ["unfinished-00000003"]
    made, was_there = publish_call(call, stores["killed"], Context(checkpoint_steps=3))
    assert not was_there
    assert not keep.exists()
    assert made.manifest["files"][ADAPTER_FILE] == calm.manifest["files"][ADAPTER_FILE]
    assert made.metrics == calm.metrics


@pytest.mark.parametrize(
    ("lost", "every", "is_of_use"),
    [(OrderedToStop("told to stop"), 3, True), (Stopped(), 3, True), (Stopped(), 0, False)],
    ids=["stopped", "died", "begun anew"],
)
def test_seconds_are_those_of_all_attempts_as_far_as_they_were_of_use(
    latent_inputs: dict[str, Path], tmp_path: Path, lost: Exception, every: int, is_of_use: bool
) -> None:
    """It reports at steps 0, 5, 10 and 11, and goes on from step 9: what it took until step 5 is not done again."""
    call = StageCall(spec_of(), {name: Outside("test", str(path)) for name, path in latent_inputs.items()})
    store = Store(tmp_path / "store")
    store.prepare()

    def report(step: int, metrics: Mapping[str, float]) -> None:
        time.sleep(0.5)
        if step == 10:
            raise lost

    for _ in range(2):  # the second goes on, where it can, and does no more than step 9 again
        with pytest.raises(type(lost)):
            publish_call(call, store, Context(report, checkpoint_steps=every))
    began = time.monotonic()
    made, _ = publish_call(call, store, Context(checkpoint_steps=every))
    last_s = time.monotonic() - began
    assert made.seconds > 0.5 if is_of_use else made.seconds <= last_s


@pytest.mark.parametrize(
    ("stage", "again", "stopped", "seconds"),
    [
        ("finetune", (0, 1), {}, 0.0),
        ("finetune", (1,), {}, 3.0),
        ("finetune", (1,), {"stopped": 108.0}, 3.0),
        ("finetune", (2,), {}, 7.0),
        ("finetune", (2,), {"stopped": 108.0}, 8.0),
        ("finetune", (), {"stopped": 108.0}, 8.0),
        ("encode", (0, 1), {}, 7.0),  # reports the shards that it has before it makes others
    ],
)
def test_an_attempt_counts_until_the_last_point_that_was_not_made_again(
    tmp_path: Path, stage: str, again: tuple[int, ...], stopped: dict[str, float], seconds: float
) -> None:
    first = "".join(f"{json.dumps({'step': step, 'time': time})}\n" for step, time in ((0, 103.0), (1, 107.0)))
    later = "".join(f"{json.dumps({'step': step, 'time': 200.0})}\n" for step in again)
    (tmp_path / CURVES).write_text(first + later)
    lines = [{"began": 100.0, "offset": 0}, stopped, {"began": 199.0, "offset": len(first)}]
    (tmp_path / ATTEMPTS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert seconds_before(tmp_path, stage) == seconds


def test_the_curve_of_an_interrupted_run_has_each_step_once(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    call = StageCall(spec_of(), {name: Outside("test", str(path)) for name, path in latent_inputs.items()})
    stores = {name: Store(tmp_path / name) for name in ("calm", "stopped")}
    for store in stores.values():
        store.prepare()
    calm, _ = publish_call(call, stores["calm"], Context())

    def stop(step: int, metrics: Mapping[str, float]) -> None:
        if step == 10:
            raise Stopped

    with pytest.raises(Stopped):
        publish_call(call, stores["stopped"], Context(stop, checkpoint_steps=3))
    made, _ = publish_call(call, stores["stopped"], Context(checkpoint_steps=3))
    curves = [[json.loads(line) for line in (artifact.path / CURVES).read_text().splitlines()] for artifact in (calm, made)]
    for curve in curves:
        for point in curve:
            del point["time"]
    assert curves[0] == curves[1]
    assert [point["step"] for point in curves[0]] == [0, 5, 10, 11]
