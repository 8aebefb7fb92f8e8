"""The quality of a set without training on it: its features against those of all real training images.

Shapes: N real images, M images of the set, F features.
"""

import json
import statistics
from pathlib import Path

import numpy as np
import torch

from ddgd_ray.errors import StageError
from ddgd_ray.method import metrics
from ddgd_ray.spec.evaluation import QualitySpec
from ddgd_ray.stages.base import Context


def run(spec: QualitySpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """precision, recall, density, coverage, frechet, vendi, similarity, similarity_within and copies; only equal sizes compare.

    similarity: mean pairwise cosine, of all images and within classes. copies: share of images nearer to a training image than
    training images are to each other. Writes copies.json: every image's nearest training image (row) and its distance.
    """
    torch.set_num_threads(ctx.num_threads)
    real, made = (torch.from_numpy(np.load(inputs[name] / "features.npy")).to(ctx.device) for name in ("real", "set"))
    labels = torch.from_numpy(np.load(inputs["set"] / "labels.npy")).to(ctx.device)
    rows = np.load(inputs["real"] / "rows.npy")
    if spec.neighbours >= len(made):
        raise StageError(
            f"{spec.neighbours} neighbours need more than {len(made)} images", where="quality", fix="evaluate a larger ipc"
        )
    square, nearest_real = (torch.from_numpy(np.load(inputs["real"] / f"{name}.npy")) for name in ("neighbours", "nearest"))
    known = metrics.Neighbours(square.to(ctx.device), nearest_real.to(ctx.device))
    around = metrics.prdc(real, made, k=spec.neighbours, real_neighbours=known)
    copied = metrics.copies(real, made, quantile=spec.copy_quantile, real_neighbours=known)
    nearest = [
        {"image": index, "row": int(rows[row]), "distance": float(distance)}
        for index, (row, distance) in enumerate(zip(copied.nearest_M.tolist(), copied.distance_M.tolist(), strict=True))
    ]
    (out / "copies.json").write_text(json.dumps({"threshold": copied.threshold, "nearest": nearest}))
    within = metrics.class_similarities(made, labels)
    found = {
        **around._asdict(),
        "frechet": metrics.frechet_distance(real, made),
        "vendi": metrics.vendi(made),
        "similarity": metrics.mean_pairwise_similarity(made),
        "copies": copied.share,
    }
    return found | ({"similarity_within": statistics.fmean(within.values())} if within else {})
