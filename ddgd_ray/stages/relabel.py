"""Soft labels stored beside a set: what the reference network says of each image, once.

Shapes: N images, Y classes, k kept classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddgd_ray.errors import ArtifactError
from ddgd_ray.method.augment import normalize
from ddgd_ray.method.soft_labels import kept, num_bytes, rest_of, spread
from ddgd_ray.spec.ways import RelabelSpec
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.classifier import load_network, on_device
from ddgd_ray.stages.parts.distilled import read_set

FILE = "labels.safetensors"
NAMES = "names.json"
BATCH = 64  # a pass's images; not ctx.chunk: the last digits of a logit depend on it


@torch.inference_mode()
def run(spec: RelabelSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes labels.safetensors and, for the images' order, names.json.

    values: the logits (N, Y), or with fewer classes kept (N, k) falling ones, beside their classes (N, k) and the logit that
    stands for each other class, rest (N,).

    label_bytes: what these numbers weigh. image_bytes: what the files of the images weigh. agreement: share of images that the
    network takes for their own class.
    """
    torch.set_num_threads(ctx.num_threads)
    split = read_set(inputs["set"], spec.images, spec.ipc, size=spec.size, num_threads=ctx.num_threads)
    network = load_network(inputs["teacher"], "last", ctx.device)
    images, labels = on_device(split, ctx)
    logits = torch.cat([network(normalize(part.to(ctx.device).float() / 255)).float().cpu() for part in images.split(BATCH)])
    num_classes = logits.shape[1]
    k = min(spec.classes_kept or num_classes, num_classes)
    dtype = torch.float16 if spec.dtype == "float16" else torch.float32
    values, classes = kept(logits, k)
    if k == num_classes:
        tensors = {"values": logits.to(dtype)}
    else:
        number = torch.uint8 if num_classes <= 256 else torch.int16 if num_classes <= 32768 else torch.int32
        rest = rest_of(logits, classes, spec.temperature)
        tensors = {"values": values.to(dtype).contiguous(), "classes": classes.to(number).contiguous(), "rest": rest.to(dtype)}
    save_file(tensors, out / FILE, {"num_classes": str(num_classes)})
    (out / NAMES).write_text(json.dumps(split.names))
    return {
        "num_images": float(len(split)),
        "label_bytes": float(num_bytes(len(split), num_classes, k, dtype.itemsize)),
        "image_bytes": float(_image_bytes(inputs["set"], split.names)),
        "agreement": float((logits.argmax(dim=1) == labels.cpu()).double().mean()),
    }


def _image_bytes(folder: Path, names: Sequence[str]) -> int:
    """Of the files that the names end with, wherever the class folders lie."""
    sizes = {path.as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    by_end = {"/".join(path.split("/")[-2:]): size for path, size in sizes.items()}
    return sum(by_end.get(name, 0) for name in names)


def read_labels(folder: Path) -> dict[str, Tensor]:
    """{CLASS/FILE: the logits (Y,) float32 that the stored numbers stand for}."""
    names = json.loads((folder / NAMES).read_text())
    tensors = load_file(folder / FILE)
    values = tensors["values"].float()
    if "classes" in tensors:
        values = spread(values, tensors["classes"].long(), tensors["rest"].float(), _num_classes(folder))
    return dict(zip(names, values, strict=True))


def _num_classes(folder: Path) -> int:
    """Of the network that answered."""
    with safe_open(folder / FILE, "pt") as file:
        return int(file.metadata()["num_classes"])


def stored_logits(folder: Path, names: Sequence[str]) -> Tensor:
    """The logits (N, Y) of these images. Raises ArtifactError where one has none."""
    found = read_labels(folder)
    missing = [name for name in names if name not in found]
    if missing:
        raise ArtifactError(
            f"{len(missing)} of {len(names)} images have no stored label, such as {missing[0]}",
            where=str(folder),
            fix="delete this folder; it is made again",
        )
    return torch.stack([found[name] for name in names])
