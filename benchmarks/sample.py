"""Images a second of our sampling against one image at a time.

    python -m benchmarks.sample [--quick] [--json] [--device cpu] [--layers 6 --heads 6 --head-dim 64 --side 32]
    python -m benchmarks.sample --guide mode [--pool 5]

The baseline does what the public sampling scripts do: for each image a batch of two for guidance, 50 ancestral steps, noise
for both halves, decode the one image, save one PNG, then the next. Both sides use the same untrained DiT and decoder, float32
unless --bfloat16. On CUDA the default is DiT-XL/2 at 256 px with the SD decoder, on a CPU the size of the fashion preset: 8 x 8
latents, 32 px. Ours is the sample stage itself, loading of the model left out. Goals: 2 x on a CPU, 10 x on an H100.

With --guide the guided sampling stands beside our own unguided one: `times` is how many times as long it takes. Goal: 1.1 with
`mode`. --pool draws so many times as many images in the guided one's place; goal for 5: 5.2.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import save_image

from benchmarks import measure
from ddgd_ray.method.difffit import tie_embedders
from ddgd_ray.method.dit import dit_block
from ddgd_ray.method.noise import learned_log_variance, linear_schedule, posterior, respaced, x0_prediction
from ddgd_ray.method.sampling import guided
from ddgd_ray.spec.guide import GuideSpec
from ddgd_ray.spec.stages import ImagesSpec, SampleSpec
from ddgd_ray.stages import sample as stage
from ddgd_ray.stages.modes import FILE, Modes
from ddgd_ray.stages.parts.backbone import Autoencoder
from ddgd_ray.stages.parts.distilled import image_name
from ddgd_ray.stages.parts.png_folder import PngFolder, encoded
from ddgd_ray.stages.parts.steering import Steering

CLASSES = 10


def networks(args: argparse.Namespace) -> tuple[DiTTransformer2DModel, Autoencoder]:
    """Untrained; no weight is zero, so nothing is cheaper than in a trained one. The SD VAE's decoder has four levels."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=args.heads,
        attention_head_dim=args.head_dim,
        num_layers=args.layers,
        in_channels=4,
        out_channels=8,
        sample_size=args.side,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    tie_embedders(model)
    widths = tuple(args.decoder_width * factor for factor in (1, 2, 4, 4)[: args.decoder_levels])
    blocks = ("DownEncoderBlock2D",) * args.decoder_levels, ("UpDecoderBlock2D",) * args.decoder_levels
    kl = AutoencoderKL(3, 3, *blocks, block_out_channels=widths, layers_per_block=2, norm_num_groups=min(32, widths[0]))
    return model.to(args.device).eval().requires_grad_(False), Autoencoder(kl, args.device)


def write_modes(folder: Path, model: Any) -> None:
    """Modes of random latents, ten a class."""
    side = int(model.config["sample_size"])
    centres = torch.randn(CLASSES, 10, 4, side, side)
    tangents = torch.linalg.qr(torch.randn(CLASSES, 10, 4 * side**2, 3)).Q.transpose(2, 3).contiguous()
    rows = torch.zeros(CLASSES, 10, dtype=torch.int64)
    found = Modes(centres, centres.clone(), torch.full((CLASSES, 10), 0.1), rows, tangents)
    save_file(found._asdict(), folder / FILE)


class Ours(stage._Draw):
    """The stage's own drawing, with networks that are there already."""

    def __init__(self, spec: SampleSpec, model: Any, autoencoder: Autoencoder, device: str) -> None:
        self.spec, self.device, self.model, self.autoencoder = spec, device, model, autoencoder
        self.known, self.gain_CSR, self._block = list(range(len(spec.images.classes))), None, dit_block
        with tempfile.TemporaryDirectory() as folder:
            write_modes(Path(folder), model)
            self.steering = Steering(spec, {"modes": Path(folder)}, model, self.denoise, device)

    def write(self, folder: Path, num_images: int, chunk: int) -> None:
        items = [(number % CLASSES, number // CLASSES) for number in range(num_images)]
        with PngFolder(folder / "drawn") as pngs:
            for start in range(0, num_images, chunk):
                part = items[start : start + chunk]
                images = self.images(part).cpu().numpy()
                names = [image_name(self.spec.images, *item) for item in part]
                pngs.put(dict(zip(names, images, strict=True)))
            pngs.finish(folder)


@torch.no_grad()
def one_at_a_time(ours: Ours, folder: Path, num_images: int) -> None:
    short, kept = respaced(linear_schedule(), ours.spec.steps)
    side = int(ours.model.config["sample_size"])
    for number in range(num_images):
        labels = torch.full((1,), number % CLASSES, device=ours.device)
        z = torch.randn(1, 4, side, side, device=ours.device)
        for step in reversed(range(len(kept))):
            t = torch.full_like(labels, int(kept[step]))
            eps, v = guided(ours.denoise, z, t, labels, 1000, ours.spec.guidance, 3)
            at = torch.full_like(labels, step)
            mean, _ = posterior(short, x0_prediction(short, z, eps, at), z, at)
            noise = torch.randn(2, 4, side, side, device=ours.device)[:1]
            z = mean + (0.5 * learned_log_variance(short, v, at)).exp() * noise if step else mean
        pixels = ours.autoencoder.kl.decode(z / 0.18215, return_dict=False)[0]
        save_image(pixels, folder / f"{number}.png", normalize=True, value_range=(-1, 1))


def parts_of(ours: Ours, num_images: int, chunk: int) -> dict[str, float]:
    """Seconds of each part of our path, measured alone with the queue emptied after each; writing is one thread's work."""
    spent: dict[str, float] = defaultdict(float)

    def clocked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = []
            spent[name] += measure.timed(lambda: result.append(work(*args, **kwargs)), ours.device)
            return result[0]

        return run

    model, decode = ours.model, ours.autoencoder.decode
    ours.denoise = clocked("denoiser", ours.denoise)  # type: ignore[method-assign]
    ours.autoencoder.decode = clocked("decode", decode)  # type: ignore[method-assign]
    items = [(number % CLASSES, number // CLASSES) for number in range(num_images)]
    started = time.perf_counter()
    images = [ours.images(items[start : start + chunk]).cpu() for start in range(0, num_images, chunk)]
    spent["all but writing"] = time.perf_counter() - started
    del ours.denoise, ours.autoencoder.decode
    assert ours.model is model
    streams = [torch.Generator().manual_seed(number) for number in range(num_images)]
    draws, shape = range(ours.spec.steps), (4, *[int(ours.model.config["sample_size"])] * 2)
    spent["noise"] = measure.timed(lambda: [torch.randn(shape, generator=s) for s in streams for _ in draws], "cpu")
    arrays: list[Tensor] = [image for batch in images for image in batch]
    spent["write"] = measure.timed(lambda: [encoded(image.numpy()) for image in arrays], "cpu")
    return {name: round(seconds / num_images, 5) for name, seconds in spent.items()}


def beside_unguided(args: argparse.Namespace, spec: SampleSpec, made_of: tuple[Any, Autoencoder], in_folder: Any) -> None:
    """The guided sampling, or that of a pool, against the plain one of the set alone."""
    guided_spec = SampleSpec.model_validate({**spec.model_dump(), "images": spec.images, "guide": args.guide})
    plain, other = (Ours(one, *made_of, args.device) for one in (spec, guided_spec))
    works = {
        "ours": in_folder(lambda folder: other.write(folder, args.pool * args.images, args.chunk)),
        "baseline": in_folder(lambda folder: plain.write(folder, args.images, args.chunk)),
    }
    seconds = measure.alternate(works, args.device, rounds=1 if args.quick else 3, warmup=1 if args.device != "cpu" else 0)
    rates = {name: args.images / spent for name, spent in seconds.items()}
    parts: dict[str, Any] = {"times": round(seconds["ours"] / seconds["baseline"], 3), "guide": args.guide, "pool": args.pool}
    name = measure.device_name(args.device)
    ratio = rates["ours"] / rates["baseline"]
    measure.Result(ratio, rates["ours"], rates["baseline"], "images/s", f"{name}, {spec.dtype}", parts).print(args.json)


def main() -> None:
    made = measure.parser(__doc__)
    size = {"layers": (28, 4), "heads": (16, 3), "head-dim": (72, 32), "side": (32, 8), "decoder-width": (128, 16)}
    size |= {"decoder-levels": (4, 3), "images": (256, 64), "chunk": (64, 64), "baseline-images": (4, 8)}
    for name in size:
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--bfloat16", action="store_true")
    made.add_argument("--guide", choices=tuple(GuideSpec.constants), default="none")
    made.add_argument("--pool", type=int, default=1)
    args = made.parse_args()
    for name, (on_cuda, on_cpu) in size.items():
        field = name.replace("-", "_")
        if getattr(args, field) is None:
            setattr(args, field, on_cuda if args.device.startswith("cuda") else on_cpu)
    if args.quick:
        args.images, args.baseline_images, args.layers = 8, 2, 1
    classes = tuple(f"c{number}" for number in range(CLASSES))
    spec = SampleSpec(
        images=ImagesSpec(source="imagefolder", classes=classes, size=args.side * 2 ** (args.decoder_levels - 1)),
        steps=4 if args.quick else 50,
        dtype="bfloat16" if args.bfloat16 else "float32",
    )
    made_of = networks(args)
    ours = Ours(spec, *made_of, args.device)

    def in_folder(work: Callable[[Path], None]) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                work(Path(folder))

        return run

    if args.guide != "none" or args.pool > 1:
        beside_unguided(args, spec, made_of, in_folder)
        return
    works = {
        "ours": in_folder(lambda folder: ours.write(folder, args.images, args.chunk)),
        "baseline": in_folder(lambda folder: one_at_a_time(ours, folder, args.baseline_images)),
    }
    seconds = measure.alternate(works, args.device, rounds=1 if args.quick else 3, warmup=1 if args.device != "cpu" else 0)
    rates = {"ours": args.images / seconds["ours"], "baseline": args.baseline_images / seconds["baseline"]}
    parts: dict[str, Any] = {"seconds_an_image": parts_of(ours, args.images, args.chunk)}
    parts |= {field: getattr(args, field) for field in ("layers", "heads", "head_dim", "side", "images", "chunk")}
    name = measure.device_name(args.device)
    ratio = rates["ours"] / rates["baseline"]
    measure.Result(ratio, rates["ours"], rates["baseline"], "images/s", f"{name}, {spec.dtype}", parts).print(args.json)


if __name__ == "__main__":
    main()
