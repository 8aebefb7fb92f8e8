"""A small DiT trained from scratch on the latent cache: the stand-in for DiT-XL/2 where no weights can be had."""

import copy
from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import nn
from torch.nn import functional as F

from ddgd_ray.errors import StageError
from ddgd_ray.method.difffit import tie_embedders
from ddgd_ray.method.noise import add_noise, linear_schedule
from ddgd_ray.spec.stages import PretrainSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import save_dit
from ddgd_ray.stages.parts.latents import EpochSampler, LatentCache


def run(spec: PretrainSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The mean loss of the last 100 steps. Writes the exponential moving average as a plain diffusers DiT folder."""
    torch.set_num_threads(ctx.num_threads)
    cache = LatentCache(inputs["latents"])
    torch.manual_seed(spec.seed)
    model = _new_dit(spec, cache).to(ctx.device)
    average = copy.deepcopy(model).requires_grad_(False)
    schedule = linear_schedule()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.steps)
    sampler = EpochSampler(len(cache), spec.batch_size, spec.seed)
    draw = torch.Generator().manual_seed(spec.seed + 1)
    num_classes = int(model.config["num_embeds_ada_norm"])
    losses: list[float] = []
    model.train()
    for step in range(spec.steps):
        batch = cache.draw(sampler.batch(step), draw)
        dropped = torch.rand(len(batch.labels), generator=draw) < spec.label_dropout
        labels = torch.where(dropped, num_classes, batch.labels)
        t = torch.randint(schedule.num_steps, (len(labels),), generator=draw)
        eps = torch.randn(batch.z0.shape, generator=draw)
        z0, labels, t, eps = (tensor.to(ctx.device) for tensor in (batch.z0, labels, t, eps))
        predicted = model(add_noise(schedule, z0, eps, t), t, labels, return_dict=False)[0]
        loss = F.mse_loss(predicted, eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
        if not torch.isfinite(loss):
            raise StageError(f"the loss is {loss.item()} at step {step}", code="non-finite", fix="lower the learning rate")
        optimizer.step()
        cosine.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - spec.ema_decay)
        losses.append(float(loss.detach()))
        if step % 50 == 0 or step == spec.steps - 1:
            ctx.report(step, {"loss": losses[-1]})
    save_dit(average, out)
    return {"loss": sum(losses[-100:]) / len(losses[-100:])}


def _new_dit(spec: PretrainSpec, cache: LatentCache) -> DiTTransformer2DModel:
    """A DiT at its start: adaLN-zero, label embeddings of std 1, timestep MLP of std 0.1.

    Other starts learned far more slowly.
    """
    channels, side, _ = cache.latent_shape
    if side % spec.patch:
        raise StageError(f"latents are {side} a side, not divisible by patch {spec.patch}", fix="change backbone.patch")
    model = DiTTransformer2DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.head_dim,
        in_channels=channels,
        num_layers=spec.layers,
        sample_size=side,
        patch_size=spec.patch,
        num_embeds_ada_norm=int(cache.labels.max()) + 1,
    )
    first = model.transformer_blocks[0].norm1.emb
    nn.init.normal_(first.class_embedder.embedding_table.weight, std=1.0)
    for layer in (first.timestep_embedder.linear_1, first.timestep_embedder.linear_2):
        nn.init.normal_(layer.weight, std=0.1)
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        block.norm1.emb = first
    for layer in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    tie_embedders(model)
    return model
