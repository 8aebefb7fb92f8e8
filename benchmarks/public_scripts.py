"""What the public fine-tuning scripts do in a step, written anew and fairly, to be measured against.

They encode the images with the VAE in every step, run in float32 (TF32 on a GPU), keep one Python list of latents a class,
concatenate it for every class of the batch, average the whole model in a loop over its parameters and read the losses back
each step. The forward pass is ours: theirs computes the conditioning once a pass, too.
"""

import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgd_ray.method.dit import denoise
from ddgd_ray.method.noise import add_noise, linear_schedule, variational_bits, x0_prediction


def cosines(a_AD: Tensor, b_BD: Tensor) -> Tensor:
    """(A, B), by one matrix product."""
    return F.normalize(a_AD, dim=1) @ F.normalize(b_BD, dim=1).T


class ListMemory:
    """A Python list of (1, D) latents a class, oldest first. Eq. 7-8 as they read: all pairs again for each pop."""

    def __init__(self, capacity: int, num_classes: int, pop: str, rows_ND: Tensor) -> None:
        """Every class begins with rows_ND."""
        self.capacity, self.pop = capacity, pop
        self.rows = [list(rows_ND.clone().split(1)) for _ in range(num_classes)]
        self.fates = [[random.random() for _ in range(len(rows_ND))] for _ in range(num_classes)]

    def push(self, z_BD: Tensor, labels_B: Tensor) -> None:
        for label in set(labels_B.tolist()):
            came = z_BD[labels_B.to(z_BD.device) == label].detach().split(1)
            self.rows[label].extend(came)
            self.fates[label].extend(random.random() for _ in came)
            while len(self.rows[label]) > self.capacity:
                victim = self.victim(self.rows[label], self.fates[label])
                self.rows[label].pop(victim)
                self.fates[label].pop(victim)

    def victim(self, rows: list[Tensor], fates: list[float]) -> int:
        if self.pop == "fifo":
            return 0
        if self.pop == "random":
            return random.randrange(len(rows))
        if self.pop == "reservoir":
            return fates.index(max(fates))
        latents = torch.cat(rows)
        cosine_MM = cosines(latents, latents)
        if self.pop == "kcenter":
            scores = cosine_MM.fill_diagonal_(-2).amax(dim=1).tolist()
        else:
            scores = (cosine_MM.sum(dim=1) * (1 if self.pop == "max_similarity" else -1)).tolist()
        return scores.index(max(scores))

    def least(self, z_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Sum over the classes of the batch of the least cosine to a row of the class."""
        return torch.stack([cosines(own, rows).min() for own, rows in self.pairs(z_BD, labels_B)]).sum()

    def most(self, z_BD: Tensor, labels_B: Tensor) -> Tensor:
        return torch.stack([cosines(own, rows).max() for own, rows in self.pairs(z_BD, labels_B)]).sum()

    def pairs(self, z_BD: Tensor, labels_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A class's rows of the batch and its memory, for each class of the batch."""
        for label in set(labels_B.tolist()):
            yield z_BD[labels_B.to(z_BD.device) == label], torch.cat(self.rows[label])


class PublicStep:
    """One training step of the scripts, in the parts that the benchmark tells apart."""

    def __init__(
        self, model: nn.Module, trainable: list[Tensor], vae: Any, *, rows_ND: Tensor, num_classes: int, pop: str
    ) -> None:
        self.model, self.vae, self.trainable = model, vae, trainable
        self.average_model = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-6, weight_decay=0.0)
        self.schedule = linear_schedule()
        self.real, self.gen = (ListMemory(len(rows_ND), num_classes, pop, rows_ND) for _ in range(2))
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
        num_present = len(set(labels.tolist()))
        loss = 0.002 * (num_present - self.real.least(z_hat_BD, labels)) + 0.008 * self.gen.most(z_hat_BD, labels)
        self.real.push(z0_BD, labels)
        self.gen.push(z_hat_BD, labels)
        return loss / num_present

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()

    @torch.no_grad()
    def average(self) -> None:
        averaged = dict(self.average_model.named_parameters())
        for name, parameter in self.model.named_parameters():
            averaged[name].mul_(0.9999).add_(parameter.data, alpha=1 - 0.9999)
