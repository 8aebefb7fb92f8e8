"""The forward pass of diffusers' `DiTTransformer2DModel`, its conditioning computed once.

diffusers asks the (tied) timestep and label embedder again in every block; here it is asked once a pass, and nothing but the
tensors' work remains: no dispatch over attention processors, the residual stream in float32 under autocast as in DiT itself.

Shapes: B batch, c latent channels, s side of the latent, p patch, T = (s/p)^2 tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# (block, x_BTD, condition_BD) -> x_BTD
Block = Callable[[Any, Tensor, Tensor], Tensor]


def dit_block(block: Any, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
    """The tokens after one adaLN-zero block (Peebles & Xie 2023, Fig. 3). condition_BD: after SiLU."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = block.norm1.linear(condition_BD)[:, None].chunk(6, dim=2)
    x_BTD = x_BTD + gate * _attention(block.attn1, block.norm1.norm(x_BTD) * (1 + scale) + shift)
    hidden_BTD: Tensor = block.ff(block.norm3(x_BTD) * (1 + mlp_scale) + mlp_shift)
    return x_BTD + mlp_gate * hidden_BTD


def _attention(attention: Any, x_BTD: Tensor) -> Tensor:
    query, key, value = (
        project(x_BTD).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    mixed: Tensor = attention.to_out[0](F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    return mixed


def hidden_states(model: Any, z_t: Tensor, t_B: Tensor, labels_B: Tensor, *, num_blocks: int) -> list[Tensor]:
    """The outputs (B, T, D) of the first blocks, at most as many as there are; the later ones are not run."""
    patches: Any = model.pos_embed
    x_BTD = patches.proj(z_t).flatten(2).transpose(1, 2) + patches.pos_embed
    condition_BD = F.silu(model.transformer_blocks[0].norm1.emb(t_B, labels_B, hidden_dtype=z_t.dtype))
    states = []
    for layer in model.transformer_blocks[:num_blocks]:
        x_BTD = dit_block(layer, x_BTD, condition_BD)
        states.append(x_BTD)
    return states


def denoise(
    model: Any, z_t: Tensor, t_B: Tensor, labels_B: Tensor, *, block: Block = dit_block, recompute: bool = False
) -> Tensor:
    """The output of `model(z_t, t, labels)`, (B, c or 2c, s, s), to rounding; for models without dropout.

    block: `dit_block` or a compiled version of it. recompute: keep each block's input alone for the backward pass.
    """
    patches: Any = model.pos_embed
    x_BTD = patches.proj(z_t).flatten(2).transpose(1, 2) + patches.pos_embed
    condition_BD = F.silu(model.transformer_blocks[0].norm1.emb(t_B, labels_B, hidden_dtype=z_t.dtype))
    for layer in model.transformer_blocks:
        if recompute and torch.is_grad_enabled():
            x_BTD = checkpoint(block, layer, x_BTD, condition_BD, use_reentrant=False)
        else:
            x_BTD = block(layer, x_BTD, condition_BD)
    shift, scale = model.proj_out_1(condition_BD)[:, None].chunk(2, dim=2)
    pixels_BTP = model.proj_out_2(model.norm_out(x_BTD) * (1 + scale) + shift)
    side, p = z_t.shape[-1] // model.patch_size, model.patch_size
    grid = pixels_BTP.unflatten(1, (side, side)).unflatten(3, (p, p, -1))  # (B, s/p, s/p, p, p, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
