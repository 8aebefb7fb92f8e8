"""Fine-tuning: the memories act, the model learns, and what is not finite stops it in time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec, PretrainSpec
from ddgd_ray.stages import finetune, pretrain
from ddgd_ray.stages.adapters import ADAPTER_FILE, load_finetuned
from ddgd_ray.stages.backbone import load_dit
from ddgd_ray.stages.base import Context


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Latents of three classes around three means, and a DiT trained on them for a moment."""
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    mean = rng.normal(size=(3, 1, 2, 4, 4))[labels] + 0.3 * rng.normal(size=(120, 2, 2, 4, 4))
    np.save(folder / "posterior.npy", np.concatenate([mean, np.full_like(mean, -8)], axis=2).astype(np.float16))
    np.save(folder / "labels.npy", labels)
    backbone = tmp_path_factory.mktemp("dit")
    spec = PretrainSpec(layers=2, heads=2, head_dim=8, steps=40, batch_size=32)
    pretrain.run(spec, {"latents": folder}, backbone, Context())
    return {"latents": folder, "backbone": backbone}


def tune(inputs: dict[str, Path], out: Path, **changes: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    values = {
        "steps": 6,
        "batch_size": 12,
        "ema_decay": 0.5,
        "memory_real": MemorySpec(size=4),
        "memory_gen": MemorySpec(size=4),
    }
    out.mkdir(exist_ok=True)
    metrics = finetune.run(FinetuneSpec(**{**values, **changes}), inputs, out, Context())
    return metrics, load_file(out / ADAPTER_FILE)


def test_each_option_of_the_method_changes_the_result(inputs: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "base": {},
        "lambda_r": {"lambda_r": 0.5},
        "lambda_g": {"lambda_g": 0.5},
        "pop real": {"memory_real": MemorySpec(size=4, pop="fifo"), "lambda_r": 0.5},
        "pop gen": {"memory_gen": MemorySpec(size=4, pop="fifo"), "lambda_r": 0.5, "lambda_g": 0.5},
        "size": {"memory_real": MemorySpec(size=2), "lambda_r": 0.5},
        "reduction": {"reduction": "per_sample", "lambda_r": 0.5},
        "aggregation": {"class_aggregation": "cumulative", "lambda_r": 0.5},
        "warmup": {"warmup": "full", "memory_real": MemorySpec(size=16), "lambda_r": 0.5},
        "t_max": {"t_max": 300, "lambda_r": 0.5},
        "label dropout": {"label_dropout": 0.9},
        "adapter": {"adapter": "full"},
    }
    sums = {}
    for number, (name, changes) in enumerate(options.items()):
        _, state = tune(inputs, tmp_path / str(number), **changes)
        sums[name] = float(sum(tensor.double().abs().sum() for tensor in state.values()))
    assert len(set(sums.values())) == len(sums), sums


def test_zero_weights_leave_plain_fine_tuning_whatever_the_memories_do(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, fifo = tune(inputs, tmp_path / "a", lambda_r=0.0, lambda_g=0.0, memory_real=MemorySpec(size=4, pop="fifo"))
    _, most = tune(inputs, tmp_path / "b", lambda_r=0.0, lambda_g=0.0)
    assert all(torch.equal(fifo[name], most[name]) for name in fifo)


def test_without_steps_the_folded_model_is_the_backbone(inputs: dict[str, Path], tmp_path: Path) -> None:
    tune(inputs, tmp_path, steps=0)
    plain = load_dit(inputs["backbone"]).state_dict()
    folded = load_finetuned(inputs["backbone"], tmp_path, weights="ema").state_dict()
    assert plain.keys() == folded.keys()
    assert all(torch.equal(plain[name], folded[name]) for name in plain)


def test_raw_and_averaged_weights_differ_and_both_fold(inputs: dict[str, Path], tmp_path: Path) -> None:
    tune(inputs, tmp_path)
    raw, ema = (load_finetuned(inputs["backbone"], tmp_path, weights=kind).state_dict() for kind in ("raw", "ema"))
    assert any(not torch.equal(raw[name], ema[name]) for name in raw)


def test_diagnostics_of_both_memories_are_reported(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics, _ = tune(inputs, tmp_path)
    for kind in ("real", "gen"):
        assert metrics[f"memory_{kind}/size"] == 4
        assert 0 < metrics[f"memory_{kind}/churn"] < 1
        assert 1 <= metrics[f"memory_{kind}/effective_rank"] <= 4


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_term_and_rows(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"L_diffusion.* not finite at step [1-6]; rows of the batch: \[\d+") as caught:
        tune(inputs, tmp_path, learning_rate=1e30)
    assert caught.value.code == "non-finite"
    assert not (tmp_path / ADAPTER_FILE).exists()


def test_a_batch_larger_than_the_data_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="batch_size 121 is larger than the 120 training images"):
        tune(inputs, tmp_path, batch_size=121)


def test_local_memories_need_their_number_of_workers(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="local_ranks 2, but 1 workers"):
        tune(inputs, tmp_path, memory_scope="local", local_ranks=2)
