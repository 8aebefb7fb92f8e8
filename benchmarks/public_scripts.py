"""What the public fine-tuning scripts do in a step, written anew and fairly, to be measured against.

They encode the images with the VAE in every step, run in float32 (TF32 on a GPU), keep one Python list of latents a class,
concatenate it for every class of the batch, average the whole model in a loop over its parameters and read the losses back
each step. The forward pass is ours: theirs computes the conditioning once a pass, too.
"""

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgd_ray.method.dit import denoise
from ddgd_ray.method.noise import add_noise, linear_schedule, variational_bits, x0_prediction


def cosines(a_AD: Tensor, b_BD: Tensor) -> Tensor:
    """(A, B)."""
    return (a_AD @ b_BD.T) / (a_AD.norm(dim=1)[:, None] * b_BD.norm(dim=1)[None, :])


class ListMemory:
    """One list of (1, D) latents a class. pop: `fifo` as Minimax, or Eq. 7-8 as they read: all pairs again for each pop."""

    def __init__(self, capacity: int, pop: str) -> None:
        self.capacity, self.pop = capacity, pop
        self.rows: dict[int, list[Tensor]] = defaultdict(list)

    def stacked(self, label: int) -> Tensor:
        return torch.cat(self.rows[label])

    def push(self, z_BD: Tensor, label: int) -> None:
        rows = self.rows[label]
        rows.extend(z_BD.detach().split(1))
        while len(rows) > self.capacity:
            rows.pop(self._victim(rows))

    def _victim(self, rows: list[Tensor]) -> int:
        if self.pop == "fifo":
            return 0
        latents = torch.cat(rows)
        scores: list[float] = cosines(latents, latents).sum(dim=1).tolist()
        return scores.index(max(scores) if self.pop == "max_similarity" else min(scores))


class PublicStep:
    """One training step of the scripts, in the parts that the benchmark tells apart."""

    def __init__(self, model: nn.Module, trainable: list[Tensor], vae: Any, *, capacity: int, pop: str) -> None:
        self.model, self.vae, self.trainable = model, vae, trainable
        self.average_model = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-6, weight_decay=0.0)
        self.schedule = linear_schedule()
        self.real, self.gen = ListMemory(capacity, pop), ListMemory(capacity, pop)
        self.running = 0.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        """images: (B, 3, S, S) in [-1, 1] on the host. labels: (B,) int64 on the host, places of the classes."""
        device = next(self.model.parameters()).device
        z0 = self.encode(images.to(device))
        t = torch.randint(1000, (len(z0),), device=device)
        eps = torch.randn_like(z0)
        z_t = add_noise(self.schedule, z0, eps, t)
        predicted = self.forward(z_t, t, labels.to(device))
        eps_theta, v = predicted[:, : z0.shape[1]], predicted[:, z0.shape[1] :]
        loss = F.mse_loss(eps_theta, eps) + variational_bits(self.schedule, z0, z_t, eps_theta, v, t).mean()
        z_hat = x0_prediction(self.schedule, z_t, eps_theta, t).flatten(1)
        memory = self.memory(z0.flatten(1), z_hat, labels)
        self.optimizer.zero_grad()
        self.backward(loss + memory)
        self.update()
        self.average()
        self.running += loss.item()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent_dist.sample() * 0.18215

    def forward(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return denoise(self.model, z_t, t, labels)

    def memory(self, z0_BD: Tensor, z_hat_BD: Tensor, labels: Tensor) -> Tensor:
        loss = z_hat_BD.new_zeros(())
        present = set(labels.tolist())
        for label in present:
            mine = (labels == label).to(z_hat_BD.device)
            if self.gen.rows[label]:
                real = 1 - cosines(z_hat_BD[mine], self.real.stacked(label)).min()
                gen = cosines(z_hat_BD[mine], self.gen.stacked(label)).max()
                loss = loss + (0.002 * real + 0.008 * gen) / len(present)
            self.real.push(z0_BD[mine], label)
            self.gen.push(z_hat_BD[mine], label)
        return loss

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()

    @torch.no_grad()
    def average(self) -> None:
        averaged = dict(self.average_model.named_parameters())
        for name, parameter in self.model.named_parameters():
            averaged[name].mul_(0.9999).add_(parameter.data, alpha=1 - 0.9999)
