"""Fine-tune the DiT with the memory losses (paper Eq. 2-8).

Shapes: B rows of this worker, G rows of the global batch, c latent channels, s side, P classes of the global batch.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ddgd_ray.errors import StageError
from ddgd_ray.method.losses import class_weights, gen_loss, per_class, per_sample_extreme, real_loss
from ddgd_ray.method.memory import LatentMemory
from ddgd_ray.method.noise import NoiseSchedule, add_noise, linear_schedule, variational_bits, x0_prediction
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages.adapters import Adapter, attach, save_adapter
from ddgd_ray.stages.backbone import load_dit
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.latents import EpochSampler, LatentCache

log = logging.getLogger(__name__)

DIAGNOSE_EVERY = 25


def run(spec: FinetuneSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes the trainable tensors, raw and averaged. Returns the last losses and the memories' diagnostics.

    Raises StageError when a loss is not finite, before the optimizer steps, naming step, term and rows.
    """
    torch.set_num_threads(ctx.num_threads)
    _check_ranks(spec, ctx)
    cache = LatentCache(inputs["latents"])
    model = load_dit(inputs["backbone"]).to(ctx.device)
    trainable = attach(model, Adapter.of(spec), seed=spec.seed)
    averaged = {name: tensor.detach().clone() for name, tensor in trainable.items()}
    optimizer = torch.optim.AdamW(
        trainable.values(), lr=spec.learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=ctx.device != "cpu"
    )
    if spec.steps and spec.ema_decay**spec.steps > 0.5:
        log.warning(
            "after %d steps the average still holds %.0f %% of the starting weights; lower ema_decay, or sample.weights: raw",
            spec.steps,
            100 * spec.ema_decay**spec.steps,
        )
    draw = _BatchDraw(spec, cache, num_classes=int(model.config["num_embeds_ada_norm"]))
    losses = MemoryLosses(spec, cache, ctx)
    metrics: dict[str, float] = {}
    model.train()
    for step in range(spec.steps):
        batch = draw.batch(step, ctx)
        with torch.autocast(ctx.device.split(":")[0], torch.bfloat16, enabled=spec.dtype == "bfloat16"):
            predicted = model(batch.z_t, batch.t, batch.dropped_labels, return_dict=False)[0].float()
        terms = losses.terms(batch, predicted, ctx)
        total = terms["L_diffusion"] + terms["vb"] + terms["L_memory"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        terms = _add_up(list(trainable.values()), terms, ctx)
        _refuse_non_finite(terms, step, batch.global_ids)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.values()), list(trainable.values()), 1 - spec.ema_decay)
        if step % 5 == 0 or step == spec.steps - 1:
            metrics = {name: float(value) for name, value in terms.items()}
            if step % DIAGNOSE_EVERY == 0 or step == spec.steps - 1:
                metrics |= losses.diagnostics()
            ctx.report(step, metrics)
    save_adapter(out, Adapter.of(spec), trainable, averaged)
    num_trainable = sum(tensor.numel() for tensor in trainable.values())
    return {**metrics, "num_trainable": float(num_trainable)}


def _check_ranks(spec: FinetuneSpec, ctx: Context) -> None:
    if spec.batch_size % ctx.num_ranks:
        raise StageError(
            f"batch_size {spec.batch_size} cannot be shared equally by {ctx.num_ranks} workers",
            where="finetune.batch_size",
            fix="change one of them",
        )
    if spec.memory_scope == "local" and spec.local_ranks != ctx.num_ranks:
        raise StageError(
            f"memory_scope local with local_ranks {spec.local_ranks}, but {ctx.num_ranks} workers: the result depends on it",
            where="finetune.local_ranks",
            fix=f"run with --workers {spec.local_ranks}",
        )


@dataclass(frozen=True)
class Batch:
    """This worker's share of the global batch on its device, and what the host needs to know: own_* (B,), global_* (G,)."""

    z0: Tensor
    z_t: Tensor
    eps: Tensor
    t: Tensor
    dropped_labels: Tensor
    own_labels: Tensor
    own_t: Tensor
    global_labels: Tensor
    global_t: Tensor
    global_ids: Tensor


class _BatchDraw:
    """Every worker draws the whole global batch from the same stream and keeps its rows: W workers see what one would."""

    def __init__(self, spec: FinetuneSpec, cache: LatentCache, num_classes: int) -> None:
        self.spec, self.cache, self.num_classes = spec, cache, num_classes
        self.schedule = linear_schedule()
        self.sampler = EpochSampler(len(cache), spec.batch_size, spec.seed)
        self.generator = torch.Generator().manual_seed(spec.seed * 7_919 + 1)

    def batch(self, step: int, ctx: Context) -> Batch:
        drawn = self.cache.draw(self.sampler.batch(step), self.generator)
        size = len(drawn.labels)
        t = torch.randint(self.schedule.num_steps, (size,), generator=self.generator)
        eps = torch.randn(drawn.z0.shape, generator=self.generator)
        dropped = torch.rand(size, generator=self.generator) < self.spec.label_dropout
        dropped_labels = torch.where(dropped, self.num_classes, drawn.labels)
        share = size // ctx.num_ranks
        mine = slice(ctx.rank * share, (ctx.rank + 1) * share)
        z0, eps, t_mine, kept = (
            tensor[mine].to(ctx.device, non_blocking=True) for tensor in (drawn.z0, eps, t, dropped_labels)
        )
        z_t = add_noise(self.schedule, z0, eps, t_mine)
        return Batch(z0, z_t, eps, t_mine, kept, drawn.labels[mine], t[mine], drawn.labels, t, drawn.ids)


class MemoryLosses:
    """All terms of Eq. 6 for a batch, and the two memories behind them."""

    def __init__(self, spec: FinetuneSpec, cache: LatentCache, ctx: Context) -> None:
        self.spec = spec
        self.schedule: NoiseSchedule = linear_schedule()
        self.known_labels = cache.labels.unique()  # ascending; a class's place here is its row in the memories
        channels, side, _ = cache.latent_shape
        is_local = spec.memory_scope == "local"
        num_rows = spec.batch_size // (ctx.num_ranks if is_local else 1)

        def memory(kind: MemorySpec, seed: int) -> LatentMemory:
            return LatentMemory(
                len(self.known_labels),
                kind.size,
                channels * side * side,
                pop=kind.pop,
                max_age=kind.max_age,
                max_batch=num_rows,
                seed=seed + (1000 * ctx.rank if is_local else 0),
                device=ctx.device,
            )

        self.real = memory(spec.memory_real, spec.seed * 2)
        self.gen = memory(spec.memory_gen, spec.seed * 2 + 1)

    def terms(self, batch: Batch, predicted: Tensor, ctx: Context) -> dict[str, Tensor]:
        """This worker's share of each term: summed over workers they are Eq. 6 of the global batch. Then pushes the latents."""
        spec, channels = self.spec, batch.z0.shape[1]
        eps_theta = predicted[:, :channels]
        diffusion = F.mse_loss(eps_theta, batch.eps) / ctx.num_ranks
        vb = diffusion.new_zeros(())
        if spec.vb and predicted.shape[1] == 2 * channels:
            bits = variational_bits(self.schedule, batch.z0, batch.z_t, eps_theta, predicted[:, channels:], batch.t)
            vb = bits.mean() / ctx.num_ranks
        z_hat = x0_prediction(self.schedule, batch.z_t, eps_theta, batch.t).flatten(1)
        real, gen = self._memory_losses(batch, z_hat, ctx)
        memory = spec.lambda_r * real + spec.lambda_g * gen
        return {"L_diffusion": diffusion, "vb": vb, "L_real": real, "L_gen": gen, "L_memory": memory}

    def _memory_losses(self, batch: Batch, z_hat: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        spec = self.spec
        is_local = spec.memory_scope == "local"
        labels_host = torch.searchsorted(self.known_labels, batch.own_labels if is_local else batch.global_labels)
        t_host = batch.own_t if is_local else batch.global_t
        mine = torch.searchsorted(self.known_labels, batch.own_labels)
        extremes, has_rows = [], []
        for memory, largest in ((self.real, False), (self.gen, True)):
            cosine_BS, valid_BS = memory.cosines(z_hat, mine)
            may_use_B = batch.t < spec.t_max
            if spec.warmup == "full":
                may_use_B = may_use_B & (memory.size_K[mine] >= memory.capacity).to(z_hat.device)
            valid_BS = valid_BS & may_use_B[:, None]
            extreme_B, has_row_B = per_sample_extreme(cosine_BS, valid_BS, largest=largest)
            extremes.append(extreme_B)
            has_rows.append(has_row_B)
        z0 = batch.z0.flatten(1)
        if not is_local and ctx.num_ranks > 1:
            z0, z_hat_all, extremes, has_rows = _gather(z0, z_hat, extremes, has_rows, ctx)
        else:
            z_hat_all = z_hat
        classes_P, group = labels_host.unique(return_inverse=True)
        member_PB = (group[None, :] == torch.arange(len(classes_P))[:, None]).to(z_hat.device)
        weights_P = class_weights(len(classes_P), spec.class_aggregation, z_hat)
        least_P, has_real_P = per_class(extremes[0], has_rows[0], member_PB, largest=False, reduction=spec.reduction)
        most_P, has_gen_P = per_class(extremes[1], has_rows[1], member_PB, largest=True, reduction=spec.reduction)
        real, gen = real_loss(least_P, has_real_P, weights_P), gen_loss(most_P, has_gen_P, weights_P)
        takes_part = t_host < spec.t_max
        rows = takes_part.to(z0.device)
        self.real.push(z0[rows], labels_host[takes_part])
        self.gen.push(z_hat_all[rows], labels_host[takes_part])
        share = 1 / ctx.num_ranks if is_local else 1.0
        return real * share, gen * share

    def diagnostics(self) -> dict[str, float]:
        named = {"real": self.real.diagnostics(), "gen": self.gen.diagnostics()}
        return {f"memory_{kind}/{name}": value for kind, values in named.items() for name, value in values.items()}


def _gather(
    z0: Tensor, z_hat: Tensor, extremes: list[Tensor], has_rows: list[Tensor], ctx: Context
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Rows of all workers in rank order; only this worker's own extremes carry gradient, so gradients add up over workers."""
    flags = [has_row.float() for has_row in has_rows]
    columns = [z0, z_hat.detach(), *(column[:, None].detach() for column in (*extremes, *flags))]
    packed = torch.cat(columns, dim=1).contiguous()
    parts = [torch.empty_like(packed) for _ in range(ctx.num_ranks)]
    dist.all_gather(parts, packed)
    everything = torch.cat(parts)
    dim = z0.shape[1]
    start = ctx.rank * len(z0)
    whole = []
    for index, mine in enumerate(extremes):
        column = everything[:, 2 * dim + index]
        whole.append(torch.cat([column[:start], mine, column[start + len(mine) :]]))
    flags_all = [everything[:, 2 * dim + 2 + index] > 0.5 for index in range(2)]
    return everything[:, :dim], everything[:, dim : 2 * dim], whole, flags_all


def _add_up(trainable: list[torch.nn.Parameter] | list[Tensor], terms: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
    """Sum gradients over workers; the terms as the whole batch sees them, detached."""
    terms = {name: value.detach() for name, value in terms.items()}
    if ctx.num_ranks == 1:
        return terms
    gradients = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in trainable]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for tensor, summed in zip(trainable, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        tensor.grad = summed.view_as(tensor)
    shared = torch.stack([terms["L_diffusion"], terms["vb"]])
    dist.all_reduce(shared)
    return terms | {"L_diffusion": shared[0], "vb": shared[1]}


def _refuse_non_finite(terms: dict[str, Tensor], step: int, ids: Tensor) -> None:
    bad = [name for name, value in terms.items() if not torch.isfinite(value)]
    if bad:
        raise StageError(
            f"{', '.join(bad)} is not finite at step {step}; rows of the batch: {ids.tolist()[:16]}",
            code="non-finite",
            where="finetune",
            fix="lower finetune.learning_rate or the lambdas",
        )
