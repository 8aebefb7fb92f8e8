"""What the decoder damps of each spatial frequency, as a gain that puts it back.

Shapes: N images, B batch, C channels, S side in pixels, R = S // 2 + 1.
"""

from pathlib import Path

import numpy as np
import torch

from ddgd_ray.method.spectrum import gain_of, mean_amplitudes
from ddgd_ray.spec.ways import SpectrumSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder, to_unit_range
from ddgd_ray.stages.parts.images import list_splits, stream, within_limit

FILE = "gain.npy"
BATCH = 64  # not ctx.chunk: sums of floats depend on it


@torch.inference_mode()
def run(spec: SpectrumSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes gain.npy, (C, S, R) float64: amplitudes of training images over those of their reconstructions.

    greatest: the greatest gain, at most spec.most. The first images of each class are taken, as listed.
    """
    torch.set_num_threads(ctx.num_threads)
    autoencoder = Autoencoder.load(inputs["autoencoder"], ctx.device)
    (train,) = list_splits(spec.images, inputs["images"], "train")
    rows = np.concatenate(
        [np.flatnonzero(train.labels == label)[: spec.per_class] for label in range(len(spec.images.classes))]
    )
    blocks = np.split(rows, range(BATCH, len(rows), BATCH))
    batches = stream(spec.images, train, blocks, num_threads=ctx.num_threads, ahead=0)
    real, decoded, num = torch.zeros(()), torch.zeros(()), 0
    for batch in within_limit(spec.images, inputs["images"], batches, [], len(rows)):
        images = to_unit_range(torch.from_numpy(batch.images).to(ctx.device))
        back = autoencoder.decode_raw(autoencoder.posterior(images)[0])
        real = real + len(images) * mean_amplitudes(images).cpu()
        decoded = decoded + len(images) * mean_amplitudes(back).cpu()
        num += len(images)
        ctx.report(num, {"images": float(num)})
    gain = gain_of(real / num, decoded / num, most=spec.most)
    np.save(out / FILE, gain.numpy())
    return {"num_images": float(num), "greatest": float(gain.max()), "least": float(gain.min())}


def read_gain(folder: Path) -> torch.Tensor:
    """What `run` wrote."""
    return torch.from_numpy(np.load(folder / FILE))
