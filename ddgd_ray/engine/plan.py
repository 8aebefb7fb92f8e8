"""From a sweep to stage calls with keys. Pure: looks at nothing but specs and fingerprints."""

import hashlib
import importlib.util
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.sources import images_source, training_images_per_class
from ddgd_ray.spec.base import Spec, canonical_json
from ddgd_ray.spec.preset import Preset, WeightsSpec
from ddgd_ray.spec.recipe import RECIPE
from ddgd_ray.spec.stages import SelectSpec
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.store import Store
from ddgd_ray.weights import weights_source

Ref = tuple[str, str]


@dataclass(frozen=True)
class Evaluator:
    """One classifier to train on a trial's set."""

    network: str
    ipc: int
    seed: int
    call: StageCall


@dataclass(frozen=True)
class Trial:
    """One distilled (or control) set: an arm at one distillation seed, and the evaluators that depend on it."""

    arm: str
    params: Mapping[str, Any]
    seed: int
    is_control: bool
    prepare: tuple[StageCall, ...]
    build: tuple[StageCall, ...]
    evaluators: tuple[Evaluator, ...]

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"

    def calls(self) -> Iterator[StageCall]:
        yield from self.prepare
        yield from self.build
        yield from (evaluator.call for evaluator in self.evaluators)


def grid(sweep: Sweep) -> list[dict[str, Any]]:
    """Every combination of the varied values, the last field fastest."""
    names = list(sweep.spec.vary)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*sweep.spec.vary.values())]


def arm_name(params: Mapping[str, Any]) -> str:
    """Short, unique for these values, and fit for a file name; strategies and numbers read as they are written."""
    words = [str(value).removesuffix("_similarity") for value in params.values()]
    plain = [re.sub(r"[^A-Za-z0-9.+-]", "-", word) for word in words]
    name = "_".join(plain) or "base"
    if plain == words and len(name) <= 60:
        return name
    return f"{name[:50]}-{hashlib.sha256(canonical_json(dict(params)).encode()).hexdigest()[:6]}"


def plan_arm(sweep: Sweep, arm: str, params: Mapping[str, Any]) -> list[Trial]:
    """One configuration at every distillation seed."""
    preset = sweep.preset_with(params)
    shared = _Shared(preset)
    return [_distill(sweep, shared, preset, arm, params, seed, is_control=False) for seed in sweep.spec.seeds.distill]


def plan_controls(sweep: Sweep) -> list[Trial]:
    """The arms that are compared with: real images, and the recipes `plain` and `pretrained`."""
    preset = sweep.preset_with({})
    shared = _Shared(preset)
    trials = []
    for control in sweep.spec.controls:
        if control == "full_data":
            trials.append(_real(sweep, shared, preset, control, "all", 0, seed=0))
            continue
        for seed in sweep.spec.seeds.distill:
            if control == "random_real":
                _check_ipc(sweep, shared, preset)
                trials.append(_real(sweep, shared, preset, control, "random", max(sweep.spec.evaluate.ipc), seed))
                continue
            trials.append(_distill(sweep, shared, sweep.preset_with({RECIPE: control}), control, {}, seed, is_control=True))
    return trials


class _Shared:
    """Inputs that all trials of a preset have in common: images, autoencoder, latents, backbone."""

    def __init__(self, preset: Preset) -> None:
        fingerprint, root = images_source(preset.images)
        self.images = Outside(fingerprint, str(root))
        self.prepare: list[StageCall] = []
        if isinstance(preset.autoencoder, WeightsSpec):
            self.autoencoder = self._adopt(preset.autoencoder)
        else:
            self.autoencoder = self._add(StageCall(preset.autoencoder, {"images": self.images}))
        self.latents = self._add(StageCall(preset.encode, {"images": self.images, "autoencoder": self.autoencoder}))
        if isinstance(preset.backbone, WeightsSpec):
            self.backbone = self._adopt(preset.backbone)
        else:
            self.backbone = self._add(StageCall(preset.backbone, {"latents": self.latents}))

    def _adopt(self, weights: WeightsSpec) -> Ref:
        source = weights_source(weights)
        return self._add(StageCall(weights.adopted(), {"weights": Outside(source.fingerprint, str(source.path))}))

    def _add(self, call: StageCall) -> Ref:
        self.prepare.append(call)
        return call.ref


def _check_ipc(sweep: Sweep, shared: _Shared, preset: Preset) -> None:
    available = training_images_per_class(preset.images, Path(shared.images.path))
    wanted = max(sweep.spec.evaluate.ipc)
    if wanted > available:
        raise SpecError(
            f"control random_real needs {wanted} images a class, the smallest class has {available} training images",
            code="out-of-range",
            where=sweep.source.where(("evaluate", "ipc")),
            fix=f"use ipc {available} or less, or leave out random_real",
        )


def shared_calls(preset: Preset) -> tuple[StageCall, ...]:
    """What comes before any trial of a preset: autoencoder, latents, backbone."""
    return tuple(_Shared(preset).prepare)


def _with(spec: Any, **values: Any) -> Any:
    """A copy with other values, validated."""
    assert isinstance(spec, Spec)
    return type(spec).model_validate({**{name: getattr(spec, name) for name in type(spec).model_fields}, **values})


def _distill(
    sweep: Sweep, shared: _Shared, preset: Preset, arm: str, params: Mapping[str, Any], seed: int, *, is_control: bool
) -> Trial:
    _check_packages(preset)
    # without fine-tuning there is nothing random before sampling: all seeds share one adapter
    finetune = _with(preset.finetune, seed=seed if preset.finetune.steps else 0)
    tune = StageCall(finetune, {"latents": shared.latents, "backbone": shared.backbone})
    drawn = StageCall(
        _with(preset.sample, seed=seed, ipc=max(sweep.spec.evaluate.ipc)),
        {"backbone": shared.backbone, "adapter": tune.ref, "autoencoder": shared.autoencoder},
    )
    evaluators = _evaluators(sweep, shared, preset, drawn, sweep.spec.evaluate.ipc)
    return Trial(arm, dict(params), seed, is_control, tuple(shared.prepare), (tune, drawn), evaluators)


def _check_packages(preset: Preset) -> None:
    if preset.finetune.adapter == "lora" and importlib.util.find_spec("peft") is None:
        raise StageError(
            "adapter lora needs the package peft",
            code="missing-package",
            where="finetune.adapter",
            fix="pip install 'ddgd-ray[lora]'",
        )


def _real(sweep: Sweep, shared: _Shared, preset: Preset, arm: str, method: Any, ipc: int, seed: int) -> Trial:
    select = StageCall(SelectSpec(method=method, ipc=ipc, images=preset.images, seed=seed), {"images": shared.images})
    evaluators = _evaluators(sweep, shared, preset, select, sweep.spec.evaluate.ipc if ipc else (0,))
    return Trial(arm, {}, seed, True, (), (select,), evaluators)


def _evaluators(
    sweep: Sweep, shared: _Shared, preset: Preset, made: StageCall, all_ipc: tuple[int, ...]
) -> tuple[Evaluator, ...]:
    result = []
    for network, ipc, seed in itertools.product(sweep.spec.evaluate.networks, all_ipc, sweep.spec.seeds.evaluate):
        spec = _with(preset.evaluate, network=network, ipc=ipc, seed=seed)
        call = StageCall(spec, {"set": made.ref, "images": shared.images})
        result.append(Evaluator(network, ipc, seed, call))
    return tuple(result)


@dataclass(frozen=True)
class StageCount:
    """How often a stage runs and how often it is there already; equal calls count once."""

    stage: str
    hits: int
    misses: int


def count_stages(trials: list[Trial], store: Store) -> list[StageCount]:
    calls = {call.ref: call for trial in trials for call in trial.calls()}
    order = list(dict.fromkeys(call.stage for call in calls.values()))
    result = []
    for stage in order:
        published = [store.has(*ref) for ref in calls if ref[0] == stage]
        result.append(StageCount(stage, sum(published), len(published) - sum(published)))
    return result
