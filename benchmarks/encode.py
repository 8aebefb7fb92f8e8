"""Pictures a second of the encode stage, against encoding batch after batch in the training process.

python -m benchmarks.encode [--images 24 --size 128 --threads 2] [--quick] [--json]

Both sides read the same generated JPEGs, 256 to 512 px a side, and run the same VAE with random weights: the layout of Stable
Diffusion's, on a CPU with a quarter of its channels. Ours is the whole stage, from loading the weights to the published file.
It encodes each image and its mirror image, so an image counts as two pictures; the baseline flips at random and encodes one
picture an image, as the public scripts do in every epoch. It decodes a batch, then encodes it, in one process.

On a CPU the VAE takes all threads, so nothing is gained by decoding meanwhile: there `vae_share` tells how much is lost.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from benchmarks.measure import Result, alternate, device_name, parser, timed
from ddgd_ray.spec.stages import EncodeSpec, ImagesSpec
from ddgd_ray.stages import encode
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder

Posterior = tuple[Tensor, Tensor]
CLASSES = ("a", "b", "c", "d")
WIDTHS = (128, 256, 512, 512)  # channels of the Stable Diffusion VAE
BATCH = 8  # of the public scripts


def main() -> None:
    args = _parse()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        sides = _Sides(args, Path(folder))
        rounds = 1 if args.quick else args.rounds
        seconds = alternate({"ours": sides.our_stage, "baseline": sides.public_epoch}, args.device, rounds=rounds)
        clock = sides.clocked_stage()
        mean_bytes = sum(path.stat().st_size for path in sides.paths) / len(sides.paths)
    pictures = {"ours": 2 * args.images, "baseline": args.images}
    ours, baseline = (pictures[side] / seconds[side] for side in ("ours", "baseline"))
    Result(
        ratio=ours / baseline,
        ours=ours,
        baseline=baseline,
        unit="pictures/s",
        device=device_name(args.device),
        parts={
            "seconds": seconds,
            **clock,
            "mean_jpeg_bytes": mean_bytes,
            "setting": {name: value for name, value in vars(args).items() if name not in ("json", "quick")},
        },
    ).print(args.json)


def _parse() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--images", type=int, help="default: 2048 on a GPU, 24 on a CPU, 16 with --quick")
    made.add_argument("--size", type=int, help="pixels a side; default: 256 on a GPU, 128 on a CPU, 64 with --quick")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the decoder and of PyTorch, each")
    made.add_argument("--narrow", type=int, help="divide the VAE's channels by this; default: 1 on a GPU, 4 on a CPU")
    made.add_argument("--chunk", type=int, help="pictures a pass of ours; default: 64 on a GPU, on a CPU 8 as the baseline")
    made.add_argument("--rounds", type=int, default=3)
    args = made.parse_args()
    is_gpu = args.device.startswith("cuda")
    args.images = args.images or (16 if args.quick else 2048 if is_gpu else 24)
    args.size = args.size or (64 if args.quick else 256 if is_gpu else 128)
    args.narrow = args.narrow or (1 if is_gpu else 4)
    args.chunk = args.chunk or (64 if is_gpu else BATCH)  # on a CPU 16 cost a quarter more each: caches
    return args


class _Sides:
    """The stage and the scripts' loop over the same files and weights."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.images, self.weights = folder / "images", folder / "vae"
        self.paths = _write_images(self.images, args.images)
        torch.manual_seed(0)
        _autoencoder(args.narrow).save_pretrained(self.weights)
        self.vae = Autoencoder.load(self.weights, args.device).kl
        self.spec = ImagesSpec(source="imagefolder", classes=CLASSES, size=args.size, root=str(self.images))
        self.ctx = Context(device=args.device, num_threads=args.threads, chunk=args.chunk)

    def our_stage(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            inputs = {"images": self.images, "autoencoder": self.weights}
            encode.run(EncodeSpec(images=self.spec), inputs, Path(out), self.ctx)

    @torch.no_grad()
    def public_epoch(self) -> None:
        assert self.vae is not None
        for start in range(0, len(self.paths), BATCH):
            images = torch.stack([_public_picture(path, self.args.size) for path in self.paths[start : start + BATCH]])
            self.vae.encode(images.to(self.args.device)).latent_dist.sample() * 0.18215

    def clocked_stage(self) -> dict[str, float]:
        """Seconds of the stage, and the share of it in which the VAE computes: on a GPU between two events of its stream."""
        clock = _VaeClock(self.args.device)
        with mock.patch.object(Autoencoder, "posterior", clock.wrap(Autoencoder.posterior)):
            stage = timed(self.our_stage, self.args.device)
        return {"clocked_s": stage, "vae_s": clock.seconds(), "vae_share": clock.seconds() / stage}


class _VaeClock:
    """Seconds the device computes inside a method; on a GPU between two events, so that nobody waits for it there."""

    def __init__(self, device: str) -> None:
        self.is_gpu = device.startswith("cuda")
        self.spans_s: list[Callable[[], float]] = []

    def wrap(self, method: Callable[..., Posterior]) -> Callable[..., Posterior]:
        def clocked(*args: Any) -> Posterior:
            before = self._now()
            result = method(*args)
            after = self._now()
            self.spans_s.append(lambda: before.elapsed_time(after) / 1000 if self.is_gpu else after - before)
            return result

        return clocked

    def seconds(self) -> float:
        """Of all calls; the device's queue must be empty."""
        return sum(span_s() for span_s in self.spans_s)

    def _now(self) -> Any:
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _write_images(root: Path, num_images: int) -> list[Path]:
    """The training images as an ImageFolder, each class with one more for its test split."""
    rng = np.random.default_rng(0)
    paths = [root / "train" / CLASSES[index % len(CLASSES)] / f"{index:05d}.JPEG" for index in range(num_images)]
    for path in [*paths, *(root / "val" / name / "0.JPEG" for name in CLASSES)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        _photo(rng).save(path, quality=92)
    return paths


def _photo(rng: np.random.Generator) -> Image.Image:
    """256 to 512 px a side; blots whose contrast falls with their size, as in photos, and the noise of a sensor."""
    width, height = (int(side) for side in rng.integers(256, 513, 2))
    pixels = rng.normal(128, 4, (height, width, 3))
    for blots in (2, 8, 32, 128):
        coarse = Image.fromarray(rng.integers(0, 256, (blots, blots, 3), dtype=np.uint8))
        pixels += (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) - 128) / blots**0.5
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _public_picture(path: Path, size: int) -> Tensor:
    """(3, S, S) in [-1, 1], as the scripts' dataset makes it: shorter side to `size`, centre crop, mirrored at random."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))
    picture = pixels.permute(2, 0, 1).float() / 127.5 - 1
    return picture.flip(2) if torch.rand(()) < 0.5 else picture


def _autoencoder(narrow: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=tuple(width // narrow for width in WIDTHS),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )


if __name__ == "__main__":
    main()
