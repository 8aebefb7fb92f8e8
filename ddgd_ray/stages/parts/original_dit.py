"""A diffusers DiT from a checkpoint in the layout of DiT's own code (Peebles & Xie 2023).

Layout: W width, N blocks, p patch, c latent channels, o output channels, L labels with the null label, s side of the latent.
    x_embedder.proj (W, c, p, p)            pos_embed (1, (s / p)^2, W), fixed sines and cosines
    t_embedder.mlp.{0,2} (W, 256), (W, W)   y_embedder.embedding_table (L, W)
    blocks.n.attn.{qkv,proj} (3W, W), (W, W)    blocks.n.mlp.{fc1,fc2}    blocks.n.adaLN_modulation.1 (6W, W)
    final_layer.adaLN_modulation.1 (2W, W)  final_layer.linear (p * p * o, W)
Both libraries order the modulation as shift, scale, gate of the attention, then of the MLP; shift, scale at the end; q, k, v
inside qkv; and row, column, channel inside a patch of the output. So rows are cut and renamed, never moved.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from ddgd_ray.errors import StageError
from ddgd_ray.stages.parts.tensor_files import differences, read_tensors

# width -> heads of the published sizes S, B, L, XL; the tensors do not show the number of heads
HEADS_BY_WIDTH = {384: 6, 768: 12, 1024: 16, 1152: 16}
NORM_EPS = 1e-6  # of every LayerNorm in DiT's code; diffusers' default for the one before the MLP is 1e-5
_EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_IN_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}


def load_original(file: Path, heads: int) -> DiTTransformer2DModel:
    """The checkpoint as a diffusers DiT; `ema` of a training checkpoint. heads: 0 takes them from the table of widths.

    Raises StageError for a file that is no such checkpoint, naming missing, extra and misshapen tensors.
    """
    state = _weights_in(read_tensors(file))
    missing = [name for name in ("x_embedder.proj.weight", "pos_embed", "final_layer.linear.weight") if name not in state]
    missing += [name for name in ("y_embedder.embedding_table.weight", "blocks.0.attn.qkv.weight") if name not in state]
    if missing:
        raise _misfit(file, [f"{name} is missing" for name in missing], f"; found {', '.join(sorted(state)[:5])} ...")
    model = DiTTransformer2DModel(**_shape(state, heads, file))
    wrong = differences({name: tuple(tensor.shape) for name, tensor in state.items()}, _expected_shapes(model))
    if wrong:
        raise _misfit(file, wrong)
    if not torch.allclose(model.pos_embed.pos_embed, state["pos_embed"].float(), atol=1e-4):
        raise _misfit(file, ["pos_embed holds other positions than the sines and cosines of DiT"])
    model.load_state_dict(_renamed(state, int(model.config["num_layers"])))
    return model


def _weights_in(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors of a checkpoint: of a training checkpoint the average, as sampling uses it."""
    for part in ("ema.", "model."):
        found = {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
        if found:
            state = found
            break
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _shape(state: dict[str, Tensor], heads: int, file: Path) -> dict[str, Any]:
    """The arguments of DiTTransformer2DModel that these tensors imply."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    num_heads = heads or HEADS_BY_WIDTH.get(width, 0)
    if not num_heads or width % num_heads:
        raise StageError(
            f"{num_heads} heads do not divide width {width}" if num_heads else f"the heads of width {width} are not known",
            code="weights-misfit",
            where=str(file),
            fix="give their number: --set backbone.heads=N",
        )
    return {
        "num_attention_heads": num_heads,
        "attention_head_dim": width // num_heads,
        "in_channels": channels,
        "out_channels": state["final_layer.linear.weight"].shape[0] // patch**2,
        "num_layers": depth,
        "sample_size": round(state["pos_embed"].shape[1] ** 0.5) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": state["y_embedder.embedding_table.weight"].shape[0] - 1,
        "norm_eps": NORM_EPS,
    }


def _expected_shapes(model: DiTTransformer2DModel) -> dict[str, tuple[int, ...]]:
    """The shapes of a whole checkpoint of this model in DiT's layout."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    embedder = "transformer_blocks.0.norm1.emb"
    pairs = [(old, f"{embedder}.{new}") for old, new in _EMBEDDERS.items()] + list(_OUTSIDE.items())
    expected = {"pos_embed": tuple(model.pos_embed.pos_embed.shape)}
    for block in range(int(model.config["num_layers"])):
        pairs += [(f"blocks.{block}.{old}", f"transformer_blocks.{block}.{new}") for old, new in _IN_BLOCK.items()]
        rows, columns = shapes[f"transformer_blocks.{block}.attn1.to_q.weight"]
        expected |= {f"blocks.{block}.attn.qkv.weight": (3 * rows, columns), f"blocks.{block}.attn.qkv.bias": (3 * rows,)}
    for old, new in pairs:
        expected |= {f"{old}.{kind}": shapes[f"{new}.{kind}"] for kind in ("weight", "bias") if f"{new}.{kind}" in shapes}
    return expected


def _renamed(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors under diffusers' names; every block gets the shared embedders."""
    renamed: dict[str, Tensor] = {}

    def take(old: str, new: str) -> None:
        renamed.update({f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias") if f"{old}.{kind}" in state})

    for old, new in _OUTSIDE.items():
        take(old, new)
    for number in range(depth):
        block = f"transformer_blocks.{number}"
        for old, new in _EMBEDDERS.items():
            take(old, f"{block}.norm1.emb.{new}")
        for old, new in _IN_BLOCK.items():
            take(f"blocks.{number}.{old}", f"{block}.{new}")
        for kind in ("weight", "bias"):
            parts = state[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)
            renamed |= {f"{block}.attn1.to_{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    return renamed


def _misfit(file: Path, lines: list[str], more: str = "") -> StageError:
    what = f"not a checkpoint of DiT: {'; '.join(lines[:8])}{more}"
    return StageError(what, code="weights-misfit", where=str(file), fix="give a state dict in DiT's own layout (models.py)")
