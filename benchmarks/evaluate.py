"""Training images a second of our evaluator against the public evaluation scripts.

    python -m benchmarks.evaluate [--quick] [--json] [--device cpu] [--network NAME --size S --ipc N --seeds K --pack P]

The baseline does what the public evaluators do (IDC, Minimax Diffusion, RDED): worker processes of a DataLoader decode every
image of every epoch with Pillow and augment it with torchvision, one at a time; one seed after the other in float32; loss and
accuracy are read back at every step; test images are decoded again for every test. Ours is the stage itself, `--seeds`
classifiers, as many at once as it chooses (or `--pack`), reading and decoding the set included; in bfloat16 on CUDA, float32 on
a CPU. Both train the same network by protocol `idc` (crops, flip, jitter, lighting, CutMix, SGD, batch 64) for as many epochs,
with one test of 50 images a class every 20 epochs, as idc has.

Default on CUDA: resnet_ap10 at 224 px, ipc 10, 3 seeds. On a CPU the embedded evaluator, convnet3_slim at 32 px: there the
network is small enough that the data path counts; with resnet_ap10 the convolutions take all the time on both sides. Goals: 5 x
on an H100, 2 x on two cores.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks import measure
from ddgd_ray.method.augment import IMAGENET_MEAN, IMAGENET_STD, RGB_EIGENVALUES, RGB_EIGENVECTORS
from ddgd_ray.method.classifiers import build_network
from ddgd_ray.spec.evaluation import DecodeSpec, EvaluateSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import decode, evaluate
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.batches import augmented, steps_of
from ddgd_ray.stages.parts.distilled import read_set

CLASSES = tuple(f"class{index}" for index in range(10))
TEST_PER_CLASS = 50
EPOCHS_PER_TEST = 20


def write_images(root: Path, split: str, per_class: int, side: int) -> None:
    """Smooth random pictures with some grain: PNG of them decodes like PNG of photographs."""
    rng = np.random.default_rng(len(split))
    for name in CLASSES:
        (root / split / name).mkdir(parents=True)
        for index in range(per_class):
            smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            grain = rng.normal(scale=6, size=(side, side, 3))
            pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{index:05d}.png")


class Lighting:
    """PCA noise on one image tensor."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        alpha = torch.randn(3) * 0.1
        offset = (torch.tensor(RGB_EIGENVECTORS) * alpha * torch.tensor(RGB_EIGENVALUES)).sum(dim=1)
        return image + offset[:, None, None]


class PublicEvaluator:
    """One seed at a time from files, as the public scripts train."""

    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        self.args = args
        fit = [transforms.Resize(args.size), transforms.CenterCrop(args.size), transforms.ToTensor()]
        normal = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
        crop = transforms.RandomResizedCrop(args.size, scale=(0.5, 1.0), antialias=True)
        colours = [transforms.ColorJitter(0.4, 0.4, 0.4), Lighting()]
        augment = transforms.Compose([*fit, crop, transforms.RandomHorizontalFlip(), *colours, normal])
        options: dict[str, Any] = {"num_workers": min(measure.num_cores(), 4), "persistent_workers": True}
        options["pin_memory"] = args.device.startswith("cuda")
        self.train = DataLoader(ImageFolder(str(root / "train"), augment), batch_size=64, shuffle=True, **options)
        self.test = DataLoader(ImageFolder(str(root / "val"), transforms.Compose([*fit, normal])), batch_size=100, **options)

    def warm_up(self) -> None:
        """Start the worker processes."""
        for loader in (self.train, self.test):
            for _ in loader:
                pass

    def run(self, seed: int = 0) -> float:
        """The last loss."""
        args = self.args
        torch.manual_seed(seed)
        network = build_network(args.network, num_classes=len(CLASSES), channels=3, size=args.size).to(args.device)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        milestones = [2 * args.epochs // 3, 5 * args.epochs // 6]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
        loss_sum = right = 0.0
        for epoch in range(args.epochs):
            network.train()
            for batch, truth in self.train:
                images, labels = batch.to(args.device), truth.to(args.device)
                share = float(np.random.beta(1, 1))
                partner = torch.randperm(len(images), device=args.device)
                top, bottom, left, right_end = _box(args.size, share)
                images[:, :, top:bottom, left:right_end] = images[partner, :, top:bottom, left:right_end]
                kept = 1 - (bottom - top) * (right_end - left) / args.size**2
                logits = network(images)
                loss = kept * F.cross_entropy(logits, labels) + (1 - kept) * F.cross_entropy(logits, labels[partner])
                loss_sum = loss.item()
                right += (logits.argmax(dim=1) == labels).float().mean().item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            if (epoch + 1) % EPOCHS_PER_TEST == 0:
                self._validate(network)
        return loss_sum

    def _validate(self, network: nn.Module) -> float:
        network.eval()
        right = 0.0
        with torch.no_grad():
            for images, labels in self.test:
                right += (network(images.to(self.args.device)).argmax(dim=1) == labels.to(self.args.device)).sum().item()
        return right


def _box(size: int, share: float) -> tuple[int, int, int, int]:
    half = int(size * np.sqrt(1 - share)) // 2
    row, column = np.random.randint(size, size=2)
    ends = np.clip([row - half, row + half, column - half, column + half], 0, size)
    top, bottom, left, right = (int(end) for end in ends)
    return top, bottom, left, right


class Ours:
    """The stage, its set read from the same files."""

    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        self.args, self.root = args, root
        images = ImagesSpec(source="imagefolder", classes=CLASSES, size=args.size, root=str(root))
        protocol = {"name": "idc", "size": args.size, "epochs": args.epochs, "epochs_up_to": ()}
        protocol["num_tests"] = args.epochs // EPOCHS_PER_TEST
        dtype = "bfloat16" if args.device.startswith("cuda") else "float32"
        fields = {"network": args.network, "ipc": args.ipc, "protocol": protocol, "dtype": dtype, "images": images}
        self.specs = [EvaluateSpec.model_validate({**fields, "seed": seed}) for seed in range(args.seeds)]
        self.real = root / "decoded"
        self.real.mkdir()
        context = Context(device=args.device, num_threads=measure.num_cores(), pack=args.pack)
        self.context = context
        spec = DecodeSpec(images=images, size=args.size, resize=args.size)
        self.decode_s = measure.timed(lambda: decode.run(spec, {"images": root}, self.real, context), "cpu")
        self.inputs = {"set": root / "train", "real": self.real}
        self.pack = evaluate.num_at_once(self.specs, self.inputs, context)

    def run(self) -> list[dict[str, float]]:
        found = []
        for start in range(0, len(self.specs), self.pack):
            specs = self.specs[start : start + self.pack]
            with tempfile.TemporaryDirectory() as out:
                folders = [Path(out) / str(spec.seed) for spec in specs]
                for folder in folders:
                    folder.mkdir()
                found += evaluate.run_packed(specs, self.inputs, folders, [self.context] * len(specs))
        return found

    def augmentation_s(self) -> float:
        """Of one image."""
        spec = self.specs[0]
        train = read_set(self.root / "train", spec.images, spec.ipc, size=self.args.size)
        training = evaluate.Training([spec], train, self.args.size, None, [self.context])
        draws = steps_of(spec.protocol, training.plan, self.args.size, [1], self.args.device)
        steps = list(itertools.islice(draws, 8))

        def work() -> None:
            for step in steps:
                rows = step["rows"].flatten()
                augmented(training._images[rows], step, spec.protocol)

        work()
        return measure.timed(work, self.args.device) / sum(step["rows"].numel() for step in steps)


def network_s(args: argparse.Namespace) -> float:
    """Forward and backward of one image, float32."""
    network = build_network(args.network, num_classes=len(CLASSES), channels=3, size=args.size).to(args.device)
    images = torch.randn(64, 3, args.size, args.size, device=args.device)

    def work() -> None:
        network(images).sum().backward()

    work()
    return measure.timed(work, args.device) / 64


def main() -> None:
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--network", default="")
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pack", type=int, default=0, help="classifiers trained at once; 0: the stage chooses")
    parser.add_argument("--epochs", type=int, default=0)
    args = parser.parse_args()
    is_cuda = args.device.startswith("cuda")
    args.network = args.network or ("resnet_ap10" if is_cuda else "convnet3_slim")
    args.size = args.size or (224 if is_cuda else 32)
    args.epochs = args.epochs or (EPOCHS_PER_TEST if args.quick else 3 * EPOCHS_PER_TEST)
    torch.set_num_threads(measure.num_cores())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        side = max(args.size, 256) if args.size > 128 else args.size
        write_images(root, "train", args.ipc, side)
        write_images(root, "val", TEST_PER_CLASS, side)
        ours, public = Ours(args, root), PublicEvaluator(args, root)
        public.warm_up()
        works = {"ours": ours.run, "baseline": public.run}
        seconds = measure.alternate(works, args.device, rounds=1 if args.quick else 3, warmup=0 if args.quick else 1)
        num_images = args.epochs * args.ipc * len(CLASSES)
        loading_s = measure.timed(lambda: [None for _ in public.train], "cpu") / (args.ipc * len(CLASSES))
        rates = {"ours": args.seeds * num_images / seconds["ours"], "baseline": num_images / seconds["baseline"]}
        parts = {
            "packed": ours.pack,
            "seeds": args.seeds,
            "augmentation_ms": 1000 * ours.augmentation_s(),
            "network_ms": 1000 * network_s(args),
            "decoding_test_images_once_s": ours.decode_s,
            "baseline_loading_ms": 1000 * loading_s,
        }
    settings = f"{args.network}, {args.size} px, ipc {args.ipc}"
    unit = f"training images/s ({settings}, {'bfloat16' if is_cuda else 'float32'} against float32)"
    measure.Result(
        ratio=rates["ours"] / rates["baseline"],
        ours=rates["ours"],
        baseline=rates["baseline"],
        unit=unit,
        device=measure.device_name(args.device),
        parts=parts,
    ).print(args.json)


if __name__ == "__main__":
    main()
