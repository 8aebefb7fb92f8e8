"""From a fine-tuning to a set: the calls that lie between, by what a preset says of guides, starts and selection."""

from typing import Any

from ddgd_ray.plan.preset_calls import PresetCalls
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.ways import InvertSpec
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.storage.manifest import Ref


def with_values(spec: Any, **values: Any) -> Any:
    """A copy with other values, validated."""
    assert isinstance(spec, Spec)
    return type(spec).model_validate({**{name: getattr(spec, name) for name in type(spec).model_fields}, **values})


def sampled(common: PresetCalls, tune: StageCall, seed: int, num: int) -> tuple[StageCall, ...]:
    """The fine-tuning, what a sampling of `num` images a class needs of it, and the sampling, in order."""
    spec = with_values(common.preset.sample, seed=seed, ipc=num)
    inputs: dict[str, Ref | Outside] = {
        "backbone": common.backbone,
        "adapter": tune.ref,
        "autoencoder": common.autoencoder,
    }
    between = []
    if spec.needs_modes:
        inputs["modes"] = common.modes(num)
    if spec.spectral_gain > 1:
        inputs["spectrum"] = common.spectrum
    if spec.start.name == "inversion":
        of_classes = InvertSpec(
            strength=spec.start.strength, steps=spec.steps, weights=spec.weights, images=common.preset.images
        )
        between.append(StageCall(of_classes, {"latents": common.latents, "backbone": common.backbone, "adapter": tune.ref}))
        inputs["moments"] = between[-1].ref
    return (tune, *between, StageCall(spec, inputs))
