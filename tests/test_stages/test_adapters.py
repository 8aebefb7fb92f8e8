"""What learns: the right tensors, saved alone, refused where they do not fit, and folded away without a trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import FinetuneSpec
from ddgd_ray.stages.parts.adapters import ADAPTER_FILE, Adapter, attach, fold, load_finetuned, save_adapter
from ddgd_ray.stages.parts.backbone import load_dit, save_dit

KINDS = ("difffit", "bitfit", "lora", "full")
TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
needs_peft = pytest.mark.skipif("__import__('importlib.util').util.find_spec('peft') is None", reason="extra lora")
ALL_KINDS = [pytest.param(kind, marks=needs_peft if kind == "lora" else ()) for kind in KINDS]


def new_dit(layers: int = 2, seed: int = 0) -> Any:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)  # diffusers takes no generator
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=8,
        num_embeds_ada_norm=5,
    )
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    return model


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    folder = tmp_path / "backbone"
    folder.mkdir()
    save_dit(new_dit(), folder)
    return folder


def adapter_of(kind: str) -> Adapter:
    return Adapter.of(FinetuneSpec(adapter=kind))  # type: ignore[arg-type]


def outputs(model: Any) -> Tensor:
    z_t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(z_t, torch.tensor([1, 50, 500, 999]), torch.tensor([0, 1, 2, 5]), return_dict=False)[0]


def moved(learns: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor.detach() + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in learns.items()}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_attaching_changes_no_output(kind: str, backbone: Path) -> None:
    model = load_dit(backbone)
    before = outputs(model)
    attach(model, adapter_of(kind))
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_saved_adapter_folds_into_a_plain_model_with_the_same_outputs(kind: str, backbone: Path, tmp_path: Path) -> None:
    model = load_dit(backbone)
    before = outputs(model)
    learns = attach(model, adapter_of(kind))
    states = {"raw": moved(learns, 2), "ema": moved(learns, 3)}
    save_adapter(tmp_path, adapter_of(kind), states["raw"], states["ema"])
    for weights, state in states.items():
        with torch.no_grad():
            for name, tensor in learns.items():
                tensor.copy_(state[name])
        unfolded = outputs(model)
        folded = load_finetuned(backbone, tmp_path, weights=weights)
        assert folded.state_dict().keys() == new_dit().state_dict().keys()
        assert not any(tensor.requires_grad for tensor in folded.parameters())
        assert (unfolded - before).abs().max() > 0.1  # the adapter does something
        # float32 through two blocks: the fold rounds each weight once
        torch.testing.assert_close(outputs(folded), unfolded, rtol=1e-4, atol=1e-4)


def test_bitfit_is_difffit_without_its_scales(backbone: Path) -> None:
    sets = {kind: attach(load_dit(backbone), adapter_of(kind)).keys() for kind in ("difffit", "bitfit")}
    plain = {name.replace(".linear.bias", ".bias") for name in sets["difffit"] if ".gammas." not in name}
    assert plain == {name.replace(".linear.bias", ".bias") for name in sets["bitfit"]}
    assert TABLE in sets["bitfit"]
    assert all(name.endswith(".bias") for name in sets["bitfit"] - {TABLE})
    assert len(sets["bitfit"]) < len(sets["difffit"])


@needs_peft
def test_lora_learns_two_factors_of_each_projection_and_nothing_else(backbone: Path) -> None:
    learns = attach(load_dit(backbone), Adapter("lora", rank=3, alpha=6))
    width, hidden = 16, 64
    a_block = 4 * 3 * (width + width) + 2 * 3 * (width + hidden)
    assert sum(tensor.numel() for tensor in learns.values()) == 2 * a_block
    assert all(".lora_A." in name or ".lora_B." in name for name in learns)


@needs_peft
def test_loras_start_depends_on_its_seed_alone_and_leaves_the_global_stream(backbone: Path) -> None:
    first, second, other = (attach(load_dit(backbone), Adapter("lora", 2, 2), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    model = load_dit(backbone)
    state = torch.get_rng_state()
    attach(model, Adapter("lora", 2, 2), seed=9)
    assert torch.equal(torch.get_rng_state(), state)


@needs_peft
def test_alpha_over_rank_scales_the_update(backbone: Path) -> None:
    changes = []
    for alpha in (2, 4):
        model = load_dit(backbone)
        learns = attach(model, Adapter("lora", 2, alpha))
        weight = model.transformer_blocks[0].attn1.to_q.base_layer.weight.detach().clone()
        with torch.no_grad():
            for name, tensor in moved(learns, 4).items():
                learns[name].copy_(tensor)
        changes.append(fold(model).transformer_blocks[0].attn1.to_q.weight - weight)
    torch.testing.assert_close(changes[1], 2 * changes[0], rtol=1e-4, atol=1e-6)


def test_an_adapter_of_another_model_is_refused_by_its_tensors(backbone: Path, tmp_path: Path) -> None:
    learns = attach(new_dit(layers=3), adapter_of("difffit"))
    save_adapter(tmp_path, adapter_of("difffit"), learns, moved(learns, 5))
    with pytest.raises(StageError, match=r"the difffit adapter: .* transformer_blocks\.2\..* is not part of it") as caught:
        load_finetuned(backbone, tmp_path, weights="ema")
    assert caught.value.code == "weights-misfit"


def test_an_adapter_that_lost_a_tensor_is_refused_with_its_name(backbone: Path, tmp_path: Path) -> None:
    learns = attach(load_dit(backbone), adapter_of("bitfit"))
    kept = {name: tensor for name, tensor in learns.items() if name != TABLE}
    save_adapter(tmp_path, adapter_of("bitfit"), kept, moved(kept, 5))
    with pytest.raises(StageError, match="embedding_table.weight is missing"):
        load_finetuned(backbone, tmp_path, weights="raw")


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "a file of something else"])
def test_an_adapter_file_that_cannot_be_read_is_named(is_cut: bool, backbone: Path, tmp_path: Path) -> None:
    file = tmp_path / ADAPTER_FILE
    save_file({"ema.x": torch.ones(50)}, file)
    assert load_file(file)
    if is_cut:
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(StageError, match="the adapter cannot be read") as caught:
        load_finetuned(backbone, tmp_path, weights="ema")
    assert caught.value.where == str(file)


def test_only_what_learns_is_stored(backbone: Path, tmp_path: Path) -> None:
    learns = attach(load_dit(backbone), adapter_of("difffit"))
    save_adapter(tmp_path, adapter_of("difffit"), learns, moved(learns, 5))
    assert load_file(tmp_path / ADAPTER_FILE).keys() == {f"{kind}.{name}" for kind in ("raw", "ema") for name in learns}
