"""What only a GPU can show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.stages import FinetuneSpec, ImagesSpec, MemorySpec
from ddgd_ray.stages import evaluate, finetune
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.batches import steps_of
from ddgd_ray.stages.parts.images import Split
from ddgd_ray.stages.parts.latents import LatentCache

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def tuning_on(device: str, inputs: dict[str, Path], **changes: Any) -> finetune.Tuning:
    values: dict[str, Any] = {"batch_size": 12, "memory_real": MemorySpec(size=4), "memory_gen": MemorySpec(size=4)}
    spec = FinetuneSpec(**{**values, **changes})
    return finetune.Tuning(spec, LatentCache(inputs["latents"]), inputs["backbone"], Context(device=device))


@pytest.mark.parametrize("options", [{}, {"t_max": 500, "dtype": "bfloat16"}, {"warmup": "full", "dtype": "tf32"}])
def test_no_step_waits_for_the_gpu(variance_inputs: dict[str, Path], options: dict[str, Any]) -> None:
    tuning = tuning_on("cuda", variance_inputs, **options)
    for step in range(3):  # the first steps fill caches and memories
        tuning.step(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 9):
            tuning.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tuning.watch.newest_terms()["L_real"] > 0


def test_the_gpu_computes_the_losses_of_the_cpu(variance_inputs: dict[str, Path]) -> None:
    host, device = (tuning_on(kind, variance_inputs, lambda_r=0.2, lambda_g=0.2) for kind in ("cpu", "cuda"))
    for step in range(6):
        host.step(step)
        device.step(step)
        expected, found = host.watch.newest_terms(), device.watch.newest_terms()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert torch.equal(host.losses.real.born_KS, device.losses.real.born_KS.cpu())


def test_compiled_blocks_give_the_losses_of_plain_ones(variance_inputs: dict[str, Path]) -> None:
    plain = tuning_on("cuda", variance_inputs)
    compiled = tuning_on("cuda", variance_inputs)
    compiled._block = torch.compile(finetune.dit_block)
    for step in range(4):
        plain.step(step)
        compiled.step(step)
        assert compiled.watch.newest_terms() == pytest.approx(plain.watch.newest_terms(), rel=1e-3, abs=1e-4)


def training_on(device: str, num_seeds: int, **changes: Any) -> evaluate.Training:
    """A protocol with all augmentation on 30 random images of 64 px."""
    images = ImagesSpec(source="imagefolder", classes=("a", "b", "c"), size=64)
    fields = {"network": "resnet_ap10", "protocol": {"name": "idc", "size": 64, "steps": 20, "batch_size": 12}, "ipc": 10}
    specs = [EvaluateSpec.model_validate({**fields, "images": images, "seed": seed, **changes}) for seed in range(num_seeds)]
    pixels = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    train = Split(pixels, np.repeat(np.arange(3), 10), [])
    return evaluate.Training(specs, train, 64, None, [Context(device=device)] * num_seeds)


def losses_of(training: evaluate.Training, num_steps: int) -> torch.Tensor:
    """(num_steps, K), training on the way."""
    seeds = [seed + 1 for seed in training.seeds]
    draws = steps_of(training.protocol, training.plan, 64, seeds, training.ctx.device)
    found = []
    for _, step in zip(range(num_steps), draws, strict=False):
        found.append(training.step(step))
    return torch.stack(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_no_step_of_a_classifier_waits_for_the_gpu(num_seeds: int, dtype: str) -> None:
    training = training_on("cuda", num_seeds, dtype=dtype)
    losses_of(training, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = losses_of(training, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.isfinite().all()


def test_a_classifier_learns_on_the_gpu_what_it_learns_on_the_cpu() -> None:
    torch.testing.assert_close(
        losses_of(training_on("cuda", 1), 4).cpu(), losses_of(training_on("cpu", 1), 4), rtol=1e-2, atol=1e-3
    )


def test_a_pack_on_the_gpu_learns_what_its_members_learn_alone() -> None:
    packed = losses_of(training_on("cuda", 3), 4)
    torch.testing.assert_close(packed[:, :1], losses_of(training_on("cuda", 1), 4), rtol=1e-2, atol=1e-3)


def test_as_many_seeds_as_fit_are_trained_at_once_or_one() -> None:
    specs = [training_on("cpu", 1, seed=seed).spec for seed in range(4)]
    assert evaluate.num_at_once(specs, {}, Context(device="cuda")) in (1, 4)
    assert evaluate.num_at_once(specs, {}, Context(device="cuda", pack=2)) == 2
    assert evaluate.num_at_once(specs, {}, Context()) == 1
