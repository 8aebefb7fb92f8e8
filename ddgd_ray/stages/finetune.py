"""The DiT, fine-tuned with the memory losses (paper Eq. 2-8).

Shapes: B rows of this worker, G rows of the global batch, c latent channels, s side.
"""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddgd_ray.errors import StageError, Stopped
from ddgd_ray.method.arrivals import staged
from ddgd_ray.method.dit import denoise, dit_block
from ddgd_ray.method.noise import add_noise, linear_schedule
from ddgd_ray.spec.stages import FinetuneSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.adapters import Adapter, attach, save_adapter
from ddgd_ray.stages.parts.backbone import load_dit
from ddgd_ray.stages.parts.checkpoint import (
    Checkpoints,
    StopOrders,
    load_optimizer_state,
    optimizer_state,
    prefixed,
    without_prefix,
)
from ddgd_ray.stages.parts.device import compiled
from ddgd_ray.stages.parts.finite import FiniteWatch
from ddgd_ray.stages.parts.latents import EpochSampler, LatentCache
from ddgd_ray.stages.parts.memory_losses import MemoryLosses, TrainingBatch
from ddgd_ray.stages.parts.memory_snapshots import MemorySnapshots
from ddgd_ray.stages.parts.precision import arithmetic, float32_products

log = logging.getLogger(__name__)


def run(spec: FinetuneSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The last losses and the memories' diagnostics. Writes the trainable tensors, raw and averaged, and rows of the memories.

    The run goes on from the newest sound checkpoint in ctx.keep: on a CPU, to the bit what an undisturbed run gives. Raises
    Stopped after a checkpoint when there is an order to stop. Raises StageError, naming step, term and rows, when a loss is not
    finite, before the optimizer steps.
    """
    torch.set_num_threads(ctx.num_threads)
    _check_ranks(spec, ctx)
    tuning = Tuning(spec, LatentCache(inputs["latents"]), inputs["backbone"], ctx)
    checkpoints = Checkpoints(ctx.keep, every=ctx.checkpoint_steps, rank=ctx.rank, num_ranks=ctx.num_ranks)
    start, orders = tuning.resume(checkpoints), StopOrders(ctx)
    snapshots = MemorySnapshots(ctx.keep, out, spec.steps, is_writer=ctx.rank == 0)
    report_every = max(5, spec.steps // 200)
    metrics: dict[str, float] = {}
    for step in range(start, spec.steps):
        tuning.step(step)
        snapshots.after(step + 1, tuning.losses)
        is_last = step == spec.steps - 1
        if step % report_every == 0 or is_last:
            metrics = tuning.watch.newest_terms()
            if step % (5 * report_every) == 0 or is_last:
                metrics |= tuning.losses.diagnostics()
            ctx.report(step, metrics)
        must_stop = not is_last and checkpoints.folder is not None and orders.has_come(step)
        if must_stop or (checkpoints.is_due(step) and not is_last):
            tuning.watch.check()
            tuning.save(checkpoints, step + 1)
        if must_stop:
            raise Stopped(f"told to stop after step {step + 1} of {spec.steps}", where="finetune")
    save_adapter(out, Adapter.of(spec), tuning.trainable, tuning.averaged)
    snapshots.finish()
    return {**metrics, "num_trainable": float(sum(tensor.numel() for tensor in tuning.trainable.values()))}


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


def _check_latents(cache: LatentCache, config: Any) -> None:
    """Raises StageError for latents and labels that the model has no place for, before torch says so from deep inside."""
    expected = (config["in_channels"], config["sample_size"], config["sample_size"])
    if cache.latent_shape != expected:
        raise StageError(
            f"the model takes latents of {expected} (channels, height, width), the autoencoder gives {cache.latent_shape}",
            where="backbone",
            fix="choose images.size, autoencoder and backbone that belong together",
        )
    greatest, num_labels = int(cache.labels.max()), config["num_embeds_ada_norm"]
    if greatest >= num_labels:
        raise StageError(
            f"the model knows labels 0 to {num_labels - 1}, the images have {greatest}",
            where="images.labels",
            fix="use a backbone trained on these classes, or images.labels: position",
        )


class Tuning:
    """Everything that changes from step to step, and one step of it."""

    def __init__(self, spec: FinetuneSpec, cache: LatentCache, backbone: Path, ctx: Context) -> None:
        self.spec, self.ctx = spec, ctx
        self.model = load_dit(backbone).to(ctx.device)
        _check_latents(cache, self.model.config)
        self.trainable = attach(self.model, Adapter.of(spec), seed=spec.seed)
        if spec.dtype == "bfloat16":
            _store_frozen_in_bfloat16(self.model)
        self.model.train()
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.trainable.items()}
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(),
            lr=spec.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            fused=ctx.device != "cpu",
        )
        self.draw = BatchDraw(spec, cache, num_classes=int(self.model.config["num_embeds_ada_norm"]))
        self.losses = MemoryLosses(spec, cache, ctx)
        self.watch = FiniteWatch(self.optimizer, is_deferred=ctx.device != "cpu")
        self._block = compiled(dit_block, ctx)
        if spec.steps and not spec.ema_warmup and spec.ema_decay**spec.steps > 0.5:
            log.warning(
                "after %d steps the average still holds %.0f %% of the starting weights; lower finetune.ema_decay, set "
                "finetune.ema_warmup, or sample.weights: raw",
                spec.steps,
                100 * spec.ema_decay**spec.steps,
            )

    def step(self, step: int) -> None:
        batch = self.draw.batch(step, self.ctx)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.backward(batch)
        # with global memories, every worker knows the memory terms of the whole batch
        shared = ("L_diffusion", "vb") if self.spec.memory_scope == "global" else tuple(terms)
        terms = _add_up(list(self.trainable.values()), terms, shared, self.ctx)
        self.watch.see(step, terms, batch.global_ids)
        self.optimizer.step()
        self.average(step)

    def backward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Gradients of this worker's share of Eq. 6, and its terms.

        With a micro-batch, the outputs of all rows come first, without gradient; the losses see the whole batch; then each part
        is computed again and the gradient of its outputs sent back (Gao et al. 2021, for contrastive losses).
        """
        size = self.ctx.micro_batch
        if not size or size >= len(batch.z0):
            predicted = self.predict(batch.z_t, batch.t, batch.dropped_labels)
            terms = self.losses.terms(batch, predicted, self.ctx)
            with float32_products(self.spec.dtype):
                _total(terms).backward()
            return terms
        parts = list(zip(*(rows.split(size) for rows in (batch.z_t, batch.t, batch.dropped_labels)), strict=True))
        with torch.no_grad():
            predicted = torch.cat([self.predict(*part) for part in parts])
        predicted.requires_grad_()
        terms = self.losses.terms(batch, predicted, self.ctx)
        (gradient,) = torch.autograd.grad(_total(terms), predicted)
        for part, slope in zip(parts, gradient.split(size), strict=True):
            output = self.predict(*part)
            with float32_products(self.spec.dtype):
                output.backward(slope)
        return terms

    def predict(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The network's output, (B, c or 2c, s, s) float32."""
        with arithmetic(self.spec.dtype, self.ctx.device):
            return denoise(self.model, z_t, t, labels, block=self._block, recompute=self.ctx.recompute).float()

    @torch.no_grad()
    def average(self, step: int) -> None:
        decay = self.spec.ema_decay
        if self.spec.ema_warmup:
            decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averaged.values()), list(self.trainable.values()), 1 - decay)

    def save(self, checkpoints: Checkpoints, num_steps: int) -> None:
        """Keeps model, average, optimizer, memories and random streams; which rows come next follows from the step."""
        parts: dict[str, dict[str, Tensor]] = {}
        if self.ctx.rank == 0:
            parts["weights"] = (
                prefixed("raw", self.trainable)
                | prefixed("ema", self.averaged)
                | prefixed("adam", optimizer_state(self.optimizer, self.trainable))
                | {"draw": self.draw.generator.get_state()}
            )
        if self.ctx.rank == 0 or self.spec.memory_scope == "local":  # global memories are the same on all ranks
            parts[self._memory_part] = self.losses.state_dict()
        checkpoints.save(num_steps, parts)

    @torch.no_grad()
    def resume(self, checkpoints: Checkpoints) -> int:
        """The number of steps done, after the newest sound checkpoint is loaded; 0 without one."""
        found = checkpoints.newest()
        if found is None:
            return 0
        num_steps, folder = found
        state, memories = checkpoints.read(folder, ("weights", self._memory_part))
        for name, tensor in self.trainable.items():
            tensor.copy_(state[f"raw.{name}"])
            self.averaged[name].copy_(state[f"ema.{name}"])
        load_optimizer_state(self.optimizer, self.trainable, without_prefix("adam", state))
        self.draw.generator.set_state(state["draw"])
        self.losses.load_state_dict(memories)
        log.info("going on from step %d of %d", num_steps, self.spec.steps)
        return num_steps

    @property
    def _memory_part(self) -> str:
        return f"memories-{self.ctx.rank if self.spec.memory_scope == 'local' else 0}"


class BatchDraw:
    """Batches. Every worker draws the whole global batch from one stream and keeps its rows: W workers see what one sees."""

    def __init__(self, spec: FinetuneSpec, cache: LatentCache, num_classes: int) -> None:
        self.spec, self.cache, self.num_classes = spec, cache, num_classes
        self.schedule = linear_schedule()
        self.sampler = EpochSampler(len(cache), spec.batch_size, spec.seed)
        self.generator = torch.Generator().manual_seed(spec.seed * 7_919 + 1)

    def batch(self, step: int, ctx: Context) -> TrainingBatch:
        drawn = self.cache.draw(self.sampler.batch(step), self.generator)
        size = len(drawn.labels)
        t = torch.randint(self.schedule.num_steps, (size,), generator=self.generator)
        eps = torch.randn(drawn.z0.shape, generator=self.generator)
        dropped = torch.rand(size, generator=self.generator) < self.spec.label_dropout
        dropped_labels = torch.where(dropped, self.num_classes, drawn.labels)
        share = size // ctx.num_ranks
        mine = slice(ctx.rank * share, (ctx.rank + 1) * share)
        z0, eps, t_mine, kept = (
            staged(tensor[mine], torch.device(ctx.device)) for tensor in (drawn.z0, eps, t, dropped_labels)
        )
        z_t = add_noise(self.schedule, z0, eps, t_mine)
        return TrainingBatch(z0, z_t, eps, t_mine, kept, drawn.labels[mine], t[mine], drawn.labels, t, drawn.ids)


def _total(terms: dict[str, Tensor]) -> Tensor:
    return terms["L_diffusion"] + terms["vb"] + terms["L_memory"]


def _add_up(trainable: list[Tensor], terms: dict[str, Tensor], shared: tuple[str, ...], ctx: Context) -> dict[str, Tensor]:
    """The terms, detached; gradients, and the terms of which each worker holds a share, are summed over workers."""
    terms = {name: value.detach() for name, value in terms.items()}
    if ctx.num_ranks == 1:
        return terms
    gradients = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in trainable]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [terms[name].view(1) for name in shared])
    dist.all_reduce(flat)
    *summed, values = flat.split([*(gradient.numel() for gradient in gradients), len(shared)])
    for tensor, gradient in zip(trainable, summed, strict=True):
        tensor.grad = gradient.view_as(tensor)
    return terms | dict(zip(shared, values, strict=True))


def _store_frozen_in_bfloat16(model: nn.Module) -> None:
    """Stores weights that do not learn in bfloat16: autocast would cast them anew in every pass, to the same values."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(torch.bfloat16)
