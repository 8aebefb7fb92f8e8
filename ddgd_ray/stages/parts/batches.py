"""The random numbers of a classifier's training, drawn from its seed alone: order, crops, colours, boxes.

Shapes: K classifiers trained at once, B batch, T images over the steps of a block, C channels, S side in pixels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddgd_ray.method import augment
from ddgd_ray.method.arrivals import staged
from ddgd_ray.spec.protocol import ProtocolSpec, StepPlan

BLOCK = 32  # steps drawn at once: few enough to fit, enough that drawing and sending cost nothing; part of what a seed means


class RandomDraws:
    """The random numbers of one classifier, in blocks of steps; they follow from its seed, the set's size and the protocol."""

    def __init__(self, protocol: ProtocolSpec, plan: StepPlan, size: int, seed: int) -> None:
        self._protocol, self._plan, self._size = protocol, plan, size
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)

    def block(self, lengths: Sequence[int]) -> dict[str, Tensor]:
        """The random numbers of T = sum(lengths) images, by name, as far as the protocol asks for them.

        rows (T,); crops (T, 4), mirrored (T,), shifts (T, 2), factors and order (T, 3), alphas (T, 3), partner (T,) inside the
        step; boxes (len(lengths), 4).
        """
        protocol, generator, total = self._protocol, self._generator, sum(lengths)
        drawn = {"rows": torch.cat([self._rows(length) for length in lengths])}
        if protocol.crop_scale < 1:
            drawn["crops"] = augment.draw_crops(total, self._size, scale=(protocol.crop_scale, 1.0), generator=generator)
        if protocol.flip:
            drawn["mirrored"] = augment.draw_mirrored(total, generator)
        if protocol.shift:
            drawn["shifts"] = augment.draw_shifts(total, protocol.shift, generator=generator)
        if protocol.jitter:
            drawn["factors"] = augment.draw_factors(total, (protocol.jitter,) * 3, generator=generator)
            drawn["order"] = augment.draw_orders(total, generator)
        if protocol.lighting:
            drawn["alphas"] = augment.draw_alphas(total, std=protocol.lighting, generator=generator)
        if protocol.cutmix:
            partners = [augment.draw_partners(1, length, generator=generator)[0] for length in lengths]
            drawn["partner"] = torch.cat(partners)
            drawn["boxes"] = augment.draw_boxes(len(lengths), self._size, generator=generator)
        return drawn

    def _rows(self, length: int) -> Tensor:
        """The next images of the epoch; what is left of an epoch and fills no batch is dropped by not being asked for."""
        if len(self._order) < length:
            self._order = torch.randperm(self._plan.num_images, generator=self._generator)
        rows, self._order = self._order[:length], self._order[length:]
        return rows


def steps_of(
    protocol: ProtocolSpec, plan: StepPlan, size: int, seeds: Sequence[int], device: str
) -> Iterator[dict[str, Tensor]]:
    """The draws of each step for K seeds, (K, B, ...) on the device; boxes are (K, 4). One transfer a block."""
    draws = [RandomDraws(protocol, plan, size, seed) for seed in seeds]
    for start in range(0, plan.num_steps, BLOCK):
        lengths = [plan.length(step) for step in range(start, min(start + BLOCK, plan.num_steps))]
        blocks = [one.block(lengths) for one in draws]
        together = {name: staged(torch.stack([block[name] for block in blocks]), torch.device(device)) for name in blocks[0]}
        begin = 0
        for index, length in enumerate(lengths):
            step = {name: drawn[:, begin : begin + length] for name, drawn in together.items() if name != "boxes"}
            if "boxes" in together:
                step["boxes"] = together["boxes"][:, index]
            begin += length
            yield step


def augmented(images_TCSS: Tensor, step: dict[str, Tensor], protocol: ProtocolSpec) -> Tensor:
    """Images (K * B, C, S, S) uint8 as float after crop, flip, shift, jitter, lighting and normalisation, in this order."""
    flat = {name: values.flatten(0, 1) for name, values in step.items() if name not in ("boxes", "partner")}
    if "crops" in flat:
        mirrored = flat.get("mirrored", torch.zeros_like(flat["rows"], dtype=torch.bool))
        x = augment.resize_crops(images_TCSS, flat["crops"], mirrored=mirrored, size=images_TCSS.shape[-1])
    else:
        x = images_TCSS.float() / 255
        x = augment.mirror(x, flat["mirrored"]) if "mirrored" in flat else x
    x = augment.shift(x, flat["shifts"]) if "shifts" in flat else x
    x = augment.color_jitter(x, flat["factors"], flat["order"], clamped=protocol.jitter_clamped) if "factors" in flat else x
    x = augment.lighting(x, flat["alphas"]) if "alphas" in flat else x
    return augment.normalize(x)
