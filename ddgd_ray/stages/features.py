"""Images as vectors: their latents, or the last features of a network that was trained on the real images.

Shapes: N images, B batch, F features, C channels, S side in pixels.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddgd_ray.errors import StageError
from ddgd_ray.method.augment import normalize
from ddgd_ray.method.classifiers import features
from ddgd_ray.method.metrics import neighbours
from ddgd_ray.spec.evaluation import FeaturesSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder, to_unit_range
from ddgd_ray.stages.parts.classifier import load_network
from ddgd_ray.stages.parts.distilled import read_set
from ddgd_ray.stages.parts.images import Uint8, list_splits, stream, within_limit

AHEAD = 2  # batches decoded before they are asked for, where it is another device that computes
BATCH = 64  # a pass's images; not ctx.chunk: the last digits of a feature depend on it
NUM_NEIGHBOURS = 10  # the most that a quality may ask for


def run(spec: FeaturesSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The numbers of images and of features.

    Writes features.npy (N, F) float32, labels.npy (N,) int64 and rows.npy (N,) int64, an image's place in its set or among the
    training images. Inputs: `model`, an autoencoder, a classifier that was kept or a TorchScript file; and `set`, or `images`
    for the training images. Training images also get neighbours.npy (N, K) and nearest.npy (N,), which all sets are compared
    with: each image's nearest ones among the others.
    """
    torch.set_num_threads(ctx.num_threads)
    embed = _embed(spec, inputs["model"], ctx)
    parts, labels, rows = [], [], []
    for images, label, row in _batches(spec, inputs, ctx):
        parts.append(embed(torch.from_numpy(images).to(ctx.device)).float().cpu().numpy())
        labels.append(label)
        rows.append(row)
        ctx.report(sum(map(len, labels)), {"images": float(sum(map(len, labels)))})
    np.save(out / "features.npy", np.concatenate(parts))
    np.save(out / "labels.npy", np.concatenate(labels))
    np.save(out / "rows.npy", np.concatenate(rows))
    if "set" not in inputs:
        table = torch.from_numpy(np.concatenate(parts)).to(ctx.device)
        found = neighbours(table, min(NUM_NEIGHBOURS, len(table) - 1))
        np.save(out / "neighbours.npy", found.square_NK.cpu().numpy())
        np.save(out / "nearest.npy", found.nearest_N.cpu().numpy())
    return {"num_images": float(sum(map(len, labels))), "num_features": float(parts[0].shape[1])}


def _embed(spec: FeaturesSpec, folder: Path, ctx: Context) -> Callable[[Tensor], Tensor]:
    """A function from images (B, S, S, C) uint8 to features (B, F)."""
    if spec.space == "latents":
        autoencoder = Autoencoder.load(folder, ctx.device)

        def latents(images: Tensor) -> Tensor:
            mean, _ = autoencoder.posterior(to_unit_range(images))
            return mean.flatten(1)

        return torch.inference_mode()(latents)
    if spec.space == "inception":
        return torch.inference_mode()(_scripted(folder, ctx.device))
    network = load_network(folder, "last", ctx.device)
    return torch.inference_mode()(lambda images: features(network, normalize(images.permute(0, 3, 1, 2).float() / 255)))


def _scripted(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    """A TorchScript network that takes (B, 3, S, S) uint8; StyleGAN's Inception gives its features when asked to."""
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as err:
        what = f"expected a TorchScript file: {str(err).splitlines()[0]}"
        raise StageError(what, code="weights-damaged", where=str(path), fix="give another reference.inception") from err
    options = {"return_features": True} if "return_features" in str(network.forward.schema) else {}

    def features_of(images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2)
        found: Tensor = network(pixels.expand(-1, 3, -1, -1).contiguous(), **options)
        return found.flatten(1)

    return features_of


def _batches(
    spec: FeaturesSpec, inputs: dict[str, Path], ctx: Context
) -> Iterator[tuple[Uint8, np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    if "set" in inputs:
        split = read_set(inputs["set"], spec.images, spec.ipc, size=spec.size, num_threads=ctx.num_threads)
        for start in range(0, len(split), BATCH):
            part = np.arange(start, min(start + BATCH, len(split)))
            yield split.images[part], split.labels[part], part
        return
    (listing,) = list_splits(spec.images, inputs["images"], "train")
    if spec.space == "network":
        listing = listing.for_classifier(spec.size, spec.size)
    blocks = [np.arange(start, min(start + BATCH, len(listing))) for start in range(0, len(listing), BATCH)]
    fitted = spec.images.model_copy(update={"size": spec.size})
    found = stream(fitted, listing, blocks, num_threads=ctx.num_threads, ahead=AHEAD if ctx.device != "cpu" else 0)
    for batch in within_limit(spec.images, inputs["images"], found, [], len(listing)):
        yield batch.images, listing.labels[batch.rows], batch.rows
