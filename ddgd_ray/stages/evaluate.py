"""Classifiers trained from scratch on a set, several seeds at once, and tested on real images.

Shapes: K classifiers (seeds), N images, B batch, C channels, S side in pixels, Y classes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ddgd_ray.errors import StageError
from ddgd_ray.method.augment import cutmix_boxes
from ddgd_ray.method.packing import Pack
from ddgd_ray.method.soft_labels import divergence, mixed, softened
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.protocol import ProtocolSpec, StepPlan
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.decode import read_decoded
from ddgd_ray.stages.parts.batches import augmented, steps_of
from ddgd_ray.stages.parts.classifier import Judge, load_network, new_network, on_device, top1
from ddgd_ray.stages.parts.device import compiled, cudnn_benchmark, free_bytes
from ddgd_ray.stages.parts.distilled import read_set
from ddgd_ray.stages.parts.images import Split
from ddgd_ray.stages.parts.precision import arithmetic, float32_products
from ddgd_ray.stages.relabel import stored_logits

PACKED_SHARE = 0.7  # of what is free after it that classifiers trained at once may take


def run(spec: EvaluateSpec, inputs: dict[str, Path], out: Path, ctx: Context) -> dict[str, float]:
    """The accuracies of one classifier; see run_packed."""
    return run_packed([spec], inputs, [out], [ctx])[0]


def run_packed(
    specs: Sequence[EvaluateSpec], inputs: dict[str, Path], outs: Sequence[Path], ctxs: Sequence[Context]
) -> list[dict[str, float]]:
    """Accuracies in [0, 1] of one classifier for each spec; the specs differ in their seeds alone.

    Writes result.json, the per-class accuracy and the confusion matrix after the last step, and with `keep_weights` the weights
    `last` and `selected` (those of the best validation accuracy, the earliest on a tie).
    top1_last: test accuracy after the last step. top1_best: the best of the protocol's tests, chosen on the test images, an
    oracle. top1_selected: test accuracy of the selected weights. val_top1: validation accuracy after the last step.
    num_test_looks: how often the test images were looked at.
    """
    spec, ctx = specs[0], ctxs[0]
    torch.set_num_threads(ctx.num_threads)
    size = spec.protocol.size or spec.images.size
    train = read_set(inputs["set"], spec.images, spec.ipc, size=size, num_threads=ctx.num_threads)
    teacher = load_network(inputs["teacher"], "last", ctx.device) if spec.protocol.labels == "teacher" else None
    stored = stored_logits(inputs["labels"], train.names).to(ctx.device) if spec.protocol.labels == "stored" else None
    training = Training(specs, train, size, teacher, ctxs, stored=stored)
    real = {name: read_decoded(inputs["real"], split) for name, split in (("test", "test"), ("val", "validation"))}
    if spec.tests == "none":
        del real["test"]
    judges = {name: Judge(split, spec, ctx) for name, split in real.items() if len(split)}
    with cudnn_benchmark():  # one or two shapes of a batch, thousands of times
        training.run(judges)
    return [training.finish(index, out) for index, out in enumerate(outs)]


def num_at_once(specs: Sequence[EvaluateSpec], inputs: dict[str, Path], ctx: Context) -> int:
    """The number of specs to train at once: ctx.pack where it is not 0, otherwise one on a CPU and, on a GPU, as many as fit.

    One also where a pack is no faster a seed: a network that fills the device alone gains nothing from company.
    """
    if ctx.pack or not ctx.device.startswith("cuda"):
        return ctx.pack or 1
    torch.cuda.empty_cache()
    free = free_bytes(ctx)
    before = torch.cuda.memory_allocated(ctx.device)
    torch.cuda.reset_peak_memory_stats(ctx.device)
    alone_s = step_s(specs[:1], ctx)
    taken = torch.cuda.max_memory_allocated(ctx.device) - before
    torch.cuda.empty_cache()
    most = max(1, min(len(specs), int(PACKED_SHARE * free / max(taken, 1))))
    return most if most > 1 and step_s(specs[:most], ctx) < most * alone_s else 1


def step_s(specs: Sequence[EvaluateSpec], ctx: Context) -> float:
    """Seconds of a forward and a backward pass of all specs' classifiers at once, the best of three."""
    spec, num = specs[0], len(specs)
    size = spec.protocol.size or spec.images.size
    pack = Pack([new_network(one).to(ctx.device) for one in specs])
    images = torch.zeros(
        num, spec.own_protocol.batch_of(spec.ipc or 10**9), spec.images.channels, size, size, device=ctx.device
    )
    seconds = []
    for _ in range(5):  # the first two choose kernels and fill the allocator
        started = time.perf_counter()
        with arithmetic(spec.dtype, ctx.device):
            total = pack(images).float().sum()
        with float32_products(spec.dtype):
            total.backward()
        if ctx.device.startswith("cuda"):
            torch.cuda.synchronize(ctx.device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:])


class Training:
    """K classifiers on one set, from their first step to their last."""

    def __init__(
        self,
        specs: Sequence[EvaluateSpec],
        train: Split,
        size: int,
        teacher: nn.Module | None,
        ctxs: Sequence[Context],
        *,
        stored: Tensor | None = None,
    ) -> None:
        """stored: the teacher's logits for each image, (N, Y)."""
        self.spec, self.ctx, self.ctxs, self._teacher = specs[0], ctxs[0], ctxs, teacher
        self.protocol: ProtocolSpec = self.spec.own_protocol
        self.seeds = [spec.seed for spec in specs]
        self._soft = None if stored is None else softened(stored, self.protocol.temperature)
        self.plan = StepPlan.of(self.protocol, len(train), len(self.spec.images.classes))
        self._images, self._labels, self._size = *on_device(train, self.ctx), size
        self.pack = Pack([new_network(spec).to(self.ctx.device) for spec in specs])
        self._forward: Any = compiled(self.pack.__call__, self.ctx)
        self._optimizer, self._schedule = _optimizer(self.pack, self.protocol, self.plan, self.ctx.device)
        self.history: list[list[dict[str, float]]] = [[] for _ in specs]
        self.confusion: Tensor | None = None
        self._selected: dict[int, dict[str, Tensor]] = {}

    def run(self, judges: Mapping[str, Callable[[Pack], Tensor]]) -> None:
        test_steps = self.plan.tests(self.protocol)
        self.pack.train()
        for number, step in enumerate(self.draws(), 1):
            losses_K = self.step(step)
            if number in test_steps:
                self._judge(number, losses_K.tolist(), judges)
        self._judge_selected(judges)

    def draws(self) -> Iterator[dict[str, Tensor]]:
        """The random numbers of each step, on the device."""
        return steps_of(self.protocol, self.plan, self._size, [seed + 1 for seed in self.seeds], self.ctx.device)

    def step(self, drawn: dict[str, Tensor]) -> Tensor:
        """Each seed's loss, (K,) detached, of one step of the optimizer; drawn: as `steps_of` gives it."""
        losses_K = self._losses(drawn)
        self._optimizer.zero_grad(set_to_none=True)
        with float32_products(self.spec.dtype):
            losses_K.sum().backward()
        self._optimizer.step()
        self._schedule.step()
        return losses_K.detach()

    def _losses(self, step: dict[str, Tensor]) -> Tensor:
        """Each seed's mean over its batch, (K,), of the cross-entropy or of the teacher's KL divergence."""
        num, batch = step["rows"].shape
        rows = step["rows"].flatten()
        images = self._images[rows.to(self._images.device)].to(self.ctx.device, non_blocking=True)
        x = augmented(images, step, self.protocol).unflatten(0, (num, batch))
        labels_KB = self._labels[step["rows"]]
        kept_K = torch.ones(num, device=x.device)
        partner_KB = labels_KB
        if self.protocol.cutmix:
            x, kept_K = cutmix_boxes(x, step["partner"], step["boxes"])
            partner_KB = labels_KB.gather(1, step["partner"])
        with arithmetic(self.spec.dtype, self.ctx.device):
            if self._teacher is not None:
                with torch.no_grad():
                    soft = self._teacher(x.flatten(0, 1)).float()
            logits = self._forward(x).float()
        if self._teacher is not None:
            return self._divergence(logits, softened(soft, self.protocol.temperature).unflatten(0, (num, batch)))
        if self._soft is not None:
            own = self._soft[step["rows"]]
            partner = own if not self.protocol.cutmix else own.gather(1, step["partner"][:, :, None].expand_as(own))
            return self._divergence(logits, mixed(own, partner, kept_K[:, None, None]))
        own, other = (self._cross_entropy(logits, labels) for labels in (labels_KB, partner_KB))
        return kept_K * own + (1 - kept_K) * other

    def _divergence(self, logits_KBY: Tensor, target_KBY: Tensor) -> Tensor:
        found = divergence(logits_KBY.flatten(0, 1), target_KBY.flatten(0, 1), self.protocol.temperature)
        return found.unflatten(0, logits_KBY.shape[:2]).mean(dim=1)

    def _cross_entropy(self, logits_KBY: Tensor, labels_KB: Tensor) -> Tensor:
        flat = F.cross_entropy(
            logits_KBY.flatten(0, 1), labels_KB.flatten(), label_smoothing=self.protocol.label_smoothing, reduction="none"
        )
        return flat.unflatten(0, labels_KB.shape).mean(dim=1)

    def _judge(self, number: int, losses: list[float], judges: Mapping[str, Callable[[Pack], Tensor]]) -> None:
        is_last = number == self.plan.num_steps
        points = [{"loss": loss} for loss in losses]
        for seed, loss in zip(self.seeds, losses, strict=True):
            if not math.isfinite(loss):
                what = f"the loss of the classifier with seed {seed} is {loss} at step {number}"
                raise StageError(what, code="non-finite", where="evaluate", fix="lower the protocol's learning_rate")
        for name, judge in judges.items():
            if name == "test" and self.spec.tests != "all" and not is_last:
                continue
            confusion = judge(self.pack)
            for point, share in zip(points, top1(confusion), strict=True):
                point[f"{name}_top1"] = share
            if is_last and name == ("test" if "test" in judges else "val"):
                self.confusion = confusion
        for index, (point, history, ctx) in enumerate(zip(points, self.history, self.ctxs, strict=True)):
            is_best = "val_top1" in point and all(point["val_top1"] > before["val_top1"] for before in history)
            if is_best and (self.spec.tests != "all" or self.spec.keep_weights):
                self._selected[index] = self.pack.weights(index)
            history.append(point)
            ctx.report(number, point)

    def _judge_selected(self, judges: Mapping[str, Callable[[Pack], Tensor]]) -> None:
        """Adds the test accuracy of the selected weights to the last point, where the tests on the way have not told it."""
        if self.spec.tests == "all" or "test" not in judges or not self._selected:
            return
        last = [self.pack.weights(index) for index in range(self.pack.num)]
        for index, weights in self._selected.items():
            self.pack.load(index, weights)
        for index, share in enumerate(top1(judges["test"](self.pack))):
            self.history[index][-1]["test_top1_selected"] = share
        for index, weights in enumerate(last):
            self.pack.load(index, weights)

    def finish(self, index: int, out: Path) -> dict[str, float]:
        if self.confusion is not None:
            counts = self.confusion[index]
            per_class = (counts.diagonal() / counts.sum(dim=1)).tolist()
            result = {
                "protocol": self.protocol.label,
                "measured_on": "validation" if self.spec.tests == "none" else "test",
                "per_class_top1": dict(zip(self.spec.images.classes, per_class, strict=True)),
                "confusion": counts.tolist(),
            }
            (out / "result.json").write_text(json.dumps(result))
        if self.spec.keep_weights:
            weights = {"last": self.pack.weights(index)}
            if index in self._selected:
                weights["selected"] = self._selected[index]
            tensors = {
                f"{which}.{name}": tensor.contiguous() for which, named in weights.items() for name, tensor in named.items()
            }
            save_file(tensors, out / "weights.safetensors")
        return _summary(self.history[index], self.spec)


def _summary(history: list[dict[str, float]], spec: EvaluateSpec) -> dict[str, float]:
    last = history[-1]
    summary = {"train_loss": last["loss"], "num_test_looks": float(sum("test_top1" in point for point in history))}
    if "test_top1" in last:
        summary["top1_last"] = last["test_top1"]
    if spec.tests == "all":
        summary["top1_best"] = max(point["test_top1"] for point in history)
    if "val_top1" in last:
        chosen = max(history, key=lambda point: point["val_top1"])  # the earliest on a tie
        summary |= {"val_top1": last["val_top1"], "val_top1_best": chosen["val_top1"]}
        if spec.tests == "all":
            summary["top1_selected"] = chosen["test_top1"]
        if "test_top1_selected" in last:
            summary |= {"top1_selected": last["test_top1_selected"], "num_test_looks": 2.0}
    return summary


def _optimizer(
    pack: Pack, protocol: ProtocolSpec, plan: StepPlan, device: str
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer: torch.optim.Optimizer
    rate, decay, fused = protocol.learning_rate, protocol.weight_decay, device.startswith("cuda")
    groups: list[dict[str, Any]] = [{"params": pack.parameters()}]
    if protocol.decays == "matrices":
        matrices, others = pack.matrices_and_others()
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    if protocol.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=protocol.momentum, weight_decay=decay, fused=fused)
    if protocol.schedule == "one_cycle":
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=plan.num_steps + 1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(protocol.schedule, plan, step))


def rate_factor(schedule: str, plan: StepPlan, step: int) -> float:
    """The factor on the learning rate at step 0, 1, ...: it changes between epochs, or between steps when steps were given."""
    done, whole = (step, plan.num_steps) if plan.counts_steps else (step // plan.steps_per_epoch, plan.num_epochs)
    if schedule == "half_cosine":
        return 0.5 * (1 + math.cos(math.pi * done / whole / 2))
    return 0.2 ** ((done >= 2 * whole // 3) + (done >= 5 * whole // 6))
