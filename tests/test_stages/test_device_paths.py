"""The paths of a GPU, on every machine: no step mixes devices, reads a number back, or waits for a copy."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddgd_ray.method.sampling import noise_stream, sample
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.stages import FinetuneSpec, ImagesSpec, MemorySpec
from ddgd_ray.stages import evaluate, finetune
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.images import Split
from ddgd_ray.stages.parts.latents import LatentCache
from ddgd_ray.stages.parts.solver import sampler_of
from tests.device_mode import DeviceMode, lines

DEVICE = "meta"
POPS = ("max_similarity", "min_similarity", "fifo", "random", "reservoir", "kcenter")


@pytest.fixture(autouse=True)
def fused_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has shapes for the fused AdamW on `meta`, and refuses the device by name alone."""
    optimizers = sys.modules["torch.optim.optimizer"]  # torch.optim hides the module behind its own names
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cuda", "cpu", DEVICE])


def tuning(inputs: dict[str, Path], **changes: Any) -> finetune.Tuning:
    values: dict[str, Any] = {"batch_size": 12, "memory_real": MemorySpec(size=4), "memory_gen": MemorySpec(size=4)}
    spec = FinetuneSpec(**{**values, **changes})
    return finetune.Tuning(spec, LatentCache(inputs["latents"]), inputs["backbone"], Context(device=DEVICE))


@pytest.mark.parametrize("pop", POPS)
@pytest.mark.parametrize(
    "options", [{}, {"t_max": 500, "warmup": "full"}, {"class_aggregation": "cumulative", "adapter": "full"}]
)
def test_a_fine_tuning_step_waits_for_no_copy(variance_inputs: dict[str, Path], options: dict[str, Any], pop: Any) -> None:
    memory = MemorySpec(size=4, pop=pop, max_age=9)
    one = tuning(variance_inputs, memory_real=memory, memory_gen=memory, **options)
    one.step(0)  # tables and memories are made
    with DeviceMode() as mode:
        for step in range(1, 4):
            one.step(step)
    assert not mode.blocking, list(lines(mode))
    assert mode.num_calls > 100


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp"])
def test_a_sampling_step_waits_for_no_copy(variance_inputs: dict[str, Path], name: str) -> None:
    one = tuning(variance_inputs)

    def draw(num_steps: int) -> torch.Tensor:
        return sample(
            one.predict,
            sampler_of(name, num_steps),
            torch.zeros(3, dtype=torch.int64, device=DEVICE),
            [noise_stream(0, "a", index) for index in range(3)],
            latent_shape=(2, 4, 4),
            guidance=4.0,
            cfg_channels=1,
            null_label=3,
        )

    draw(4)
    few, many = DeviceMode(), DeviceMode()
    with few:
        draw(4)
    with many:
        draw(12)
    assert few.blocking == many.blocking, f"copies of every step: {list(lines(many))}"


def test_a_step_of_a_classifier_waits_for_no_copy() -> None:
    images = ImagesSpec(source="imagefolder", classes=("a", "b", "c"), size=64)
    fields = {"network": "resnet_ap10", "protocol": {"name": "idc", "size": 64, "steps": 20, "batch_size": 12}, "ipc": 10}
    spec = EvaluateSpec.model_validate({**fields, "images": images})
    pixels = np.zeros((30, 64, 64, 3), np.uint8)
    training = evaluate.Training([spec], Split(pixels, np.repeat(np.arange(3), 10), []), 64, None, [Context(device=DEVICE)])
    draws = training.draws()
    training.step(next(draws))
    with DeviceMode() as mode:
        training.step(next(draws))
    assert not mode.blocking, list(lines(mode))


def test_the_mode_sees_a_mixed_step_and_a_blocking_copy() -> None:
    device, host = torch.zeros(3, device=DEVICE), torch.ones(3)
    with DeviceMode() as mode:
        host.to(DEVICE)
        host.to(DEVICE, non_blocking=True)
        with pytest.raises(AssertionError, match="mixes device and host"):
            device + host
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            device.sum().item()
    assert sum(mode.blocking.values()) == 1
