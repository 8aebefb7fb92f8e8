"""Latents from the cache, the same for one worker and for many.

Shapes: B global batch, c latent channels, s side of the latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddgd_ray.errors import ArtifactError, StageError


@dataclass(frozen=True)
class LatentBatch:
    """Latents of a step. z0: (B, c, s, s) float32 posterior samples. labels: (B,) int64. ids: (B,) rows of the cache."""

    z0: Tensor
    labels: Tensor
    ids: Tensor


class LatentCache:
    """Memory-mapped posteriors (N, 2, 2c, s, s) float16 in one file or several shards. labels: (N,) int64."""

    def __init__(self, folder: Path) -> None:
        """Raises ArtifactError that names the file which is missing, truncated or of another shape than the rest."""
        self.labels = torch.from_numpy(_mapped(folder / "labels.npy", np.int64, 1))
        paths = sorted(folder.glob("posterior-*.npy")) or [folder / "posterior.npy"]  # one file: from before there were shards
        self._shards = [_mapped(path, np.float16, 5) for path in paths]
        for path, shard in zip(paths, self._shards, strict=True):
            if shard.shape[1] != 2 or shard.shape[1:] != self._shards[0].shape[1:]:
                raise _damaged(path, f"has shape {shard.shape}, the first file has {self._shards[0].shape}")
        self._starts = np.cumsum([0, *map(len, self._shards)])
        if self._starts[-1] != len(self.labels):
            what = f"{len(paths)} posterior files hold {self._starts[-1]} images, labels.npy has {len(self.labels)}"
            raise _damaged(folder, what)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        _, _, doubled, side, _ = self._shards[0].shape
        return doubled // 2, side, side

    def draw(self, ids: Tensor, generator: torch.Generator) -> LatentBatch:
        """A fresh posterior sample of each image in `ids` (B,), randomly mirrored; `generator` is on the CPU."""
        mirrored = torch.randint(2, (len(ids),), generator=generator)
        packed = torch.from_numpy(self._rows(ids.numpy(), mirrored.numpy())).float()
        mean, log_variance = packed.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        return LatentBatch(mean + (0.5 * log_variance).exp() * noise, self.labels[ids], ids)

    def means(self, ids: Tensor) -> Tensor:
        """Posterior means (B, c, s, s) float32 of the images themselves, not of their mirrors."""
        packed = torch.from_numpy(self._rows(ids.numpy(), np.zeros(len(ids), np.int64))).float()
        return packed.chunk(2, dim=1)[0]

    def _rows(self, ids: NDArray[np.int64], mirrored: NDArray[np.int64]) -> NDArray[np.float16]:
        """The cache's rows (B, 2c, s, s), from whatever shard holds each."""
        rows = np.empty((len(ids), *self._shards[0].shape[2:]), np.float16)
        shard_of = np.searchsorted(self._starts, ids, side="right") - 1
        for index in np.unique(shard_of):
            here = shard_of == index
            rows[here] = self._shards[index][ids[here] - self._starts[index], mirrored[here]]
        return rows


def _mapped(path: Path, dtype: type[np.generic], num_dims: int) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if num_dims > 1 else None)
    except FileNotFoundError as err:
        raise _damaged(path, "is missing") from err
    except (OSError, ValueError, EOFError) as err:  # numpy: "mmap length is greater than file size"
        raise _damaged(path, f"is truncated or no array: {err}") from err
    if array.dtype != dtype or array.ndim != num_dims:
        raise _damaged(path, f"holds {array.dtype} {array.shape}, expected {np.dtype(dtype)} of {num_dims} dimensions")
    return array


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(what, where=str(path), fix="delete the folder of this latent cache: it is made again")


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
