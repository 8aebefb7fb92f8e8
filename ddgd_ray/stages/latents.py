"""Batches from the latent cache, the same for one worker and for many.

Shapes: B global batch, c latent channels, s side of the latent.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddgd_ray.errors import StageError


@dataclass(frozen=True)
class LatentBatch:
    """z0: (B, c, s, s) float32 posterior samples. labels: (B,) int64. ids: (B,) rows of the cache."""

    z0: Tensor
    labels: Tensor
    ids: Tensor


class LatentCache:
    """posterior: (N, 2, 2c, s, s) float16, memory-mapped. labels: (N,) int64."""

    def __init__(self, folder: Path) -> None:
        self.posterior = np.load(folder / "posterior.npy", mmap_mode="r")
        self.labels = torch.from_numpy(np.load(folder / "labels.npy"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        _, _, doubled, side, _ = self.posterior.shape
        return doubled // 2, side, side

    def draw(self, ids: Tensor, generator: torch.Generator) -> LatentBatch:
        """Random mirror and a fresh posterior sample of each image in `ids` (B,), from `generator` on the CPU."""
        mirrored = torch.randint(2, (len(ids),), generator=generator)
        packed = torch.from_numpy(self.posterior[ids.numpy(), mirrored.numpy()]).float()
        mean, log_variance = packed.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        return LatentBatch(mean + (0.5 * log_variance).exp() * noise, self.labels[ids], ids)


class EpochSampler:
    """Row numbers in a fresh random order each epoch; the rows that do not fill a last batch are dropped."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        if batch_size > num_rows:
            raise StageError(
                f"batch_size {batch_size} is larger than the {num_rows} training images: an epoch would have no step",
                fix="lower the batch size",
            )
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """Rows of step `step`, a function of (seed, step) alone, so that a resumed run continues exactly."""
        epoch, place = divmod(step, self.num_rows // self.batch_size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.num_rows, generator=generator)
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]
