"""Make fashion.npz: the first images of each class of Fashion-MNIST's own splits.

python -m ddgd_ray.data.make_fashion [IDX_FOLDER]    # default: where Debian's dataset-fashion-mnist installs it
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgd_ray.inputs.fingerprints import embedded_fashion
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.images import Split, read_splits

PER_CLASS = {"train": 1000, "test": 200}


def first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))


def main(folder: Path) -> None:
    spec = ImagesSpec(source="fashion-full", classes=tuple("0123456789"), size=28, channels=1)
    arrays: dict[str, NDArray[np.uint8]] = {}
    for name, split in zip(PER_CLASS, read_splits(spec, folder, *PER_CLASS), strict=True):
        kept: Split = split.take(first_of_each_class(split.labels, PER_CLASS[name]))
        arrays |= {f"{name}_images": kept.images[..., 0], f"{name}_labels": kept.labels.astype(np.uint8)}
    np.savez_compressed(embedded_fashion(), allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"))
