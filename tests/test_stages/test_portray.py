"""Pictures of the memories: what is kept of them, and that pixels come out as they went in."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddgd_ray.method.memory import LatentMemory
from ddgd_ray.spec.evaluation import PortraySpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import portray
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import save_identity, to_unit_range
from ddgd_ray.stages.parts.memory_snapshots import FOLDER, NUM_ROWS, _rows


def test_rows_are_spread_from_the_oldest_to_the_newest() -> None:
    memory = LatentMemory(2, 7, 4, pop="fifo")
    latents = torch.arange(1, 29).float().view(7, 4)
    memory.push(latents, torch.zeros(7, dtype=torch.int64))
    rows = _rows(memory, 2, (1, 2, 2))
    assert rows.shape == (2, NUM_ROWS, 1, 2, 2)
    np.testing.assert_allclose(rows[0].reshape(NUM_ROWS, 4), latents[[0, 2, 4, 6]].numpy(), rtol=1e-3)
    assert np.isnan(rows[1]).all()  # a class that has not come yet


def test_pixels_in_a_memory_come_out_as_pictures(tmp_path: Path) -> None:
    adapter, decoder, out = (tmp_path / name for name in ("adapter", "decoder", "out"))
    for folder in (adapter / FOLDER, decoder, out):
        folder.mkdir(parents=True)
    save_identity(decoder)
    pixels = torch.randint(0, 256, (2, 3, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = np.full((2, NUM_ROWS, 1, 8, 8), np.nan, np.float16)
    rows[:, :3] = to_unit_range(pixels.flatten(0, 1)).view(2, 3, 1, 8, 8).numpy()
    np.save(adapter / FOLDER / "real-00000010.npy", rows)
    np.save(adapter / FOLDER / "labels.npy", np.array([0, 1]))
    images = ImagesSpec(source="digits", classes=("cat", "dog"), size=8, channels=1)
    metrics = portray.run(PortraySpec(images=images), {"adapter": adapter, "autoencoder": decoder}, out, Context())
    index = json.loads((out / "index.json").read_text())
    assert [(entry["memory"], entry["step"], entry["class"], len(entry["files"])) for entry in index] == [
        ("real", 10, "cat", 3),
        ("real", 10, "dog", 3),
    ]
    found = np.stack([np.asarray(Image.open(out / name)) for entry in index for name in entry["files"]])
    assert np.abs(found.astype(int) - pixels.view(6, 8, 8).numpy().astype(int)).max() <= 1  # float16 between
    assert metrics == {"num_images": 6.0}


def test_a_fine_tuning_without_snapshots_has_an_empty_portrait(tmp_path: Path) -> None:
    for name in ("adapter", "decoder", "out"):
        (tmp_path / name).mkdir()
    save_identity(tmp_path / "decoder")
    images = ImagesSpec(source="digits", classes=("cat", "dog"), size=8, channels=1)
    inputs = {"adapter": tmp_path / "adapter", "autoencoder": tmp_path / "decoder"}
    assert portray.run(PortraySpec(images=images), inputs, tmp_path / "out", Context()) == {"num_images": 0.0}
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == []
