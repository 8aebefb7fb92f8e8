"""Rows of both memories, kept while a model is fine-tuned, for pictures; nothing that is computed depends on them.

memories/KIND-STEP.npy (K, R, c, s, s) float16, NaN where a memory has fewer rows, KIND real or gen, STEP the steps done;
memories/labels.npy (K,) int64, the labels that the model knows. Shapes: K classes, R rows, c latent channels, s side.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ddgd_ray.method.memory import LatentMemory
from ddgd_ray.stages.parts.memory_losses import MemoryLosses

FOLDER = "memories"
NUM_CLASSES, NUM_ROWS = 10, 4
SHARES = (0.25, 0.5, 1.0)
"""Of the steps, after which the memories are looked at."""


class MemorySnapshots:
    """Snapshots kept in `keep` until the end, so that a stage that goes on after a crash has all of them; one rank writes."""

    def __init__(self, keep: Path | None, out: Path, num_steps: int, *, is_writer: bool) -> None:
        self._out, self._is_writer = out / FOLDER, is_writer
        self._folder = (keep or out) / FOLDER
        self._steps = {round(share * num_steps) for share in SHARES} - {0}

    def after(self, num_steps: int, losses: MemoryLosses) -> None:
        if not self._is_writer or num_steps not in self._steps:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        shape = losses.cache.latent_shape
        self._save("labels", losses.known_labels[:NUM_CLASSES].numpy())
        for kind, memory in (("real", losses.real), ("gen", losses.gen)):
            self._save(f"{kind}-{num_steps:08d}", _rows(memory, min(NUM_CLASSES, len(losses.known_labels)), shape))

    def _save(self, name: str, array: np.ndarray) -> None:
        partial = self._folder / f".{name}.npy"
        np.save(partial, array)
        os.replace(partial, self._folder / f"{name}.npy")

    def finish(self) -> None:
        """Puts the snapshots into the artifact."""
        if self._is_writer and self._folder.is_dir() and self._folder != self._out:
            shutil.copytree(self._folder, self._out, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)


def _rows(memory: LatentMemory, num_classes: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Rows of each class spread evenly from the oldest to the newest."""
    found = np.full((num_classes, NUM_ROWS, *shape), np.nan, np.float16)
    for place in range(num_classes):
        rows = memory.rows(place).detach().float().cpu()
        some = rows[torch.linspace(0, len(rows) - 1, min(NUM_ROWS, len(rows))).round().long()] if len(rows) else rows
        found[place, : len(some)] = some.reshape(-1, *shape).half().numpy()
    return found


def read_snapshots(adapter: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """The (kind, steps done, rows) of a finetune artifact, the real memory first; older artifacts have none."""
    for kind in ("real", "gen"):
        for path in sorted((adapter / FOLDER).glob(f"{kind}-*.npy")):
            yield kind, int(path.stem.partition("-")[2]), np.load(path)
