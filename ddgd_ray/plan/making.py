"""From a fine-tuning to a set: the calls that lie between, by what a preset says of guides, starts and selection."""

from pathlib import Path
from typing import Any

from ddgd_ray.inputs.fingerprints import training_images_per_class
from ddgd_ray.plan.preset_calls import PresetCalls
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.evaluation import SelectSpec
from ddgd_ray.spec.pick import FEATURE_RULES, SCORE_RULES, TRAINED_RULES, PickSpec, ScoresSpec
from ddgd_ray.spec.ways import InvertSpec
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.storage.manifest import Ref

Inputs = dict[str, Ref | Outside]


def with_values(spec: Any, **values: Any) -> Any:
    """A copy of a spec with these values in place of its own, validated."""
    assert isinstance(spec, Spec)
    return type(spec).model_validate({**{name: getattr(spec, name) for name in type(spec).model_fields}, **values})


def made(common: PresetCalls, seed: int, ipc: int) -> tuple[StageCall, ...]:
    """The calls that make a set of `ipc` images a class, in order; the last one is the set."""
    chosen = common.preset.select
    if chosen.rule == "none":
        return _sampled(common, seed, ipc, ipc)
    spec = with_values(chosen, seed=seed, ipc=ipc)
    if chosen.rule == "rded":
        return (StageCall(spec, {"images": common.images, "teacher": common.reference(0)}),)
    calls, pools = _pools(common, spec)
    inputs: Inputs = dict(pools)
    if chosen.rule in FEATURE_RULES:
        for kind, pool in pools.items():
            calls.append(common.set_features(chosen.space, pool, 0))
            inputs[f"{kind}_features"] = calls[-1].ref
    if chosen.rule in SCORE_RULES:
        calls.append(_scored(common, spec, pools))
        inputs["scores"] = calls[-1].ref
    return (*calls, StageCall(spec, inputs))


def _pools(common: PresetCalls, spec: PickSpec) -> tuple[list[StageCall], Inputs]:
    """The calls behind the pools, and the pools by kind. Of real images there may be fewer than a pool asks for."""
    size, calls, pools = spec.pool * spec.ipc, list[StageCall](), Inputs()
    if spec.of != "real":
        calls += _sampled(common, spec.seed, size, spec.ipc)
        pools["generated"] = calls[-1].ref
    if spec.of != "generated":
        available = training_images_per_class(spec.images, Path(common.images.path))
        drawn = SelectSpec(method="random", ipc=min(size, available), images=spec.images, seed=spec.seed)
        calls.append(StageCall(drawn, {"images": common.images}))
        pools["real"] = calls[-1].ref
    return calls, pools


def _scored(common: PresetCalls, spec: PickSpec, pools: Inputs) -> StageCall:
    reference = common.preset.reference
    size = reference.protocol.size or spec.images.size
    if spec.rule in TRAINED_RULES:
        trained = {"network": reference.network, "protocol": reference.protocol, "trainings": spec.trainings, "seed": spec.seed}
        scores = ScoresSpec(rule=spec.rule, size=size, images=spec.images, **trained)  # type: ignore[arg-type]
        return StageCall(scores, pools)
    scores = ScoresSpec(rule="confidence", size=size, images=spec.images)
    return StageCall(scores, {**pools, "model": common.reference(0)})


def _sampled(common: PresetCalls, seed: int, num: int, ipc: int) -> tuple[StageCall, ...]:
    """The fine-tuning, what a sampling of `num` images a class needs of it, and the sampling. ipc: of the set in the end."""
    preset = common.preset
    # without fine-tuning there is nothing random before sampling: all seeds share one adapter
    tuned = with_values(preset.finetune, seed=seed if preset.finetune.steps else 0)
    tune = StageCall(tuned, {"latents": common.latents, "backbone": common.backbone})
    spec = with_values(preset.sample, seed=seed, ipc=num)
    inputs: Inputs = {"backbone": common.backbone, "adapter": tune.ref, "autoencoder": common.autoencoder}
    between = []
    if spec.needs_modes:
        inputs["modes"] = common.modes(ipc)
    if spec.spectral_gain > 1:
        inputs["spectrum"] = common.spectrum
    if spec.start.name == "inversion":
        of_classes = InvertSpec(strength=spec.start.strength, steps=spec.steps, weights=spec.weights, images=preset.images)
        needs: Inputs = {"latents": common.latents, "backbone": common.backbone, "adapter": tune.ref}
        between.append(StageCall(of_classes, needs))
        inputs["moments"] = between[-1].ref
    return (tune, *between, StageCall(spec, inputs))
