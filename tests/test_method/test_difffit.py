"""DiffFit on diffusers' DiT. Tiny models: 8 x 8 latents, width 16, 5 classes; XL/2 only by its shapes."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from ddgd_ray.method.difffit import (
    ScaledLinear,
    add_difffit,
    fold_difffit,
    freeze_all_but,
    tie_embedders,
    trainable_state,
)

WIDTH, NUM_CLASSES = 16, 5


def untied_dit(seed: int, num_layers: int = 3) -> Any:
    """As diffusers initialises it: every block has a timestep and label embedder of its own."""
    torch.manual_seed(seed)  # diffusers takes no generator
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=4,
        out_channels=8,
        num_layers=num_layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=NUM_CLASSES,
    )


def plain_dit(seed: int, num_layers: int = 3) -> Any:
    """Equal embedders in all blocks, each a copy: what a DiT checkpoint holds."""
    model = untied_dit(seed, num_layers)
    for block in model.transformer_blocks[1:]:
        block.norm1.emb = copy.deepcopy(model.transformer_blocks[0].norm1.emb)
    return model


def batch(num: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(num, 4, 8, 8, generator=generator)
    return z_t, torch.randint(1000, (num,), generator=generator), torch.arange(num) % (NUM_CLASSES + 1)


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(*batch(), return_dict=False)[0]


def randomise(tensors: dict[str, Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))


def test_dit_xl_2_has_1739552_trainable_numbers_of_which_the_label_table_has_1153152() -> None:
    with torch.device("meta"):
        model = DiTTransformer2DModel(
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            num_embeds_ada_norm=1000,
        )
    add_difffit(model)
    trainable = trainable_state(model)
    tables = [tensor for name, tensor in trainable.items() if "embedding_table" in name]
    assert sum(tensor.numel() for tensor in trainable.values()) == 1_739_552
    assert [tuple(table.shape) for table in tables] == [(1001, 1152)]


@pytest.mark.parametrize(("num_layers", "num_scaled"), [(1, 1), (3, 3), (14, 14), (16, 14)])
def test_gammas_stand_in_the_first_14_blocks_and_number_7_widths_each(num_layers: int, num_scaled: int) -> None:
    model = plain_dit(0, num_layers)
    add_difffit(model)
    per_block = [
        sum(tensor.numel() for name, tensor in block.named_parameters() if "gammas" in name)
        for block in model.transformer_blocks
    ]
    # q, k, v: 3 widths; the projection, the attention branch and the MLP branch: 1 each. Here 6 vectors of the model's width
    assert per_block == [6 * WIDTH] * num_scaled + [0] * (num_layers - num_scaled)


def test_exactly_biases_label_table_and_gammas_are_trainable() -> None:
    model = plain_dit(0)
    add_difffit(model)
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    everything = dict(model.named_parameters())
    assert trainable_state(model).keys() == {
        name for name in everything if name.endswith(".bias") or ".gammas." in name or name == table
    }
    assert all(name.endswith(".weight") for name in everything.keys() - trainable_state(model).keys())


def test_adding_difffit_changes_no_output() -> None:
    plain = plain_dit(2).eval()
    fitted = copy.deepcopy(plain)
    add_difffit(fitted)
    assert torch.equal(outputs(plain), outputs(fitted))  # a product with 1 is exact


def test_folding_keeps_the_outputs_of_trained_scales() -> None:
    model = plain_dit(3, num_layers=16).eval()
    before = outputs(model)
    add_difffit(model)
    randomise(trainable_state(model), seed=4)
    unfolded = outputs(model)
    fold_difffit(model)
    # the scales moved the outputs far more than folding may: float32 rounding through 16 blocks
    assert (unfolded - before).abs().max() > 0.1
    torch.testing.assert_close(outputs(model), unfolded, rtol=1e-4, atol=1e-4)


def test_each_gamma_scales_what_it_is_named_after() -> None:
    # each alone is doubled in block 0 and must change the outputs: none is left out of the forward pass
    model = plain_dit(5).eval()
    add_difffit(model)
    before = outputs(model)
    names = [name for name in trainable_state(model) if "gammas" in name]
    assert len(names) == 3 * 6
    for name in names:
        gamma = trainable_state(model)[name]
        with torch.no_grad():
            gamma.mul_(2)
            assert not torch.allclose(outputs(model), before, atol=1e-6), name
            gamma.mul_(0.5)


def test_scaled_linear_multiplies_weight_and_bias() -> None:
    generator = torch.Generator().manual_seed(6)
    scaled = ScaledLinear(torch.nn.Linear(3, 2), num_gammas=2)
    with torch.no_grad():
        scaled.gammas[0].copy_(torch.tensor([2.0, -1.0]))
        scaled.gammas[1].copy_(torch.tensor([0.5, 3.0]))
    x = torch.randn(4, 3, generator=generator)
    torch.testing.assert_close(scaled(x), scaled.linear(x) * torch.tensor([1.0, -3.0]))


def test_a_folded_model_is_a_plain_diffusers_dit() -> None:
    model = plain_dit(7).eval()
    keys = model.state_dict().keys()
    add_difffit(model)
    randomise(trainable_state(model), seed=8)
    fold_difffit(model)
    reloaded = untied_dit(9).eval()
    assert model.state_dict().keys() == keys
    reloaded.load_state_dict(model.state_dict())  # every block's copy of the embedders is written out
    assert torch.equal(outputs(reloaded), outputs(model))


def test_tie_embedders_leaves_one_copy_and_the_same_outputs() -> None:
    model = plain_dit(10).eval()
    before = outputs(model)
    tie_embedders(model)
    assert sum("embedding_table" in name for name, _ in model.named_parameters()) == 1
    assert torch.equal(outputs(model), before)
    tie_embedders(model)  # tied already: nothing to refuse
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("part", ["timestep_embedder.linear_1.weight", "class_embedder.embedding_table.weight"])
def test_tie_embedders_refuses_copies_that_differ_in_one_number(part: str) -> None:
    model = plain_dit(11)
    with torch.no_grad():
        model.transformer_blocks[2].norm1.emb.get_parameter(part).view(-1)[5] += 1e-3
    with pytest.raises(ValueError, match=f"block 2 has another {part}"):
        tie_embedders(model)


@pytest.mark.parametrize("adapter", ["difffit", "full"])
def test_the_model_draws_no_label_dropout_of_its_own_in_training(adapter: str) -> None:
    # diffusers drops labels with probability 0.1 in each block; 64 labels x 3 blocks survive that once in 10^8
    model = plain_dit(12)
    z_t, t, _ = batch(64)
    labels = torch.arange(64) % NUM_CLASSES
    torch.manual_seed(0)
    untouched = [model.train()(z_t, t, labels, return_dict=False)[0] for _ in range(2)]
    freeze_all_but(model, adapter)
    in_training = model.train()(z_t, t, labels, return_dict=False)[0]
    assert not torch.equal(*untouched)  # so the check below can fail
    assert torch.equal(in_training, model.eval()(z_t, t, labels, return_dict=False)[0])


def test_the_null_label_keeps_its_row_in_the_table() -> None:
    model = plain_dit(13).eval()
    add_difffit(model)
    z_t, t, _ = batch(2)
    t[1], z_t[1] = t[0], z_t[0]
    conditional, null = model(z_t, t, torch.tensor([0, NUM_CLASSES]), return_dict=False)[0]
    assert not torch.allclose(conditional, null)


def test_a_training_step_moves_every_trainable_tensor_and_no_other() -> None:
    model = plain_dit(14).train()
    add_difffit(model)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    trainable = trainable_state(model)
    model(*batch(), return_dict=False)[0].square().mean().backward()
    torch.optim.SGD(trainable.values(), lr=1.0).step()
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    # softmax ignores what k's bias adds to a whole row: its gradient is rounding, so it may stay
    assert {name for name in moved ^ trainable.keys() if not name.endswith("to_k.linear.bias")} == set()


def test_the_full_adapter_trains_everything_once() -> None:
    model = plain_dit(15)
    freeze_all_but(model, "full")
    trainable = trainable_state(model)
    assert trainable.keys() == dict(model.named_parameters()).keys() - {"pos_embed.pos_embed"}
    assert len({tensor.data_ptr() for tensor in trainable.values()}) == len(trainable)
