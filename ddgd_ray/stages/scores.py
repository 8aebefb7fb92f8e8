"""How sure, how hard or how easily forgotten each image of a pool is.

Shapes: K trainings, N images of the pool, E looks, B batch, Y classes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddgd_ray.method.augment import normalize
from ddgd_ray.method.packing import Pack
from ddgd_ray.method.scores import confidence, el2n, forgetting, is_right
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.pick import ScoresSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.evaluate import Training
from ddgd_ray.stages.parts.classifier import load_network, on_device
from ddgd_ray.stages.parts.images import Split
from ddgd_ray.stages.parts.pools import read_pools

BATCH = 64  # a pass's images; not ctx.chunk: the last digits of a score depend on it


def run(spec: ScoresSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes scores.npy (N,) float64 and right.npy (N,) bool: pool after pool, class by class.

    right: whether the network, or most of those trained, take the image for its class; of forgetting and el2n at the last look.
    """
    torch.set_num_threads(ctx.num_threads)
    pool = read_pools(inputs, spec.images, size=spec.size, num_threads=ctx.num_threads)
    labels = torch.from_numpy(pool.labels)
    if spec.rule == "confidence":
        network = load_network(inputs["model"], "last", ctx.device)
        logits = _answers(network, pool, ctx)
        score, right = confidence(logits, labels), is_right(logits, labels)
    else:
        looks = _looked_at(spec, pool, ctx)
        right_KEN = torch.stack(looks.right, dim=1)
        score = el2n(looks.early_KNY, labels) if spec.rule == "el2n" else forgetting(right_KEN)
        right = right_KEN[:, -1].double().mean(dim=0) > 0.5
    np.save(out / "scores.npy", score.double().numpy())
    np.save(out / "right.npy", right.numpy())
    return {"mean_score": float(score.double().mean()), "right_share": float(right.double().mean())}


@torch.inference_mode()
def _answers(network: Callable[[Tensor], Tensor], pool: Split, ctx: Context) -> Tensor:
    """The logits (..., N, Y) of a network, or of each of a pack, on the host."""
    images, _ = on_device(pool, ctx)
    answers = [network(normalize(part.to(ctx.device).float() / 255)).float().cpu() for part in images.split(BATCH)]
    return torch.cat(answers, dim=-2)


class _Looks:
    """A judge of evaluate's trainings that remembers what each network says of each image of the pool."""

    def __init__(self, pool: Split, num_classes: int, ctx: Context) -> None:
        self._pool, self._num_classes, self._ctx = pool, num_classes, ctx
        self._labels = torch.from_numpy(pool.labels)
        self.early_KNY = torch.empty(0)
        self.right: list[Tensor] = []

    def __call__(self, pack: Pack) -> Tensor:
        """Counts of (true class, predicted class), (K, Y, Y) float64."""
        pack.train(False)
        logits_KNY = _answers(pack, self._pool, self._ctx)
        pack.train()
        if not self.right:
            self.early_KNY = logits_KNY.double().softmax(dim=2)
        guesses_KN = logits_KNY.argmax(dim=2)
        self.right.append(guesses_KN == self._labels)
        cells_KN = self._labels * self._num_classes + guesses_KN
        counts = [torch.bincount(cells, minlength=self._num_classes**2) for cells in cells_KN]
        return torch.stack(counts).double().unflatten(1, (self._num_classes, self._num_classes))


def _looked_at(spec: ScoresSpec, pool: Split, ctx: Context) -> _Looks:
    assert spec.protocol is not None, "plan gives one to rules that train"
    protocol = spec.protocol.model_copy(update={"num_tests": spec.looks})
    specs = [
        EvaluateSpec(network=spec.network, ipc=0, protocol=protocol, images=spec.images, seed=spec.seed + place)
        for place in range(spec.trainings)
    ]
    looks = _Looks(pool, len(spec.images.classes), ctx)
    Training(specs, pool, spec.size, None, [ctx, *(Context() for _ in specs[1:])]).run({"pool": looks})
    return looks
