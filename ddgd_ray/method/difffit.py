"""DiffFit on diffusers' DiT: the weights that learn, the scale factors, and their folding into the weights.

Source: Xie et al. 2023. DiT's own layout has one timestep MLP and one label table; diffusers repeats
both in every block, so they are tied first and count once.
"""

from typing import Any

import torch
from torch import Tensor, nn

NUM_SCALED_BLOCKS = 14


def tie_embedders(model: Any) -> None:
    """Lets all blocks share the first block's timestep and label embedder, and switches off its random label dropout.

    Raises ValueError when the blocks' copies differ: such a model is not a DiT.
    """
    first = model.transformer_blocks[0].norm1.emb
    for index, block in enumerate(model.transformer_blocks):
        copy = block.norm1.emb
        if copy is first:
            continue
        for (name, mine), theirs in zip(first.named_parameters(), copy.parameters(), strict=True):
            if mine.device.type != "meta" and not torch.equal(mine, theirs):
                raise ValueError(f"block {index} has another {name} than block 0: not one shared embedder, as DiT has")
        block.norm1.emb = first
    first.class_embedder.dropout_prob = 0.0


class ScaledLinear(nn.Module):
    """A linear layer with a scale, gamma * (x W^T + b); gamma is a product of one or two vectors of ones at the start."""

    def __init__(self, linear: nn.Linear, num_gammas: int = 1) -> None:
        super().__init__()
        self.linear = linear
        ones = [torch.ones(linear.out_features, device=linear.weight.device) for _ in range(num_gammas)]
        self.gammas = nn.ParameterList([nn.Parameter(one) for one in ones])

    def gamma(self) -> Tensor:
        product: Tensor = self.gammas[0]
        for gamma in list(self.gammas)[1:]:
            product = product * gamma
        return product

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.linear(x)
        return projected * self.gamma()

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        gamma = self.gamma().to(self.linear.weight.dtype)
        self.linear.weight.mul_(gamma[:, None])
        if self.linear.bias is not None:
            self.linear.bias.mul_(gamma)
        return self.linear


def add_bitfit(model: Any) -> None:
    """Freezes all but every bias and the label table: DiffFit's set without its scale factors.

    BitFit proper (Ben Zaken et al. 2022) trains biases alone; the table stays in so that the two differ by the scales only.
    """
    tie_embedders(model)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith((".bias", "class_embedder.embedding_table.weight")):
            parameter.requires_grad_(True)


def add_difffit(model: Any) -> None:
    """Freezes all but the biases and the label table, and puts trainable scales into the first 14 blocks.

    A block gets scales on q, k, v, on the attention projection, on the attention branch and on the MLP branch. The last two
    stand on the branch's closing projection, before adaLN's gate: both multiply channel by channel, so the order is free.
    """
    add_bitfit(model)
    for block in list(model.transformer_blocks)[:NUM_SCALED_BLOCKS]:
        attention = block.attn1
        attention.to_q, attention.to_k, attention.to_v = map(ScaledLinear, (attention.to_q, attention.to_k, attention.to_v))
        attention.to_out[0] = ScaledLinear(attention.to_out[0], num_gammas=2)
        block.ff.net[2] = ScaledLinear(block.ff.net[2])


def fold_difffit(model: Any) -> None:
    """Multiplies every scale into its projection; what remains is a plain diffusers DiT with the same outputs."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ScaledLinear):
                setattr(module, name, child.folded())


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable tensor once, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze_all_but(model: nn.Module, adapter: str) -> None:
    """Prepares `model` for the named adapter: `difffit`, `bitfit`, or `full` where everything learns."""
    if adapter == "difffit":
        add_difffit(model)
    elif adapter == "bitfit":
        add_bitfit(model)
    else:
        assert adapter == "full"
        tie_embedders(model)
        model.requires_grad_(True)
