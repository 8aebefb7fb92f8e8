"""Samples a second of a fine-tuning step, against what the public scripts do.

python -m benchmarks.finetune_step [--model XL/2 --size 256 --batch 8] [--quick] [--json]

Both sides hold their input in RAM (images there, the latent cache here): reading and decoding JPEGs is on neither clock.
Weights are random; memories are full; the learning rate is too small to matter.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Result, alternate, device_name, parser, timed
from benchmarks.public_scripts import PublicStep
from ddgd_ray.inputs.processor import emulates_bfloat16
from ddgd_ray.method.difffit import freeze_all_but, tie_embedders, trainable_state
from ddgd_ray.method.dit import denoise
from ddgd_ray.spec.stages import FinetuneSpec, MemorySpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.finetune import Tuning
from ddgd_ray.stages.parts.backbone import load_dit, save_dit
from ddgd_ray.stages.parts.latents import LatentCache

SIZES = {"S/2": (12, 6, 64), "B/2": (12, 12, 64), "L/2": (24, 16, 64), "XL/2": (28, 16, 72)}  # layers, heads, width of a head
NUM_CLASSES = 10
PARTS = ("encode", "draw", "forward", "losses", "memory", "backward", "optimizer", "average")


def main() -> None:
    args = _parse()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        sides = _Sides(args, Path(folder))
        rounds = 3 if args.quick else args.rounds
        works = {"ours": sides.our_step, "baseline": sides.public_step, "baseline_without_vae": sides.public_step_without_vae}
        seconds = alternate(works, args.device, rounds=rounds, warmup=3)
        parts = {"ours": sides.our_parts(rounds), "baseline": sides.public_parts(rounds)}
    extra = {
        "seconds": seconds,
        "without_vae": seconds["baseline_without_vae"] / seconds["ours"],
        "memory_share": parts["ours"]["memory"] / seconds["ours"],
        "model_over_matmul_bound": sides.over_matmul_bound(parts["ours"]),
        "peak_bytes": {side: _peak_bytes(side, args) for side in ("ours", "baseline")},
        "setting": {name: value for name, value in vars(args).items() if name not in ("json", "quick")},
    }
    Result(
        ratio=seconds["baseline"] / seconds["ours"],
        ours=args.batch / seconds["ours"],
        baseline=args.batch / seconds["baseline"],
        unit="samples/s",
        device=device_name(args.device),
        parts={**parts, **extra},
    ).print(args.json)


def _parse() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--model", choices=SIZES, help="default: XL/2 on a GPU, S/2 on a CPU")
    made.add_argument("--size", type=int, help="pixels a side; default: 256 on a GPU, 64 on a CPU")
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--memory", type=int, default=64, help="latents a class")
    made.add_argument("--pop", default="max_similarity", choices=("max_similarity", "min_similarity", "fifo"))
    made.add_argument(
        "--dtype", choices=("float32", "tf32", "bfloat16"), help="of ours; default: bfloat16 where it is in hardware"
    )
    made.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = made.parse_args()
    is_gpu = args.device.startswith("cuda")
    args.dtype = args.dtype or ("float32" if not is_gpu and emulates_bfloat16() else "bfloat16")
    args.model = args.model or ("XL/2" if is_gpu else "S/2")
    args.size = args.size or (256 if is_gpu else 64)
    args.compile = is_gpu if args.compile is None else args.compile
    return args


class _Sides:
    """Both steps over the same random model, classes and memories."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.step_number = 0
        torch.manual_seed(0)
        layers, heads, width = SIZES[args.model]
        self.side = args.size // 8
        model = DiTTransformer2DModel(
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=width,
            in_channels=4,
            out_channels=8,
            sample_size=self.side,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
        for block in model.transformer_blocks:
            block.norm1.emb = model.transformer_blocks[0].norm1.emb
        tie_embedders(model)
        save_dit(model, folder)
        _random_cache(folder, self.side)
        self.tuning = self._ours(folder)
        self.public = self._baseline(folder)
        self.images = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
        self.labels = torch.arange(args.batch) % NUM_CLASSES
        self.latents = torch.randn(args.batch, 4, self.side, self.side, device=args.device)

    def _ours(self, folder: Path) -> Tuning:
        args = self.args
        memory = MemorySpec(pop=args.pop, size=args.memory)
        spec = FinetuneSpec(
            batch_size=args.batch, learning_rate=1e-6, dtype=args.dtype, memory_real=memory, memory_gen=memory, ema_warmup=True
        )
        ctx = Context(device=args.device, num_threads=args.threads, compiled=args.compile)
        tuning = Tuning(spec, LatentCache(folder), folder, ctx)
        for memory_of in (tuning.losses.real, tuning.losses.gen):
            for labels in torch.arange(NUM_CLASSES).repeat(args.memory).split(args.batch):
                rows = torch.randn(len(labels), 4 * self.side**2, device=args.device)
                memory_of.push(rows, labels)
        return tuning

    def _baseline(self, folder: Path) -> PublicStep:
        args = self.args
        if args.device.startswith("cuda"):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        model = load_dit(folder).to(args.device)
        freeze_all_but(model, "difffit")
        vae = _sd_autoencoder().to(args.device).eval().requires_grad_(False)
        rows_ND = torch.randn(args.memory, 4 * self.side**2, device=args.device)
        trainable = list(trainable_state(model).values())
        return PublicStep(model, trainable, vae, rows_ND=rows_ND, num_classes=NUM_CLASSES, pop=args.pop)

    def our_step(self) -> None:
        self.tuning.step(self.step_number)
        self.step_number += 1
        if self.step_number % 60 == 0:
            self.tuning.watch.newest_terms()  # as run() does when it reports

    def public_step(self) -> None:
        self.public.step(self.images, self.labels)

    def public_step_without_vae(self) -> None:
        with mock.patch.object(self.public, "encode", return_value=self.latents):
            self.public_step()

    def our_parts(self, rounds: int) -> dict[str, float]:
        tuning, clock = self.tuning, _Clock(self.args.device)
        with (
            clock.on(tuning.draw, batch="draw"),
            clock.on(tuning, predict="forward", average="average", backward="all"),
            clock.on(tuning.losses, terms="losses", _memory_losses="memory"),
            clock.on(tuning.optimizer, step="optimizer"),
        ):
            for _ in range(rounds):
                self.our_step()
        parts = clock.medians()
        parts["backward"] = parts.pop("all") - parts["forward"] - parts["losses"]
        parts["losses"] -= parts["memory"]
        return {name: parts.get(name, 0.0) for name in PARTS}

    def public_parts(self, rounds: int) -> dict[str, float]:
        clock = _Clock(self.args.device)
        names = {name: name for name in ("encode", "forward", "memory", "backward", "average")} | {"update": "optimizer"}
        with clock.on(self.public, **names):
            for _ in range(rounds):
                self.public_step()
        parts = clock.medians()
        return {name: parts.get(name, 0.0) for name in PARTS}

    def over_matmul_bound(self, parts: dict[str, float]) -> float:
        """Forward and backward of ours over the time that their products need at the rate of one large product."""
        batch = self.tuning.draw.batch(0, self.tuning.ctx)
        with FlopCounterMode(display=False) as counter:
            denoise(self.public.model, batch.z_t, batch.t, batch.dropped_labels).sum().backward()
        dtype = torch.bfloat16 if self.args.dtype == "bfloat16" else torch.float32
        size = 8192 if self.args.device.startswith("cuda") else 1024
        left, right = (torch.randn(size, size, device=self.args.device).to(dtype) for _ in range(2))
        for _ in range(3):
            left @ right
        seconds = statistics.median(timed(lambda: left @ right, self.args.device) for _ in range(10))
        return (parts["forward"] + parts["backward"]) / (counter.get_total_flops() / (2 * size**3 / seconds))


class _Clock:
    """Seconds of methods, the device's queue empty before and after each, so that parts take longer than undisturbed."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def on(self, thing: Any, **names: str) -> "_Wrapped":
        return _Wrapped(self, thing, names)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.seconds.items()}

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            self.seconds.setdefault(name, []).append(timed(lambda: results.append(method(*args, **kwargs)), self.device))
            return results[0]

        return clocked


class _Wrapped:
    def __init__(self, clock: _Clock, thing: Any, names: dict[str, str]) -> None:
        self.clock, self.thing, self.names = clock, thing, names

    def __enter__(self) -> None:
        for method, name in self.names.items():
            setattr(self.thing, method, self.clock.wrap(name, getattr(self.thing, method)))

    def __exit__(self, *error: object) -> None:
        for method in self.names:
            delattr(self.thing, method)


def _random_cache(folder: Path, side: int, num_images: int = 640) -> None:
    shape = (num_images, 2, 8, side, side)
    posterior = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    posterior[:, :, 4:] = -8
    np.save(folder / "posterior.npy", posterior.astype(np.float16))
    np.save(folder / "labels.npy", np.arange(num_images) % NUM_CLASSES)


def _sd_autoencoder() -> AutoencoderKL:
    """The architecture of the Stable Diffusion VAE, 83.7 M parameters, random weights."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )


def _peak_bytes(side: str, args: argparse.Namespace) -> int:
    """Most memory that one side needs for three steps, model and states included, in a process of its own."""
    if args.quick:
        return 0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (side, args))


def _peak_of(side: str, args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    args.compile = False
    with tempfile.TemporaryDirectory() as folder:
        sides = _Sides(args, Path(folder))
        if side == "ours":
            del sides.public
        else:
            del sides.tuning
        step = sides.our_step if side == "ours" else sides.public_step
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        for _ in range(3):
            step()
        if args.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated()
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
