"""The latent cache: each training image is encoded once, not once a step.

Shapes: N images, n images of a shard, B batch, 2 image and mirror image, 2c posterior mean then log-variance, s latent side.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ddgd_ray.spec.stages import EncodeSpec, ImagesSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder, to_unit_range
from ddgd_ray.stages.parts.device import PIXELS, rows_within
from ddgd_ray.stages.parts.images import (
    ImageBatch,
    Skipped,
    check_classes,
    check_skipped,
    generator_labels,
    list_splits,
    record_skipped,
    stream,
    within_limit,
)
from ddgd_ray.stages.parts.readers import Listing
from ddgd_ray.stages.parts.shards import Float16, Shard, is_kept, plan_shards, publish_shards, read_skipped, save_shard

AHEAD = 2  # batches decoded before they are asked for, where it is another device that computes


def run(spec: EncodeSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The number of images and the cache's bytes.

    Writes posterior-00000.npy and so on, (n, 2, 2c, s, s) float16, and labels.npy (N,) int64, the generator's labels.
    Finished shards stay in ctx.keep: a restart goes on with those that are missing or damaged. With several ranks each makes
    every num_ranks-th shard, and rank 0 gathers the shards: the metrics of rank 0 count.
    """
    folder = ctx.keep or out / "making"
    folder.mkdir(exist_ok=True)
    shares = Shares(spec, inputs, folder, ctx)
    shares.make(range(ctx.rank, len(shares), ctx.num_ranks))
    if ctx.num_ranks > 1:
        torch.distributed.barrier()
        if ctx.rank:
            return {}
    metrics = _gather(spec.images, inputs["images"], shares.listing, shares.shards, folder, out)
    if ctx.keep is None:
        shutil.rmtree(folder)
    return metrics


class Shares:
    """The stage's work in parts that may be made anywhere, in any order: one shard each, kept in `folder` for `run`."""

    def __init__(self, spec: EncodeSpec, inputs: dict[str, Path], folder: Path, ctx: Context) -> None:
        torch.set_num_threads(ctx.num_threads)
        self.images, self.root, self.folder, self.ctx = spec.images, inputs["images"], folder, ctx
        (self.listing,) = list_splits(spec.images, self.root, "train")
        self.autoencoder = Autoencoder.load(inputs["autoencoder"], ctx.device)
        self.shards = plan_shards(len(self.listing), _latent_shape(self.autoencoder, spec.images))

    def __len__(self) -> int:
        return len(self.shards)

    def make(self, places: Sequence[int]) -> None:
        """Makes the shards at these places that are not kept already; who makes a shard does not change its bytes."""
        shards = [self.shards[place] for place in places]
        _make(self.images, self.root, self.listing, self.autoencoder, shards, self.folder, self.ctx)


def _latent_shape(autoencoder: Autoencoder, spec: ImagesSpec) -> tuple[int, int, int]:
    """The shape (2c, s, s) of a posterior, found by encoding one black image."""
    black = torch.zeros(1, spec.channels, spec.size, spec.size, device=autoencoder.device)
    _, channels, height, width = autoencoder.posterior(black)[0].shape
    return 2 * channels, height, width


def _make(
    spec: ImagesSpec, root: Path, listing: Listing, autoencoder: Autoencoder, shards: list[Shard], folder: Path, ctx: Context
) -> None:
    """Makes those of `shards` that are not kept already; each is written and hashed while the next one is computed."""
    missing = [shard for shard in shards if not is_kept(folder, shard)]
    kept = [shard for shard in shards if shard not in missing]
    for shard in kept:
        _report(shard, ctx)
    num_images = max(1, rows_within(PIXELS, spec.size, most=ctx.chunk) // 2)  # a forward pass takes the mirror images too
    blocks = [rows for shard in missing for rows in shard.blocks(num_images)]
    batches = stream(spec, listing, blocks, num_threads=ctx.num_threads, ahead=0 if ctx.device == "cpu" else AHEAD)
    known = [one for shard in kept for one in read_skipped(folder, shard)]
    encoded = _encoded(autoencoder, within_limit(spec, root, batches, known, len(listing)))
    saving: tuple[Shard, Future[None]] | None = None
    with ThreadPoolExecutor(1, "save") as saver:
        for shard in missing:
            posterior, skipped = _filled(shard, encoded, len(shard.blocks(num_images)))
            if saving is not None:
                _settle(*saving, ctx)
            saving = (shard, saver.submit(save_shard, folder, shard, posterior, skipped))
        if saving is not None:
            _settle(*saving, ctx)


def _settle(shard: Shard, saved: Future[None], ctx: Context) -> None:
    saved.result()
    _report(shard, ctx)


def _report(shard: Shard, ctx: Context) -> None:
    ctx.report(shard.index, {"num_images": shard.stop})


def _filled(shard: Shard, encoded: Iterator[tuple[ImageBatch, Float16]], num_batches: int) -> tuple[Float16, list[Skipped]]:
    """The shard's posterior (n, 2, 2c, s, s) from the next num_batches, and what was skipped in them."""
    posterior, filled, skipped = np.empty(shard.shape, np.float16), 0, list[Skipped]()
    for _ in range(num_batches):
        batch, packed = next(encoded)
        posterior[filled : filled + len(packed)] = packed
        filled += len(packed)
        skipped += batch.skipped
    return posterior[:filled], skipped


def _encoded(autoencoder: Autoencoder, batches: Iterator[ImageBatch]) -> Iterator[tuple[ImageBatch, Float16]]:
    """Each batch with its posterior (B, 2, 2c, s, s); one batch late, so that a GPU has the next while we copy."""
    last: tuple[ImageBatch, Callable[[], Float16]] | None = None
    for batch in batches:
        started = _start(autoencoder, batch)
        if last is not None:
            yield last[0], last[1]()
        last = (batch, started)
    if last is not None:
        yield last[0], last[1]()


def _start(autoencoder: Autoencoder, batch: ImageBatch) -> Callable[[], Float16]:
    """A function that waits for the device and returns the batch's posterior (B, 2, 2c, s, s); the work starts here."""
    pixels = torch.from_numpy(batch.images)
    is_cuda = autoencoder.device.startswith("cuda")
    if is_cuda:
        pixels = pixels.pin_memory().to(autoencoder.device, non_blocking=True)
    images = to_unit_range(pixels)
    both = torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)  # a mirrored latent is not the mirror's latent
    packed = torch.cat(autoencoder.posterior(both), dim=1).unflatten(0, (-1, 2)).to(torch.float16)
    if not is_cuda:
        return packed.numpy
    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True).copy_(packed, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> Float16:
        done.synchronize()
        return host.numpy()

    return wait


def _gather(spec: ImagesSpec, root: Path, listing: Listing, shards: list[Shard], folder: Path, out: Path) -> dict[str, float]:
    """The metrics of the whole cache, which is put into `out` from all ranks' shards."""
    skipped = [one for shard in shards for one in read_skipped(folder, shard)]
    check_skipped(spec, root, skipped, len(listing))  # each rank knew of its own only
    labels = np.delete(listing.labels, [one.row for one in skipped])
    check_classes(spec, root, "train", listing.labels, labels)
    publish_shards(shards, folder, out)
    np.save(out / "labels.npy", np.array(generator_labels(spec))[labels])
    num_bytes = len(labels) * 2 * math.prod(shards[0].latent) * np.dtype(np.float16).itemsize
    return {"num_images": float(len(labels)), "cache_bytes": float(num_bytes)} | record_skipped(out, spec, skipped)
