"""Our forward pass against diffusers' own."""

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from ddgd_ray.method.difffit import freeze_all_but, trainable_state
from ddgd_ray.method.dit import denoise


def random_dit(*, adapter: str = "difffit", out_channels: int = 8, patch: int = 2, seed: int = 0) -> DiTTransformer2DModel:
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=out_channels,
        num_layers=3,
        sample_size=8,
        patch_size=patch,
        num_embeds_ada_norm=5,
    )
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    freeze_all_but(model, adapter)
    for parameter in trainable_state(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def inputs(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    z_t = torch.randn(3, 4, 8, 8, generator=stream, dtype=dtype)
    return z_t, torch.randint(1000, (3,), generator=stream), torch.tensor([0, 5, 2])


@pytest.mark.parametrize(("adapter", "out_channels", "patch"), [("difffit", 8, 2), ("full", 4, 4), ("difffit", 4, 1)])
def test_the_pass_equals_diffusers_own(adapter: str, out_channels: int, patch: int) -> None:
    model = random_dit(adapter=adapter, out_channels=out_channels, patch=patch)
    expected = model(*inputs(), return_dict=False)[0]
    torch.testing.assert_close(denoise(model, *inputs()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_diffusers_own(recompute: bool) -> None:
    model = random_dit().double()
    z_t, t, labels = inputs(dtype=torch.float64)

    def gradients(output: Tensor) -> dict[str, Tensor]:
        wanted = trainable_state(model)
        return dict(zip(wanted, torch.autograd.grad(output.square().sum(), list(wanted.values())), strict=True))

    expected = gradients(model(z_t, t, labels, return_dict=False)[0])
    found = gradients(denoise(model, z_t, t, labels, recompute=recompute))
    # the sinusoids of t are float32 on both sides and cast alike
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_the_residual_stream_stays_float32_under_autocast() -> None:
    model = random_dit()
    kept: list[torch.dtype] = []
    model.norm_out.register_forward_pre_hook(lambda module, args: kept.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = denoise(model, *inputs())
    assert kept == [torch.float32]
    torch.testing.assert_close(found.float(), denoise(model, *inputs()), rtol=0.1, atol=0.1)
