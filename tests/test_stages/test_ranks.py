"""Two workers with half the batch each against one worker with the whole of it, over gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages import finetune
from ddgd_ray.stages.base import Context

STEPS = 9
CHECKPOINT = f"keep-0/step-{STEPS - 1:08d}"
BASE: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 12,
    "ema_decay": 0.9,
    "lambda_r": 0.2,
    "lambda_g": 0.2,
    "memory_real": MemorySpec(size=4),
    "memory_gen": MemorySpec(size=4, pop="min_similarity"),
}
SPECS = {
    "joint": FinetuneSpec(**BASE),
    "per_sample": FinetuneSpec(**{**BASE, "reduction": "per_sample", "class_aggregation": "cumulative", "t_max": 700}),
    "local": FinetuneSpec(**{**BASE, "memory_scope": "local", "local_ranks": 2}),
}


def tune(rank: int, num_ranks: int, name: str, inputs: dict[str, Path], folder: Path) -> None:
    """One worker; its losses go to losses-RANK.pt, the state before the last step is a checkpoint, from which it goes on again.

    Each has a folder of its own to keep things in, as on hosts that share none.
    """
    if num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{name}", rank=rank, world_size=num_ranks)
    torch.set_num_threads(1)
    for spec_name in name.split("+"):
        own = folder / spec_name
        out, again, keep = own / f"out-{rank}", own / f"again-{rank}", own / f"keep-{rank}"
        for path in (out, again, keep):
            path.mkdir(parents=True, exist_ok=True)
        losses: list[dict[str, float]] = []
        ctx = Context(
            lambda step, metrics, losses=losses: losses.append(dict(metrics)),  # type: ignore[misc]
            rank=rank,
            num_ranks=num_ranks,
            keep=keep,
            checkpoint_steps=STEPS - 1,
        )
        finetune.run(SPECS[spec_name], inputs, out, ctx)
        torch.save(losses, own / f"losses-{rank}.pt")
        finetune.run(SPECS[spec_name], inputs, again, ctx)
    if num_ranks > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(variance_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    tune(0, 1, "joint+per_sample", variance_inputs, one)
    mp.spawn(tune, (2, "joint+per_sample+local", variance_inputs, two), nprocs=2)
    return {"one": one, "two": two}


@pytest.mark.parametrize("name", ["joint", "per_sample"])
def test_two_workers_report_the_losses_of_one(runs: dict[str, Path], name: str) -> None:
    one, first, second = (
        torch.load(runs[kind] / name / f"losses-{rank}.pt") for kind, rank in (("one", 0), ("two", 0), ("two", 1))
    )
    assert first == second
    assert one[-1]["L_real"] > 0
    assert one[-1]["vb"] > 0
    for expected, found in zip(one, first, strict=True):
        assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["joint", "per_sample"])
def test_gradients_memories_and_weights_of_two_workers_are_those_of_one(runs: dict[str, Path], name: str) -> None:
    """Adam's first moment is the running mean of the gradients; memories are compared with ages and row sums."""
    for part in ("weights", "memories-0"):
        one, two = (load_file(runs[kind] / name / CHECKPOINT / f"{part}.safetensors") for kind in ("one", "two"))
        assert one.keys() == two.keys()
        for key, expected in one.items():
            if expected.is_floating_point():
                assert_equal_to_rounding(key, two[key], expected)
            else:
                assert torch.equal(two[key], expected), key
    one, two = (load_file(runs[kind] / name / "out-0" / "adapter.safetensors") for kind in ("one", "two"))
    for key, expected in one.items():
        assert_equal_to_rounding(key, two[key], expected)


def assert_equal_to_rounding(key: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """A bias of the keys shifts all scores of a query alike, so its gradient is nothing but rounding, which Adam scales up."""
    if "to_k.linear.bias" not in key:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{key}: {text}")


def test_both_workers_end_with_the_same_weights_to_the_bit(runs: dict[str, Path]) -> None:
    for name in SPECS:
        first, second = (load_file(runs["two"] / name / f"out-{rank}" / "adapter.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_local_memories_differ_between_workers_and_from_the_global_one(runs: dict[str, Path]) -> None:
    first, second = (load_file(runs["two"] / "local" / CHECKPOINT / f"memories-{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(first["real.unit_KSD"], second["real.unit_KSD"])
    assert not (runs["two"] / "joint" / CHECKPOINT / "memories-1.safetensors").exists()


@pytest.mark.parametrize("name", ["joint", "local"])
def test_only_rank_0_has_checkpoints_and_all_go_on_from_them_to_the_bit(runs: dict[str, Path], name: str) -> None:
    assert not list((runs["two"] / name / "keep-1").glob("*"))
    for rank in (0, 1):
        calm, again = (load_file(runs["two"] / name / f"{kind}-{rank}" / "adapter.safetensors") for kind in ("out", "again"))
        assert calm.keys() == again.keys()
        assert all(torch.equal(calm[key], again[key]) for key in calm)
