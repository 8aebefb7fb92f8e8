"""The sweep that `ddgd-ray evaluate` runs: ready-made sets in place of anything that varies."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddgd_ray.spec.load import Document
from ddgd_ray.spec.sweep import Sweep, check_sweep

SMALL = 64
SMALL_NETWORKS = ("convnet3_slim", "resnet_slim")
NETWORKS = ("convnet", "resnet_ap10", "resnet18")  # those of the published tables


def sweep_of_sets(
    name: str,
    paths: Sequence[str],
    *,
    preset: str,
    ipc: Sequence[int],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    networks: Sequence[str] = (),
    controls: Sequence[str] = (),
    quality: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Sweep:
    """paths: one set, or the sets of one method by distillation seed. Without networks, those that the size suggests."""
    clean = re.sub(r"[^A-Za-z0-9.+-]", "-", name).strip("-.+")[:50] or "set"

    def sweep(networks: Sequence[str]) -> Sweep:
        data = {
            "name": f"evaluate-{clean}",
            "preset": preset,
            "sets": {clean: tuple(paths)},
            "seeds": {"distill": tuple(range(len(paths))), "evaluate": tuple(seeds)},
            "evaluate": {"networks": tuple(networks), "ipc": tuple(ipc), "also": tuple(also)},
            "controls": tuple(controls),
            "quality": tuple(quality),
        }
        return check_sweep(Document(data, "ddgd-ray evaluate"), Path(), overrides)

    if networks:
        return sweep(networks)
    judged = sweep(NETWORKS).preset_with({})
    return sweep(SMALL_NETWORKS if (judged.evaluate.protocol.size or judged.images.size) <= SMALL else NETWORKS)


def common_ipc(files: Mapping[str, Sequence[str]]) -> int:
    """Images a class where all classes have as many, otherwise 0."""
    counts = Counter(map(len, files.values()))
    return next(iter(counts)) if len(counts) == 1 else 0
