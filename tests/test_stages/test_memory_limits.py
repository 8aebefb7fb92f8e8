"""Out of memory is an outcome of its own: another attempt with less, recorded, and never the same one again."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddgd_ray.errors import StageError
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.stages import EncodeSpec, FinetuneSpec, ImagesSpec, StageSpec
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.parts.device import cudnn_benchmark, rows_within, within_share
from ddgd_ray.stages.publish import publish_call, publish_packed
from ddgd_ray.storage.store import Store

IMAGES = ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


class Hungry:
    """A stage module that needs memory for what its context asks for; attempts: those settings, in order."""

    def __init__(self, fits: Any) -> None:
        self.fits, self.attempts = fits, list[Context]()

    def run(self, spec: StageSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
        return self.run_packed([spec], inputs, [out], [ctx])[0]

    def run_packed(
        self, specs: Sequence[StageSpec], inputs: dict[str, Path], outs: Sequence[Path], ctxs: Sequence[Context]
    ) -> list[dict[str, float]]:
        self.attempts.append(ctxs[0])
        if not self.fits(ctxs[0], len(specs)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return [{"value": 1.0} for _ in outs]

    def num_at_once(self, specs: Sequence[StageSpec], inputs: dict[str, Path], ctx: Context) -> int:
        return ctx.pack or len(specs)


def stage_is(module: Any, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"ddgd_ray.stages.{stage}", module)


def module_of(hungry: Hungry) -> Any:
    return SimpleNamespace(run=hungry.run, run_packed=hungry.run_packed, num_at_once=hungry.num_at_once)


def test_a_stage_that_does_not_fit_is_tried_with_half_its_chunk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = Hungry(lambda ctx, num: ctx.chunk <= 64)
    stage_is(module_of(hungry), "encode", monkeypatch)
    artifact, _ = publish_call(StageCall(EncodeSpec(images=IMAGES), {}), store, Context(chunk=256))
    assert [ctx.chunk for ctx in hungry.attempts] == [256, 128, 64]
    assert artifact.metrics == {"value": 1.0, "num_out_of_memory": 2.0}


def test_a_fine_tuning_is_tried_with_a_smaller_micro_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = Hungry(lambda ctx, num: 0 < ctx.micro_batch <= 2)
    stage_is(module_of(hungry), "finetune", monkeypatch)
    artifact, _ = publish_call(StageCall(FinetuneSpec(batch_size=8), {}), store, Context())
    assert [ctx.micro_batch for ctx in hungry.attempts] == [0, 4, 2]
    assert artifact.metrics["num_out_of_memory"] == 2


def test_seeds_that_do_not_fit_at_once_are_trained_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = Hungry(lambda ctx, num: num == 1)
    stage_is(module_of(hungry), "evaluate", monkeypatch)
    calls = [StageCall(EvaluateSpec(images=IMAGES, seed=seed), {}) for seed in range(3)]
    publish_packed(calls, store, Context())
    assert len(hungry.attempts) == 1 + 3
    made = [store.get(*call.ref) for call in calls]
    assert [one is not None and one.metrics["num_out_of_memory"] for one in made] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("ctx", [Context(chunk=64), Context(chunk=64, num_ranks=2)])
def test_what_never_fits_ends_with_an_error_and_no_attempt_is_made_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch, ctx: Context
) -> None:
    hungry = Hungry(lambda ctx, num: False)
    stage_is(module_of(hungry), "encode", monkeypatch)
    with pytest.raises(StageError, match="out of memory: CUDA out of memory") as caught:
        publish_call(StageCall(EncodeSpec(images=IMAGES), {}), store, ctx)
    assert caught.value.code == "out-of-memory"
    expected = [64, 32, 16, 8] if ctx.num_ranks == 1 else [64]  # the other ranks would wait for one that begins anew
    assert [attempt.chunk for attempt in hungry.attempts] == expected


@pytest.mark.parametrize(("size", "rows"), [(32, 256), (256, 32), (512, 8), (4096, 1)])
def test_rows_of_an_autoencoder_follow_their_pixels(size: int, rows: int) -> None:
    assert rows_within(1 << 21, size, most=256) == rows


def test_a_job_counts_its_own_share_of_a_card() -> None:
    assert within_share(80, 80, share=0.25) == 20
    assert within_share(10, 80, share=0.25) == 10, "the neighbours hold the rest"
    assert within_share(70, 80, share=4) == 70


def test_cudnn_is_as_it_was_after_a_training() -> None:
    before = torch.backends.cudnn.benchmark
    with pytest.raises(ValueError, match="broken"), cudnn_benchmark():
        assert torch.backends.cudnn.benchmark
        raise ValueError("broken off")
    assert torch.backends.cudnn.benchmark == before
