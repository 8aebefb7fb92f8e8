"""A sampling's guide and its start, for the images of one batch.

Shapes: B images of a batch, c latent channels, s side of the latent, D = c s s, K centres, G images of a group.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddgd_ray.method.dit import hidden_states
from ddgd_ray.method.guidance import (
    Guide,
    Step,
    Window,
    along_manifold,
    down_the_gradient,
    feature_cost,
    gradient_of,
    group_transport_cost,
    noised_like,
    toward_modes,
)
from ddgd_ray.method.inversion import best_group, noised_to, num_steps_run
from ddgd_ray.method.noise import linear_schedule
from ddgd_ray.method.sampling import Denoiser, noise_stream
from ddgd_ray.spec.stages import SampleSpec
from ddgd_ray.stages.invert import read_moments
from ddgd_ray.stages.modes import Modes, read_modes

Item = tuple[int, int]  # (label, index)


class Steering:
    """What the inputs `modes` and `moments` of a sampling say, put into the form that method.sampling.sample takes."""

    def __init__(self, spec: SampleSpec, inputs: dict[str, Path], model: Any, denoise: Denoiser, device: str) -> None:
        self.spec, self._model, self._denoise, self._device = spec, model, denoise, device
        self._modes = read_modes(inputs["modes"], device) if spec.needs_modes else None
        self._moments = read_moments(inputs["moments"]) if spec.start.name == "inversion" else []
        self._window = Window(*spec.guide.window(spec.steps))
        self._best_groups: dict[int, Tensor] = {}

    @property
    def group(self) -> int:
        """How many images of a class, by index, must be drawn together: what happens to one depends on the others."""
        return self.spec.guide.group if self.spec.guide.name == "transport" and self.spec.guide.strength else 1

    @property
    def first(self) -> int:
        """The place of the first step that is run."""
        if self.spec.start.name == "noise":
            return 0
        return self.spec.steps - num_steps_run(self.spec.start.strength, self.spec.steps)

    def begin(self, items: Sequence[Item]) -> Callable[[Tensor], Tensor] | None:
        """The latents of the first step from the images' first noise, None where they are the noise itself."""
        start, num_steps = self.spec.start, self.spec.steps
        if start.name == "prototype":
            origins = self._targets(items)
            return lambda eps: noised_to(linear_schedule(), origins, eps, strength=start.strength, num_steps=num_steps)
        if start.name == "inversion":
            return lambda eps: torch.stack([self._draws(label)[index] for label, index in items]).view_as(eps).to(eps)
        return None

    def guide(self, items: Sequence[Item]) -> Guide | None:
        """None where nothing is guided: a strength of 0 is no guidance, to the bit and to the second."""
        chosen = self.spec.guide
        if chosen.name == "none" or chosen.strength == 0:
            return None
        targets = self._targets(items)
        if chosen.name == "mode":
            move = functools.partial(toward_modes, modes=targets, strength=chosen.strength)
            return lambda step: move(step.mean, step.x0, step.sigma_t, step.index, self._window)
        if chosen.name == "manifold":
            tangents = torch.stack([self._of(label).tangents[index] for label, index in self._places(items)])
            along = functools.partial(along_manifold, modes=targets, tangents_BdD=tangents, strength=chosen.strength)
            return lambda step: along(step.mean, step.x0, step.sigma_t, step.index, self._window)
        cost = self._transport_cost(items) if chosen.name == "transport" else self._feature_cost(targets)
        return functools.partial(self._down, cost)

    def _down(self, cost: Callable[[Step, Tensor], Tensor], step: Step) -> Tensor:
        if not self._window.has(step.index):  # before the gradient: it costs more than the step
            return step.mean
        gradient = gradient_of(functools.partial(cost, step), step.z_t)
        strength = self.spec.guide.strength
        return down_the_gradient(step.mean, step.sigma_t, step.index, self._window, gradient=gradient, strength=strength)

    def _feature_cost(self, targets: Tensor) -> Callable[[Step, Tensor], Tensor]:
        blocks = self.spec.guide.blocks(len(self._model.transformer_blocks))

        def cost(step: Step, z: Tensor) -> Tensor:
            t_B, labels_B = step.t_B.clone(), step.labels_B.clone()  # made in inference mode, which autograd refuses
            with torch.no_grad():
                target = noised_like(targets, step)
                wanted = hidden_states(self._model, target, t_B, labels_B, num_blocks=blocks.stop)[blocks]
            return feature_cost(hidden_states(self._model, z, t_B, labels_B, num_blocks=blocks.stop)[blocks], wanted)

        return cost

    def _transport_cost(self, items: Sequence[Item]) -> Callable[[Step, Tensor], Tensor]:
        labels = [label for label, _ in items[:: self.group]]
        modes, chosen = self._modes_read, self.spec.guide
        centres, weights = [self._points[label] for label in labels], [modes.weights_YK[label] for label in labels]

        def cost(step: Step, z: Tensor) -> Tensor:
            eps = self._denoise(z, step.t_B.clone(), step.labels_B.clone())[:, : z.shape[1]]
            x0 = (z - (1 - step.abar) ** 0.5 * eps) / step.abar**0.5
            return group_transport_cost(x0, centres, weights, epsilon=chosen.epsilon, num_iterations=chosen.iterations)

        return cost

    def _draws(self, label: int) -> Tensor:
        """The best group (n, D) of draws for a class: image i's candidates are the numbers of its own stream, in order."""
        if label not in self._best_groups:
            spec, wanted = self.spec, self._moments[label]
            num = -(-spec.ipc // self.group) * self.group
            streams = [noise_stream(spec.seed, spec.images.classes[label], index) for index in range(num)]
            size = len(wanted.mean_D)
            groups = (torch.stack([torch.randn(size, generator=one) for one in streams]) for _ in range(spec.start.groups))
            self._best_groups[label] = best_group(groups, wanted)[1]
        return self._best_groups[label]

    @property
    def _modes_read(self) -> Modes:
        assert self._modes is not None, "plan gives modes to a sampling that needs them"
        return self._modes

    @property
    def _points(self) -> Tensor:
        modes = self._modes_read
        return modes.nearest if self.spec.modes.kind == "nearest" or self.spec.guide.name == "features" else modes.centres

    def _of(self, label: int) -> Modes:
        return Modes(*(one[label] for one in self._modes_read))

    def _places(self, items: Sequence[Item]) -> list[Item]:
        """(label, centre) of each image: index modulo the number of centres."""
        num = self._modes_read.centres.shape[1]
        return [(label, index % num) for label, index in items]

    def _targets(self, items: Sequence[Item]) -> Tensor:
        """(B, c, s, s): each image's own point."""
        return torch.stack([self._points[label, place] for label, place in self._places(items)])
