"""The distilled set, drawn from the fine-tuned model.

Shapes: B images of a batch, c latent channels, s side of the latent, S side in pixels, C image channels.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ddgd_ray.errors import Stopped
from ddgd_ray.method.dit import denoise, dit_block
from ddgd_ray.method.sampling import noise_stream, sample
from ddgd_ray.spec.stages import SampleSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.adapters import load_finetuned
from ddgd_ray.stages.parts.backbone import Autoencoder
from ddgd_ray.stages.parts.checkpoint import StopOrders
from ddgd_ray.stages.parts.device import PIXELS, compiled, rows_within
from ddgd_ray.stages.parts.distilled import describe, image_name
from ddgd_ray.stages.parts.images import generator_labels
from ddgd_ray.stages.parts.png_folder import PngFolder
from ddgd_ray.stages.parts.precision import arithmetic, float32_products
from ddgd_ray.stages.parts.solver import sampler_of
from ddgd_ray.stages.parts.steering import Item, Steering
from ddgd_ray.stages.spectrum import read_gain

# Matrix products of fewer rows take other kernels, which round otherwise: batches are filled up to a multiple of this, so
# that on a CPU an image's bits are the same in a batch of any size. cuBLAS promises that for equal shapes alone.
FULL_ROWS = 8


def run(spec: SampleSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The number of images. Writes spec.ipc images a class; an image depends on (seed, class, index) alone, not on its batch.

    Rank 0 writes; images that rank 0 has written stay in ctx.keep over a crash and are not drawn again.
    """
    torch.set_num_threads(ctx.num_threads)
    wanted = [(label, index) for label in range(len(spec.images.classes)) for index in range(spec.ipc)]
    kept = (ctx.keep or out) / "drawn"
    with PngFolder(kept) if ctx.rank == 0 else nullcontext() as pngs:
        _draw_missing(spec, inputs, ctx, wanted, pngs)
        if pngs:
            origins = {item: f"seed {spec.seed}, class {spec.images.classes[item[0]]}, index {item[1]}" for item in wanted}
            describe(out, spec.images, origins, pngs.finish(out))
    if kept.is_relative_to(out) and ctx.rank == 0:
        shutil.rmtree(kept)
    return {"num_images": float(len(wanted))}


def _draw_missing(spec: SampleSpec, inputs: dict[str, Path], ctx: Context, wanted: list[Item], pngs: PngFolder | None) -> None:
    """Draws the images that rank 0 has not got yet, rank r every num_ranks-th of them; rank 0 puts all of them into `pngs`."""
    done = pngs.sha256 if pngs else {}
    missing = _agreed([item for item in wanted if image_name(spec.images, *item) not in done], wanted, ctx)
    draw = _Draw(spec, inputs, ctx) if missing else None
    shares = [missing[rank :: ctx.num_ranks] for rank in range(ctx.num_ranks)]
    orders = StopOrders(ctx)
    for start in range(0, len(shares[0]), ctx.chunk):
        assert draw is not None
        parts = [share[start : start + ctx.chunk] for share in shares]
        images = _gathered(draw.images(parts[ctx.rank]), [len(part) for part in parts], ctx)
        if pngs:
            names = [image_name(spec.images, *item) for part in parts for item in part]
            pngs.put(dict(zip(names, images.numpy(), strict=True)))
        num_images = len(wanted) - len(missing) + sum(min(start + ctx.chunk, len(share)) for share in shares)
        ctx.report(num_images, {"num_images": num_images})
        if ctx.num_ranks > 1 and num_images < len(wanted) and orders.has_come(num_images):
            raise Stopped(f"told to stop after {num_images} of {len(wanted)} images", where="sample")


class _Draw:
    """The model, the decoder and the settings that turn items into images."""

    def __init__(self, spec: SampleSpec, inputs: dict[str, Path], ctx: Context) -> None:
        self.spec, self.device = spec, ctx.device
        self.model = load_finetuned(inputs["backbone"], inputs["adapter"], weights=spec.weights).to(ctx.device)
        self.autoencoder = Autoencoder.load(inputs["autoencoder"], ctx.device)
        self.known = generator_labels(spec.images)
        self._block = compiled(dit_block, ctx)
        self.steering = Steering(spec, inputs, self.model, self.denoise, ctx.device)
        self.gain_CSR = read_gain(inputs["spectrum"]).to(ctx.device) if "spectrum" in inputs else None

    def denoise(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with arithmetic(self.spec.dtype, self.device):
            return denoise(self.model, z_t, t, labels, block=self._block).float()

    def images(self, items: list[Item]) -> Tensor:
        """The images of `items`, (B, S, S, C) uint8 on the device."""
        size, channels = self.spec.images.size, self.spec.images.channels
        if not items:
            return torch.empty(0, size, size, channels, dtype=torch.uint8, device=self.device)
        size_of_group = self.steering.group
        drawn = whole_groups(items, size_of_group)
        num_groups = FULL_ROWS // math.gcd(FULL_ROWS, size_of_group)  # so many are filled up to
        latents = self._latents(drawn + drawn[-size_of_group:] * (-(len(drawn) // size_of_group) % num_groups))
        place = {item: row for row, item in enumerate(drawn)}
        rows = [place[item] for item in items]
        latents = latents[rows + rows[-1:] * (-len(rows) % FULL_ROWS)]
        with float32_products("float32" if self.spec.dtype == "float32" else "tf32"):
            decoded = [
                self.autoencoder.decode(part, self.gain_CSR) for part in latents.split(rows_within(PIXELS, size, most=32))
            ]
        return torch.cat(decoded)[: len(items)]

    def _latents(self, items: list[Item]) -> Tensor:
        spec, config = self.spec, self.model.config
        side = int(config["sample_size"])
        return sample(
            self.denoise,
            sampler_of(spec.sampler, spec.steps),
            torch.tensor([self.known[label] for label, _ in items], device=self.device),
            [noise_stream(spec.seed, spec.images.classes[label], index) for label, index in items],
            latent_shape=(int(config["in_channels"]), side, side),
            guidance=spec.guidance,
            cfg_channels=spec.cfg_channels,
            null_label=int(config["num_embeds_ada_norm"]),
            guide=self.steering.guide(items),
            begin=self.steering.begin(items),
            first=self.steering.first,
        )


def whole_groups(items: Sequence[Item], size: int) -> list[Item]:
    """The items, and those that belong to their groups of `size` indices of a class; in order of first mention."""
    if size == 1:
        return list(items)
    groups = dict.fromkeys((label, index // size) for label, index in items)
    return [(label, group * size + place) for label, group in groups for place in range(size)]


def _agreed(missing: list[Item], wanted: list[Item], ctx: Context) -> list[Item]:
    """The items that rank 0 misses, on all ranks: rank 0 alone knows which kept images are sound."""
    if ctx.num_ranks == 1:
        return missing
    lacking = set(missing)
    is_missing = torch.tensor([item in lacking for item in wanted], dtype=torch.uint8, device=ctx.device)
    dist.broadcast(is_missing, src=0)
    return [item for item, flag in zip(wanted, is_missing.tolist(), strict=True) if flag]


def _gathered(images: Tensor, counts: list[int], ctx: Context) -> Tensor:
    """All ranks' images in rank order, on the host of rank 0; other ranks get their own. counts: images of each rank."""
    if ctx.num_ranks == 1:
        return images.cpu()
    padded = images.new_zeros(max(counts), *images.shape[1:])
    padded[: len(images)] = images
    parts = [torch.empty_like(padded) for _ in counts] if ctx.rank == 0 else None
    dist.gather(padded, parts, dst=0)
    if parts is None:
        return images.cpu()
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).cpu()
