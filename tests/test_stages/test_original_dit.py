"""Checkpoints in DiT's own layout: the converted model is that of the paper, and what is no such checkpoint is named."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import AdoptSpec
from ddgd_ray.stages import adopt
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import declared_timestep_shift, load_dit, set_timestep_shift, timestep_shift
from ddgd_ray.stages.parts.original_dit import load_original

State = dict[str, Tensor]


def positions(side: int, width: int) -> Tensor:
    """(1, side^2, width): half of the channels for the column, half for the row; of each half, sines then cosines."""
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                frequency = 10_000 ** (-k / quarter)
                for start, place in ((0, column), (2 * quarter, row)):
                    table[row * side + column, start + k] = math.sin(place * frequency)
                    table[row * side + column, start + quarter + k] = math.cos(place * frequency)
    return table[None].float()


def random_state(*, width: int = 48, depth: int = 2, patch: int = 2, side: int = 8, labels: int = 6, seed: int = 0) -> State:
    """A whole checkpoint in DiT's layout with 4 latent channels and a learned variance; nothing in it is zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1] if len(shape) > 1 else 4)

    shapes = {
        "x_embedder.proj": (width, 4, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch * patch * 8, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for n in range(depth):
        shapes |= {f"blocks.{n}.attn.qkv": (3 * width, width), f"blocks.{n}.attn.proj": (width, width)}
        shapes |= {f"blocks.{n}.mlp.fc1": (4 * width, width), f"blocks.{n}.mlp.fc2": (width, 4 * width)}
        shapes |= {f"blocks.{n}.adaLN_modulation.1": (6 * width, width)}
    state = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": draw(shape[0]) for name, shape in shapes.items()}
    state["y_embedder.embedding_table.weight"] = draw(labels, width)
    state["pos_embed"] = positions(side // patch, width)
    return state


def twin(state: State, heads: int, z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """DiT as its paper describes it (arXiv 2212.09748, sections 3.2 and A), one plain step after the other.

    z: (B, 4, s, s). Returns (B, 8, s, s): noise, then variance.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def normed(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)

    patch, width = state["x_embedder.proj.weight"].shape[-1], state["x_embedder.proj.weight"].shape[0]
    num, side = len(z), z.shape[-1] // patch
    tokens = torch.zeros(num, side * side, width)
    for row in range(side):  # each patch is flattened and embedded linearly
        for column in range(side):
            cut = z[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].reshape(num, -1)
            kernel = state["x_embedder.proj.weight"].reshape(width, -1)
            tokens[:, row * side + column] = cut @ kernel.T + state["x_embedder.proj.bias"]
    x = tokens + state["pos_embed"]
    angle = t[:, None] * 10_000 ** (-torch.arange(128) / 128)
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=1))))
    condition = F.silu(time + state["y_embedder.embedding_table.weight"][labels])[:, None]
    for n in range(len({name for name in state if name.endswith("qkv.weight")})):
        name = f"blocks.{n}"
        modulation = linear(f"{name}.adaLN_modulation.1", condition)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation[..., i * width : (i + 1) * width] for i in range(6))
        qkv = linear(f"{name}.attn.qkv", normed(x) * (1 + scale_a) + shift_a)
        mixed = []
        dim = width // heads
        for head in range(heads):
            q, k, v = (qkv[..., i * width + head * dim : i * width + (head + 1) * dim] for i in range(3))
            mixed.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(dim), dim=-1) @ v)
        x = x + gate_a * linear(f"{name}.attn.proj", torch.cat(mixed, dim=-1))
        hidden = linear(f"{name}.mlp.fc1", normed(x) * (1 + scale_m) + shift_m)
        x = x + gate_m * linear(f"{name}.mlp.fc2", F.gelu(hidden, approximate="tanh"))
    modulation = linear("final_layer.adaLN_modulation.1", condition)
    decoded = linear("final_layer.linear", normed(x) * (1 + modulation[..., width:]) + modulation[..., :width])
    channels = decoded.shape[-1] // patch**2
    output = torch.zeros(num, channels, z.shape[-1], z.shape[-1])
    for place in range(side * side):
        top, left = patch * (place // side), patch * (place % side)
        pixels = decoded[:, place].reshape(num, patch, patch, channels)  # row, column, channel
        output[:, :, top : top + patch, left : left + patch] = pixels.permute(0, 3, 1, 2)
    return output


def batch(side: int, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([0, 1, 17, 400, 999])
    return torch.randn(len(t), 4, side, side, generator=generator), t, torch.arange(len(t)) % labels


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the norms: float32 rounds the angle of t = 999 by 3e-5, which single small numbers feel more."""
    return float((found - expected).norm() / expected.norm())


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "dit.pt")
    return folder / "dit.pt"


@pytest.mark.parametrize(("patch", "side", "width", "heads"), [(2, 8, 48, 4), (4, 8, 48, 2), (8, 32, 32, 2), (2, 16, 384, 0)])
def test_a_converted_checkpoint_computes_what_the_paper_describes(
    patch: int, side: int, width: int, heads: int, tmp_path: Path
) -> None:
    state = random_state(width=width, patch=patch, side=side)
    model = load_original(saved(state, tmp_path), heads).eval()
    set_timestep_shift(model, 0)
    inputs = batch(side, labels=6)
    with torch.inference_mode():
        found = model(*inputs, return_dict=False)[0]
    expected = twin(state, heads or 6, *inputs)  # width 384 is DiT-S: 6 heads
    assert relative_error(found, expected) < 1e-5


def test_diffusers_own_timesteps_give_another_model(tmp_path: Path) -> None:
    state = random_state()
    model = load_original(saved(state, tmp_path), 4).eval()
    inputs = batch(8, labels=6)
    with torch.inference_mode():
        found = model(*inputs, return_dict=False)[0]
    expected = twin(state, 4, *inputs)
    assert timestep_shift(model) == 1  # what diffusers builds
    assert relative_error(found[0], expected[0]) < 1e-5  # at t = 0 all frequencies agree
    assert relative_error(found[4], expected[4]) > 0.05


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_published_widths_have_their_published_heads(width: int, heads: int, tmp_path: Path) -> None:
    state = random_state(width=width, depth=1, side=4, labels=3)
    assert load_original(saved(state, tmp_path), 0).config["num_attention_heads"] == heads


def test_depth_patch_size_and_labels_are_read_off_the_tensors(tmp_path: Path) -> None:
    config = load_original(saved(random_state(depth=3, patch=4, side=64, labels=11), tmp_path), 4).config
    names = ("num_layers", "patch_size", "sample_size", "in_channels", "out_channels", "num_embeds_ada_norm")
    assert [config[name] for name in names] == [3, 4, 64, 4, 8, 10]


def test_a_training_checkpoint_gives_its_average(tmp_path: Path) -> None:
    ema = random_state(seed=1)
    nested = {"model": random_state(seed=2), "ema": ema, "opt": {"state": {0: {"step": torch.tensor(3)}}}}
    model = load_original(saved(nested, tmp_path), 4)
    assert torch.equal(model.state_dict()["proj_out_2.weight"], ema["final_layer.linear.weight"])


def without(name: str) -> Callable[[State], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias is missing"),
        (without("blocks.0.attn.qkv.weight"), "blocks.0.attn.qkv.weight is missing"),
        (lambda state: state | {"blocks.0.gamma": torch.ones(3)}, "blocks.0.gamma is not part of it"),
        (lambda state: state | {"final_layer.linear.bias": torch.ones(3)}, r"expected \(32,\), found \(3,\)"),
        (lambda state: state | {"pos_embed": state["pos_embed"].flip(1)}, "other positions"),
        (lambda state: [1, 2], "x_embedder.proj.weight is missing"),
        (without("x_embedder.proj.weight"), "x_embedder.proj.weight is missing; found blocks"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[State], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=words) as caught:
        load_original(saved(change(random_state()), tmp_path), 4)
    assert caught.value.code == "weights-misfit"


@pytest.mark.parametrize(
    ("width", "heads", "words"), [(48, 0, "the heads of width 48 are not known"), (48, 5, "5 heads do not")]
)
def test_heads_that_cannot_be_known_are_asked_for(width: int, heads: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=words) as caught:
        load_original(saved(random_state(width=width), tmp_path), heads)
    assert "--set backbone.heads=N" in caught.value.fix


def test_a_pickled_object_is_refused_and_never_advised_to_be_trusted(tmp_path: Path) -> None:
    file = saved({"ema": random_state(), "args": argparse.Namespace(lr=1e-4)}, tmp_path)
    with pytest.raises(StageError, match=r"pickled object \(argparse.Namespace\)") as caught:
        load_original(file, 4)
    assert caught.value.code == "weights-pickled"
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: b"<html>404</html>", lambda whole: b"hello"],
    ids=["empty", "cut", "web page", "text"],
)
def test_a_damaged_file_is_named_with_its_size(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = saved(random_state(depth=1), tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StageError, match=f"{file.stat().st_size} bytes") as caught:
        load_original(file, 4)
    assert caught.value.code == "weights-damaged"
    assert caught.value.where == str(file)


def test_an_adopted_checkpoint_keeps_its_timesteps(tmp_path: Path) -> None:
    state = random_state()
    out = tmp_path / "out"
    out.mkdir()
    adopt.run(AdoptSpec(part="backbone", heads=4), {"weights": saved(state, tmp_path)}, out, Context())
    assert declared_timestep_shift(out) == 0
    inputs = batch(8, labels=6)
    with torch.inference_mode():
        found = load_dit(out).eval()(*inputs, return_dict=False)[0]
    assert relative_error(found, twin(state, 4, *inputs)) < 1e-5


def test_a_model_is_loaded_without_drawing_random_weights(variance_inputs: dict[str, Path]) -> None:
    before = torch.get_rng_state()
    loaded = load_dit(variance_inputs["backbone"])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
