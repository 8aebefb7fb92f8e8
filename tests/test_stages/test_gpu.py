"""What only a GPU can show."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages import finetune
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.latents import LatentCache

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
