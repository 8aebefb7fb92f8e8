"""One classifier: built from its spec, kept and loaded, judged on real images.

Shapes: K classifiers, N images, B batch, C channels, S side in pixels, Y classes.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddgd_ray.errors import SpecError
from ddgd_ray.method.augment import normalize
from ddgd_ray.method.classifiers import NETWORKS, build_network
from ddgd_ray.method.packing import Pack
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.load import nearest
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.device import free_bytes
from ddgd_ray.stages.parts.images import Split
from ddgd_ray.stages.parts.precision import arithmetic
from ddgd_ray.storage.store import MANIFEST

RESIDENT_SHARE = 0.4  # of the device's free memory that a set may take; a larger one stays on the host


def new_network(spec: EvaluateSpec) -> nn.Module:
    """The network of `spec`, with weights that the seed alone decides.

    Raises SpecError for a name or size that no network has.
    """
    torch.manual_seed(spec.seed)
    size = spec.protocol.size or spec.images.size
    try:
        return build_network(spec.network, num_classes=len(spec.images.classes), channels=spec.images.channels, size=size)
    except KeyError as err:
        raise SpecError(
            f"unknown network {spec.network!r}; known: {', '.join(NETWORKS)}, and timm/NAME",
            where="evaluate.networks",
            fix=f"did you mean {nearest(spec.network, NETWORKS)}?",
        ) from err
    except ValueError as err:
        raise SpecError(str(err), where="evaluate.networks", fix="choose another network or protocol.size") from err


def spec_of(folder: Path) -> EvaluateSpec:
    """The spec by which the classifier in an evaluate artifact was trained."""
    return EvaluateSpec.model_validate_json(json.dumps(json.loads((folder / MANIFEST).read_text())["spec"]))


def load_network(folder: Path, which: str, device: str) -> nn.Module:
    """The classifier that an evaluate artifact kept, `last` or `selected`, ready to answer."""
    spec = spec_of(folder)
    network = new_network(spec)
    tensors = load_file(folder / "weights.safetensors")
    kept = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{which}.")}
    network.load_state_dict(kept)
    return network.to(device).eval().requires_grad_(False)


def on_device(split: Split, ctx: Context) -> tuple[Tensor, Tensor]:
    """Images (N, C, S, S) uint8 and labels (N,) int64. Images that would fill the device stay on the host."""
    images = torch.tensor(split.images).permute(0, 3, 1, 2).contiguous()
    if ctx.device.startswith("cuda") and images.nbytes > RESIDENT_SHARE * free_bytes(ctx):
        return images.pin_memory(), torch.from_numpy(split.labels).to(ctx.device)
    return images.to(ctx.device), torch.from_numpy(split.labels).to(ctx.device)


class Judge:
    """Counts of (true class, predicted class) on real images, for all classifiers of a pack at once."""

    def __init__(self, split: Split, spec: EvaluateSpec, ctx: Context) -> None:
        self._images, self._labels = on_device(split, ctx)
        self._spec, self._ctx, self._num_classes = spec, ctx, len(spec.images.classes)

    @torch.inference_mode()
    def __call__(self, pack: Pack) -> Tensor:
        """The counts of each classifier, (K, Y, Y) float64 on the host."""
        pack.train(False)
        chunk = max(1, 2 * self._ctx.chunk // pack.num)
        with arithmetic(self._spec.dtype, self._ctx.device):
            guesses = [
                pack(normalize(part.to(self._ctx.device).float() / 255)).argmax(dim=2) for part in self._images.split(chunk)
            ]
        pack.train()
        cells_KN = self._labels * self._num_classes + torch.cat(guesses, dim=1)
        counts = [torch.bincount(cells, minlength=self._num_classes**2) for cells in cells_KN.cpu()]
        return torch.stack(counts).double().unflatten(1, (self._num_classes, self._num_classes))


def top1(confusion_KYY: Tensor) -> list[float]:
    """Each classifier's share of right answers."""
    right: list[float] = (confusion_KYY.diagonal(dim1=1, dim2=2).sum(dim=1) / confusion_KYY.sum(dim=(1, 2))).tolist()
    return right
