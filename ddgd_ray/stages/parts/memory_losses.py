"""The losses of a fine-tuning step (paper Eq. 2-6) and the two memories behind them, over one worker or many.

Shapes: B rows of this worker, G rows of the global batch, c latent channels, s side, P classes of the global batch.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ddgd_ray.method.arrivals import staged
from ddgd_ray.method.losses import class_weights, gen_loss, per_class, per_sample_extreme, real_loss
from ddgd_ray.method.memory import LatentMemory
from ddgd_ray.method.noise import NoiseSchedule, linear_schedule, variational_bits, x0_prediction
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.checkpoint import prefixed, without_prefix
from ddgd_ray.stages.parts.latents import LatentCache

COVERED = 64  # real latents of a class that coverage looks at


@dataclass(frozen=True)
class TrainingBatch:
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


class MemoryLosses:
    """All terms of Eq. 6 for a batch, and the two memories behind them. No step waits for the device."""

    def __init__(self, spec: FinetuneSpec, cache: LatentCache, ctx: Context) -> None:
        self.spec, self.cache = spec, cache
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

    def terms(self, batch: TrainingBatch, predicted: Tensor, ctx: Context) -> dict[str, Tensor]:
        """This worker's share of each term; summed over workers the shares are Eq. 6 of the global batch.

        Afterwards the latents of the batch are pushed into both memories.
        """
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

    def _memory_losses(self, batch: TrainingBatch, z_hat: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        spec = self.spec
        is_local = spec.memory_scope == "local"
        labels_host = torch.searchsorted(self.known_labels, batch.own_labels if is_local else batch.global_labels)
        t_host = batch.own_t if is_local else batch.global_t
        mine = torch.searchsorted(self.known_labels, batch.own_labels)
        extremes, has_rows = [], []
        for memory, largest in ((self.real, False), (self.gen, True)):
            cosine_BS, valid_BS = memory.cosines(z_hat, mine)
            if spec.gates_t or spec.warmup == "full":
                may_use_B = self._in_range(batch.own_t)
                if spec.warmup == "full":
                    may_use_B = may_use_B & (memory.size_K[mine] >= memory.capacity)
                valid_BS = valid_BS & staged(may_use_B, z_hat.device)[:, None]
            extreme_B, has_row_B = per_sample_extreme(cosine_BS, valid_BS, largest=largest)
            extremes.append(extreme_B)
            has_rows.append(has_row_B)
        z0 = batch.z0.flatten(1)
        if not is_local and ctx.num_ranks > 1:
            z0, z_hat_all, extremes, has_rows = _gather(z0, z_hat, extremes, has_rows, ctx)
        else:
            z_hat_all = z_hat
        classes_P, group = labels_host.unique(return_inverse=True)
        member_PB = staged(group[None, :] == torch.arange(len(classes_P))[:, None], z_hat.device)
        weights_P = class_weights(len(classes_P), spec.class_aggregation, z_hat)
        least_P, has_real_P = per_class(extremes[0], has_rows[0], member_PB, largest=False, reduction=spec.reduction)
        most_P, has_gen_P = per_class(extremes[1], has_rows[1], member_PB, largest=True, reduction=spec.reduction)
        real, gen = real_loss(least_P, has_real_P, weights_P), gen_loss(most_P, has_gen_P, weights_P)
        if spec.gates_t:
            rows = self._in_range(t_host).nonzero().flatten()
            labels_host = labels_host[rows]
            rows = staged(rows, z0.device)
            z0, z_hat_all = z0[rows], z_hat_all[rows]
        self.real.push(z0, labels_host)
        self.gen.push(z_hat_all, labels_host)
        share = 1 / ctx.num_ranks if is_local else 1.0
        return real * share, gen * share

    def _in_range(self, t: Tensor) -> Tensor:
        return (t >= self.spec.t_min) & (t < self.spec.t_max)

    def state_dict(self) -> dict[str, Tensor]:
        return prefixed("real", self.real.state_dict()) | prefixed("gen", self.gen.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.real.load_state_dict(without_prefix("real", state))
        self.gen.load_state_dict(without_prefix("gen", state))

    def diagnostics(self) -> dict[str, float]:
        """The diagnostics of both memories and their coverage of the real latents, as memory_real/NAME and memory_gen/NAME."""
        memories = {"real": self.real, "gen": self.gen}
        named = {kind: memory.diagnostics() | self._coverage(memory) for kind, memory in memories.items()}
        return {f"memory_{kind}/{name}": value for kind, values in named.items() for name, value in values.items()}

    def _coverage(self, memory: LatentMemory) -> dict[str, float]:
        """The mean over real latents of the cosine to the nearest row of their class (facility location).

        The latents are the same COVERED ones of each class every time, spread evenly through the cache.
        """
        nearest = []
        for place in torch.nonzero(memory.size_K > 0).flatten().tolist():
            ids = torch.nonzero(self.cache.labels == self.known_labels[place]).flatten()
            some = ids[torch.linspace(0, len(ids) - 1, min(COVERED, len(ids))).long()]
            real_RD = F.normalize(self.cache.means(some).flatten(1), dim=1).to(memory.unit_KSD.device)
            nearest.append((real_RD @ F.normalize(memory.rows(place), dim=1).T).amax(dim=1).mean())
        return {"coverage": float(torch.stack(nearest).mean())} if nearest else {}


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
