"""Train one classifier from scratch on a set, and test it on real images.

Shapes: N images, B batch, C channels, S side in pixels.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.method.augment import cutmix, random_flip, random_shift
from ddgd_ray.method.classifiers import NETWORKS, build_network
from ddgd_ray.spec.load import nearest
from ddgd_ray.spec.stages import EvaluateSpec, ProtocolSpec
from ddgd_ray.stages.backbone import to_unit_range
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.distilled import read_set
from ddgd_ray.stages.images import Split, read_splits, record_skipped

LARGE_IPC = 100


def run(spec: EvaluateSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """Writes result.json: per-class accuracy and confusion matrix of the last test. Returns accuracies in [0, 1].

    top1_last: test accuracy after the last step. top1_best: the best of the protocol's tests, chosen on the test images, an
    oracle. top1_selected: test accuracy where the validation accuracy was best. val_top1: validation accuracy, last step.
    """
    torch.set_num_threads(ctx.num_threads)
    protocol = spec.protocol
    test, validation = read_splits(spec.images, inputs["images"], "test", "validation", num_threads=ctx.num_threads)
    images, labels = _on_device(read_set(inputs["set"], spec.images, spec.ipc), ctx)
    torch.manual_seed(spec.seed)
    try:
        network = build_network(
            spec.network, num_classes=len(spec.images.classes), channels=spec.images.channels, size=spec.images.size
        )
    except KeyError as err:
        raise SpecError(
            f"unknown network {spec.network!r}; known: {', '.join(NETWORKS)}, and timm/NAME",
            where="evaluate.networks",
            fix=f"did you mean {nearest(spec.network, NETWORKS)}?",
        ) from err
    network = network.to(ctx.device)
    num_steps = protocol.steps if len(labels) <= LARGE_IPC * len(spec.images.classes) else protocol.steps_large
    test_steps = {round(num_steps * (index + 1) / protocol.num_tests) for index in range(protocol.num_tests)}
    optimizer, schedule = _optimizer(network, protocol, num_steps)
    draw = torch.Generator().manual_seed(spec.seed + 1)
    tested = {name: _on_device(split, ctx) for name, split in (("test", test), ("val", validation)) if len(split)}
    history: list[dict[str, float]] = []
    confusion = torch.zeros(0)
    order = torch.empty(0, dtype=torch.int64)
    batch_size = min(protocol.batch_size, len(labels))
    network.train()
    for step in range(1, num_steps + 1):
        if len(order) < batch_size:
            order = torch.randperm(len(labels), generator=draw)
        rows, order = order[:batch_size].to(ctx.device), order[batch_size:]
        loss = _loss(network, images[rows], labels[rows], protocol, draw)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in test_steps:
            point = {"loss": float(loss.detach())}
            if point["loss"] != point["loss"]:
                raise StageError(f"the classifier's loss is not a number at step {step}", code="non-finite", where="evaluate")
            for name, (real, truth) in tested.items():
                confusion_now = _confusion(network, real, truth, len(spec.images.classes), ctx)
                point[f"{name}_top1"] = float(confusion_now.diagonal().sum() / confusion_now.sum())
                confusion = confusion_now if name == "test" else confusion
            history.append(point)
            ctx.report(step, point)
    per_class = (confusion.diagonal() / confusion.sum(dim=1)).tolist()
    result = {"per_class_top1": dict(zip(spec.images.classes, per_class, strict=True)), "confusion": confusion.tolist()}
    (out / "result.json").write_text(json.dumps(result))
    return _summary(history) | record_skipped(out, spec.images, [*test.skipped, *validation.skipped])


def _summary(history: list[dict[str, float]]) -> dict[str, float]:
    last = history[-1]
    summary = {
        "top1_last": last["test_top1"],
        "top1_best": max(point["test_top1"] for point in history),
        "train_loss": last["loss"],
    }
    if "val_top1" in last:
        chosen = max(history, key=lambda point: point["val_top1"])  # the earliest on a tie
        summary |= {"val_top1": last["val_top1"], "top1_selected": chosen["test_top1"]}
    return summary


def _on_device(split: Split, ctx: Context) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.images).to(ctx.device), torch.from_numpy(split.labels).to(ctx.device)


def _optimizer(
    network: nn.Module, protocol: ProtocolSpec, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "adamw":
        optimizer = torch.optim.AdamW(network.parameters(), lr=protocol.learning_rate, weight_decay=protocol.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=protocol.learning_rate, momentum=0.9, weight_decay=protocol.weight_decay
        )
    if protocol.schedule == "one_cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, protocol.learning_rate, total_steps=num_steps + 1)
    milestones = [2 * num_steps // 3, 5 * num_steps // 6]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)


def _loss(network: nn.Module, images: Tensor, labels: Tensor, protocol: ProtocolSpec, draw: torch.Generator) -> Tensor:
    batch = to_unit_range(images)
    if protocol.flip:
        batch = random_flip(batch, draw)
    if protocol.shift:
        batch = random_shift(batch, protocol.shift, draw)
    if not protocol.cutmix:
        return F.cross_entropy(network(batch), labels, label_smoothing=protocol.label_smoothing)
    batch, partner, kept = cutmix(batch, draw)
    logits = network(batch)
    own = F.cross_entropy(logits, labels, label_smoothing=protocol.label_smoothing)
    others = F.cross_entropy(logits, labels[partner], label_smoothing=protocol.label_smoothing)
    return kept * own + (1 - kept) * others


@torch.inference_mode()
def _confusion(network: nn.Module, images: Tensor, labels: Tensor, num_classes: int, ctx: Context) -> Tensor:
    """counts[true class, predicted class], float64 on the host."""
    network.eval()
    predicted = torch.cat([network(to_unit_range(part)).argmax(dim=1) for part in images.split(2 * ctx.chunk)])
    network.train()
    counts = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    return counts.index_put_((labels.cpu(), predicted.cpu()), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
