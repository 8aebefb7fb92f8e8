"""Pictures of the latents that a fine-tuning's memories held on the way.

Shapes: K classes, R rows, c latent channels, s side of the latent.
"""

import json
from pathlib import Path

import numpy as np
import torch

from ddgd_ray.spec.evaluation import PortraySpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder
from ddgd_ray.stages.parts.device import PIXELS, rows_within
from ddgd_ray.stages.parts.images import generator_labels
from ddgd_ray.stages.parts.memory_snapshots import FOLDER, read_snapshots
from ddgd_ray.stages.parts.png_folder import encoded


def run(spec: PortraySpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The number of images.

    Writes images/KIND-STEP-CLASS-ROW.png, and index.json with the files of each memory, step and class.
    """
    torch.set_num_threads(ctx.num_threads)
    autoencoder = Autoencoder.load(inputs["autoencoder"], ctx.device)
    class_of = dict(zip(generator_labels(spec.images), spec.images.classes, strict=True))
    (out / "images").mkdir()
    index, num_images = [], 0
    for kind, step, rows in read_snapshots(inputs["adapter"]):
        labels = np.load(inputs["adapter"] / FOLDER / "labels.npy")
        for place, label in enumerate(labels.tolist()):
            latents = torch.from_numpy(rows[place]).float()
            latents = latents[~latents.flatten(1).isnan().any(dim=1)]
            files: list[str] = []
            for part in latents.split(rows_within(PIXELS, spec.images.size, most=32)):
                for image in autoencoder.decode(part).cpu().numpy():
                    files.append(f"images/{kind}-{step:08d}-{place:03d}-{len(files):02d}.png")
                    (out / files[-1]).write_bytes(encoded(image))
            index.append({"memory": kind, "step": step, "class": class_of[label], "files": files})
            num_images += len(files)
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    return {"num_images": float(num_images)}
