"""The small autoencoder of an embedded preset, trained on its images."""

import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn import functional as F

from ddgd_ray.spec.stages import AutoencoderSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder, save_identity, to_unit_range
from ddgd_ray.stages.parts.images import read_splits, record_skipped


def run(spec: AutoencoderSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The PSNR in dB on held-out training images. Writes a diffusers AutoencoderKL folder."""
    if spec.kind == "identity":
        save_identity(out)
        return {}
    torch.set_num_threads(ctx.num_threads)
    train_split, validation = read_splits(spec.images, inputs["images"], "train", "validation", num_threads=ctx.num_threads)
    train = to_unit_range(torch.from_numpy(train_split.images))
    kl = _train(spec, train, ctx)
    with torch.inference_mode():
        sample = train[:: max(1, len(train) // 1000)].to(ctx.device)
        dist = kl.encode(sample, return_dict=False)[0]
        raw = dist.sample(torch.Generator(ctx.device).manual_seed(spec.seed))
        kl.register_to_config(latents_mean=raw.mean((0, 2, 3)).tolist(), latents_std=raw.std((0, 2, 3)).tolist())
    kl.save_pretrained(out, safe_serialization=True)
    held = validation if len(validation) else train_split
    psnr_db = _psnr(Autoencoder(kl, ctx.device), to_unit_range(torch.from_numpy(held.images[:1000])))
    return {"psnr_db": psnr_db} | record_skipped(out, spec.images, [*train_split.skipped, *validation.skipped])


def _train(spec: AutoencoderSpec, train: torch.Tensor, ctx: Context) -> AutoencoderKL:
    """An autoencoder trained with MSE + l1_weight L1 + kl_weight KL on random, randomly mirrored images."""
    torch.manual_seed(spec.seed)
    num_levels = len(spec.widths)
    kl = AutoencoderKL(
        in_channels=spec.images.channels,
        out_channels=spec.images.channels,
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=spec.widths,
        layers_per_block=1,
        latent_channels=spec.latent_channels,
        norm_num_groups=8,
        sample_size=spec.images.size,
        mid_block_add_attention=False,
    ).to(ctx.device)
    optimizer = torch.optim.AdamW(kl.parameters(), lr=spec.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.learning_rate, total_steps=spec.steps)
    draw = torch.Generator().manual_seed(spec.seed + 1)
    kl.train()
    for step in range(spec.steps):
        batch = train[torch.randint(len(train), (spec.batch_size,), generator=draw)]
        mirrored = torch.rand(spec.batch_size, generator=draw) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch).to(ctx.device)
        dist = kl.encode(batch, return_dict=False)[0]
        noise = torch.randn(dist.mean.shape, generator=draw).to(ctx.device)
        decoded = kl.decode(dist.mean + dist.std * noise, return_dict=False)[0]
        mse, l1, kl_term = F.mse_loss(decoded, batch), F.l1_loss(decoded, batch), dist.kl().mean() / dist.mean[0].numel()
        loss = mse + spec.l1_weight * l1 + spec.kl_weight * kl_term
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == spec.steps - 1:
            ctx.report(step, {"loss": float(loss.detach()), "mse": float(mse.detach()), "kl": float(kl_term.detach())})
    return kl.eval()


def _psnr(autoencoder: Autoencoder, images: torch.Tensor) -> float:
    mean, _ = autoencoder.posterior(images.to(autoencoder.device))
    decoded = to_unit_range(autoencoder.decode(mean).cpu())
    return 10 * math.log10(4 / F.mse_loss(decoded, images).item())  # the range [-1, 1] is 2 wide
