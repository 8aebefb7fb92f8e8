"""Fine-tuning: the memories act, the model learns, and what is not finite stops it in time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages import finetune
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.adapters import ADAPTER_FILE, load_finetuned
from ddgd_ray.stages.parts.backbone import load_dit
from ddgd_ray.stages.parts.finite import FiniteWatch
from ddgd_ray.stages.parts.latents import LatentCache
from ddgd_ray.stages.parts.memory_losses import MemoryLosses


def tune(
    inputs: dict[str, Path], out: Path, ctx: Context | None = None, **changes: Any
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    values = {
        "steps": 6,
        "batch_size": 12,
        "ema_decay": 0.5,
        "memory_real": MemorySpec(size=4),
        "memory_gen": MemorySpec(size=4),
    }
    out.mkdir(exist_ok=True)
    metrics = finetune.run(FinetuneSpec(**{**values, **changes}), inputs, out, ctx or Context())
    return metrics, load_file(out / ADAPTER_FILE)


def test_each_option_of_the_method_changes_the_result(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
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
        "t_min": {"t_min": 300, "lambda_r": 0.5},
        "ema_warmup": {"ema_warmup": True},
        "dtype": {"dtype": "bfloat16"},
        "label dropout": {"label_dropout": 0.9},
        "adapter": {"adapter": "full"},
    }
    sums = {}
    for number, (name, changes) in enumerate(options.items()):
        _, state = tune(latent_inputs, tmp_path / str(number), **changes)
        sums[name] = float(sum(tensor.double().abs().sum() for tensor in state.values()))
    assert len(set(sums.values())) == len(sums), sums


def test_zero_weights_leave_plain_fine_tuning_whatever_the_memories_do(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    _, fifo = tune(latent_inputs, tmp_path / "a", lambda_r=0.0, lambda_g=0.0, memory_real=MemorySpec(size=4, pop="fifo"))
    _, most = tune(latent_inputs, tmp_path / "b", lambda_r=0.0, lambda_g=0.0)
    assert all(torch.equal(fifo[name], most[name]) for name in fifo)


def test_without_steps_the_folded_model_is_the_backbone(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    tune(latent_inputs, tmp_path, steps=0)
    plain = load_dit(latent_inputs["backbone"]).state_dict()
    folded = load_finetuned(latent_inputs["backbone"], tmp_path, weights="ema").state_dict()
    assert plain.keys() == folded.keys()
    assert all(torch.equal(plain[name], folded[name]) for name in plain)


def test_raw_and_averaged_weights_differ_and_both_fold(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    tune(latent_inputs, tmp_path)
    raw, ema = (load_finetuned(latent_inputs["backbone"], tmp_path, weights=kind).state_dict() for kind in ("raw", "ema"))
    assert any(not torch.equal(raw[name], ema[name]) for name in raw)


def test_diagnostics_of_both_memories_are_reported(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics, _ = tune(latent_inputs, tmp_path)
    for kind in ("real", "gen"):
        assert metrics[f"memory_{kind}/size"] == 4
        assert 0 < metrics[f"memory_{kind}/churn"] < 1
        assert 1 <= metrics[f"memory_{kind}/effective_rank"] <= 4


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_term_and_rows(
    latent_inputs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"L_diffusion.* not finite at step [1-6]; rows of the batch: \[\d+") as caught:
        tune(latent_inputs, tmp_path, learning_rate=1e30)
    assert caught.value.code == "non-finite"
    assert not (tmp_path / ADAPTER_FILE).exists()


def test_a_batch_larger_than_the_data_is_refused(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="batch_size 121 is larger than the 120 training images"):
        tune(latent_inputs, tmp_path, batch_size=121)


def test_local_memories_need_their_number_of_workers(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="local_ranks 2, but 1 workers"):
        tune(latent_inputs, tmp_path, memory_scope="local", local_ranks=2)


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_a_micro_batch_leaves_the_method_unchanged(variance_inputs: dict[str, Path], tmp_path: Path, micro_batch: int) -> None:
    values = {"lambda_r": 0.2, "lambda_g": 0.2}
    whole = tune(variance_inputs, tmp_path / "a", **values)
    parts = tune(variance_inputs, tmp_path / "b", Context(micro_batch=micro_batch), **values)
    assert parts[0] == pytest.approx(whole[0], rel=1e-4, abs=1e-5)
    for name, expected in whole[1].items():
        if "to_k.linear.bias" not in name:  # its gradient is zero but for rounding
            torch.testing.assert_close(parts[1][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{"recompute": True}, {"recompute": True, "micro_batch": 4}])
def test_recomputing_activations_changes_no_more_than_rounding(
    variance_inputs: dict[str, Path], tmp_path: Path, how: dict[str, Any]
) -> None:
    _, expected = tune(variance_inputs, tmp_path / "a")
    _, found = tune(variance_inputs, tmp_path / "b", Context(**how))
    for name in expected:
        if "to_k.linear.bias" not in name:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_frozen_weights_in_bfloat16_give_the_bits_that_autocast_gives(
    variance_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = tune(variance_inputs, tmp_path / "a", dtype="bfloat16")
    monkeypatch.setattr(finetune, "_store_frozen_in_bfloat16", lambda model: None)
    _, expected = tune(variance_inputs, tmp_path / "b", dtype="bfloat16")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_losses_and_memories_read_nothing_back_from_the_device(variance_inputs: dict[str, Path]) -> None:
    """A tensor on `meta` has no values: whatever would wait for the device in order to read one raises."""
    ctx = Context(device="meta")
    for options in ({}, {"t_min": 20, "t_max": 900}, {"warmup": "full", "reduction": "per_sample"}):
        spec = FinetuneSpec(batch_size=12, memory_real=MemorySpec(size=4), memory_gen=MemorySpec(size=4), **options)
        cache = LatentCache(variance_inputs["latents"])
        draw, losses = finetune.BatchDraw(spec, cache, 3), MemoryLosses(spec, cache, ctx)
        for step in range(3):
            batch = draw.batch(step, ctx)
            terms = losses.terms(batch, torch.zeros(12, 4, 4, 4, device="meta", requires_grad=True), ctx)
            sum(terms.values()).backward()  # type: ignore[union-attr]


def test_on_a_gpu_the_optimizer_stands_still_from_the_first_bad_step_and_the_host_learns_later() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True)
    watch = FiniteWatch(optimizer, is_deferred=True)
    values = [1.0, 2.0, float("nan"), 3.0, 4.0]
    seen = []
    for step, value in enumerate(values):
        weight.grad = torch.ones(3)
        watch.see(step, {"L_diffusion": torch.tensor(1.0), "L_real": torch.tensor(value)}, torch.tensor([step, 7]))
        optimizer.step()
        seen.append(weight.detach().clone())
        if step == 1:
            assert watch.newest_terms() == {"L_diffusion": 1.0, "L_real": 2.0}
    assert not torch.equal(seen[0], seen[1])
    assert all(torch.equal(seen[1], later) for later in seen[2:])
    with pytest.raises(StageError, match=r"L_real is not finite at step 2; rows of the batch: \[2, 7\]"):
        watch.check()


def test_the_average_with_warmup_forgets_its_start(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    """After n steps the start weighs the product of min(decay, (1 + i) / (10 + i)), whatever the weights did."""
    tuning = finetune.Tuning(
        FinetuneSpec(batch_size=12, ema_decay=0.9, ema_warmup=True, adapter="full"),
        LatentCache(latent_inputs["latents"]),
        latent_inputs["backbone"],
        Context(),
    )
    start = [tensor.clone() for tensor in tuning.averaged.values()]
    for tensor in tuning.trainable.values():
        tensor.data += 1
    share = 1.0
    for step in range(5):
        tuning.average(step)
        share *= min(0.9, (1 + step) / (10 + step))
    for before, after in zip(start, tuning.averaged.values(), strict=True):
        torch.testing.assert_close(after, before + (1 - share))


def test_a_range_of_t_that_is_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="expected more than t_min = 500, got 500"):
        FinetuneSpec(t_min=500, t_max=500)


def test_coverage_is_the_mean_cosine_of_real_latents_to_their_nearest_row(latent_inputs: dict[str, Path]) -> None:
    cache = LatentCache(latent_inputs["latents"])
    spec = FinetuneSpec(batch_size=12, memory_real=MemorySpec(size=4), memory_gen=MemorySpec(size=4))
    losses = MemoryLosses(spec, cache, Context())
    assert "memory_real/coverage" not in losses.diagnostics()  # nothing is held yet
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    losses.real.push(rows, torch.tensor([0, 0, 0, 2, 2, 2]))
    nearest = []
    for label, held in ((0, rows[:3]), (2, rows[3:])):
        for row in torch.nonzero(cache.labels == label).flatten():
            mean = torch.from_numpy(np.load(latent_inputs["latents"] / "posterior.npy")[row, 0, :2]).float().flatten()
            nearest.append(max(float(torch.cosine_similarity(mean, one, dim=0)) for one in held))
    assert losses.diagnostics()["memory_real/coverage"] == pytest.approx(sum(nearest) / len(nearest), abs=1e-5)


def test_latents_and_labels_that_do_not_fit_the_model_are_refused(latent_inputs: dict[str, Path], tmp_path: Path) -> None:
    for name, side, label in (("side", 8, 0), ("label", 4, 3)):
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / "posterior.npy", np.zeros((12, 2, 4, side, side), np.float16))
        np.save(folder / "labels.npy", np.full(12, label))
    wrong = {name: latent_inputs | {"latents": tmp_path / name} for name in ("side", "label")}
    with pytest.raises(StageError, match=r"takes latents of \(2, 4, 4\) .* gives \(2, 8, 8\)"):
        tune(wrong["side"], tmp_path / "a")
    with pytest.raises(StageError, match="knows labels 0 to 2, the images have 3"):
        tune(wrong["label"], tmp_path / "b")
