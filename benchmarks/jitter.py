"""Accuracy of protocol idc with its colour jitter as the public code has it, unclamped, and clamped after each step.

python -m benchmarks.jitter [--steps 150] [--seeds 6]

Images are generated: six classes of coloured textures with noise, 10 training and 60 test images a class, 32 px, seen at 16 px.
Both sides share their seeds, so the difference is paired.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from ddgd_ray.spec.evaluation import DecodeSpec, EvaluateSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import decode, evaluate
from ddgd_ray.stages.base import Context

CLASSES = tuple(f"c{index}" for index in range(6))
SIDE, SEEN = 32, 16
TEXTURES = 8  # a class; an image mixes them


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=150)
    made.add_argument("--seeds", type=int, default=6)
    args = made.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = _accuracies(Path(folder), args.steps, args.seeds)
    for name, values in (("clamped", found[True]), ("unclamped", found[False])):
        print(f"{name:10} {statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}, n = {len(values)}")
    pairs = [after - before for before, after in zip(found[True], found[False], strict=True)]
    print(f"difference {statistics.fmean(pairs):+.4f} ± {statistics.stdev(pairs):.4f}")


def _accuracies(folder: Path, steps: int, num_seeds: int) -> dict[bool, list[float]]:
    """Test accuracy after the last step by whether the jitter is clamped, one for each seed."""
    root, real = folder / "images", folder / "real"
    _write_images(root)
    real.mkdir()
    images = ImagesSpec(source="imagefolder", classes=CLASSES, size=SEEN, root=str(root))
    decode.run(DecodeSpec(images=images, size=SEEN, resize=SEEN), {"images": root}, real, Context())
    found: dict[bool, list[float]] = {True: [], False: []}
    for clamped, values in found.items():
        for seed in range(num_seeds):
            protocol = {"name": "idc", "size": SEEN, "steps": steps, "num_tests": 1, "jitter_clamped": clamped}
            fields = {"network": "convnet3", "ipc": 10, "images": images, "seed": seed, "tests": "last", "protocol": protocol}
            out = folder / f"{clamped}-{seed}"
            out.mkdir()
            metrics = evaluate.run(EvaluateSpec.model_validate(fields), {"set": root / "train", "real": real}, out, Context())
            values.append(metrics["top1_last"])
    return found


def _write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(CLASSES), TEXTURES, SIDE, SIDE, 3))
    textures = np.stack([[gaussian_filter(one, (3, 3, 0)) * 9 for one in own] for own in noise])
    for split, num in (("train", 10), ("val", 60)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                mixed = np.tensordot(rng.dirichlet(np.ones(TEXTURES) * 0.5), textures[label], 1)
                pixels = (
                    128 + 110 * mixed * rng.uniform(0.6, 1.6) + rng.normal(size=(SIDE, SIDE, 3)) * 45 + rng.normal(size=3) * 35
                )
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / split / name / f"{index:03d}.png")


if __name__ == "__main__":
    main()
