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
from ddgd_ray.inputs.fingerprints import resolve, set_source, training_images_per_class
from ddgd_ray.plan.making import made, with_values
from ddgd_ray.plan.preset_calls import Measure, PresetCalls
from ddgd_ray.spec.base import canonical_json
from ddgd_ray.spec.evaluation import FeatureSpace, SelectSpec, TestSpec
from ddgd_ray.spec.preset import Preset
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.recipe import RECIPE
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.spec.sweep_spec import NO_AUGMENTATION_OF_MAIN
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.storage.manifest import Ref


@dataclass(frozen=True)
class Evaluator:
    """One classifier to train on a trial's set. seed: as seeds.evaluate lists it; the call's own is drawn with the trial's.

    test: the call that looks at the test images for a finalist; None where `call` looks at them itself.
    """

    network: str
    ipc: int
    seed: int
    call: StageCall
    protocol: str
    is_main: bool = True
    """It follows the preset's own protocol; the objective looks at such evaluators alone."""
    test: StageCall | None = None
    labels: StageCall | None = None
    """What stores the soft labels that it learns from; None where it needs none."""


@dataclass(frozen=True)
class Trial:
    """One distilled, control or ready-made set: an arm at one distillation seed, with all calls that lead to its results.

    prepare: the calls that the trial has in common with others, in an order in which they can be made. build: the calls that
    make its set; none for a ready-made one.
    """

    arm: str
    params: Mapping[str, Any]
    seed: int
    is_control: bool
    prepare: tuple[StageCall, ...]
    build: tuple[StageCall, ...]
    evaluators: tuple[Evaluator, ...]
    measures: tuple[Measure, ...] = ()
    folder: str = ""
    """The folder of a ready-made set; "" for others."""
    rung: int | None = None
    """The rung at whose cheaper setting this trial runs; None at the full setting."""

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}" if self.rung is None else f"{self.arm}@r{self.rung}-s{self.seed}"

    @property
    def labels(self) -> tuple[StageCall, ...]:
        """The calls that store soft labels beside the set, each once."""
        calls = (evaluator.labels for evaluator in self.evaluators if evaluator.labels is not None)
        return tuple({call.ref: call for call in calls}.values())

    def calls(self) -> Iterator[StageCall]:
        """All calls of the trial except the finalists' tests."""
        yield from self.prepare
        yield from self.build
        yield from self.labels
        yield from (evaluator.call for evaluator in self.evaluators)
        yield from (call for measure in self.measures for call in measure.calls)


def arm_name(params: Mapping[str, Any]) -> str:
    """A name that is short, unique for these values and fit for a file; strategies and numbers read as they are written."""
    words = [str(value).removesuffix("_similarity") for value in params.values()]
    plain = [re.sub(r"[^A-Za-z0-9.+-]", "-", word) for word in words]
    name = "_".join(plain) or "base"
    if plain == words and len(name) <= 60:
        return name
    return f"{name[:50]}-{hashlib.sha256(canonical_json(dict(params)).encode()).hexdigest()[:6]}"


def plan_arm(sweep: Sweep, arm: str, params: Mapping[str, Any]) -> list[Trial]:
    """The trials of one configuration, one for each distillation seed."""
    common = PresetCalls(sweep.preset_with(params))
    return [_distill(sweep, common, arm, params, seed, is_control=False) for seed in sweep.spec.seeds.distill]


def plan_controls(sweep: Sweep) -> list[Trial]:
    """The trials to compare with: real images, the recipes `plain` and `pretrained`, and the ready-made sets."""
    common = PresetCalls(sweep.preset_with({}))
    largest = max(sweep.spec.evaluate.ipc)
    trials = []
    for control in sweep.spec.controls:
        method = control if control == "herding_idc" else control.partition("_")[0]
        space: FeatureSpace = "latents" if control.endswith("_latents") else "network"
        seeds = sweep.spec.seeds.distill
        if control == "full_data":
            trials.append(_real(sweep, common, control, common.all_images(), seed=0))
        elif control in ("pretrained", "plain"):
            of_recipe = PresetCalls(sweep.preset_with({RECIPE: control}))
            trials += [_distill(sweep, of_recipe, control, {}, seed, is_control=True) for seed in seeds]
        else:
            _check_ipc(sweep, common, control)
            # herding by latents draws nothing: one set, however many seeds
            for seed in seeds[:1] if control == "herding_latents" else seeds:
                spec = SelectSpec(method=method, ipc=largest, images=common.preset.images, seed=seed)  # type: ignore[arg-type]
                inputs: dict[str, Ref | Outside] = {"images": common.images}
                if method != "random":
                    inputs["features"] = common.real_features(space, seed)
                trials.append(_real(sweep, common, control, StageCall(spec, inputs), seed))
    arms = {arm_name(params) for params in sweep.spec.grid()} if sweep.spec.sets else set()
    for name, folders in sweep.spec.sets.items():
        if name in arms:  # their records would be one
            where = sweep.source.where(("sets", name))
            raise SpecError(f"{name} is also an arm of `vary`", code="name-twice", where=where, fix="give the set another name")
        paths = folders if isinstance(folders, tuple) else (folders,)
        trials += [_ready_made(sweep, common, name, str(path), seed) for seed, path in enumerate(paths)]
    return trials


def _check_ipc(sweep: Sweep, common: PresetCalls, control: str) -> None:
    available = training_images_per_class(common.preset.images, Path(common.images.path))
    wanted = max(sweep.spec.evaluate.ipc)
    if wanted > available:
        raise SpecError(
            f"control {control} needs {wanted} images a class, the smallest class has {available} training images",
            code="out-of-range",
            where=sweep.source.where(("evaluate", "ipc")),
            fix=f"use ipc {available} or less, or leave out {control}",
        )


def common_calls(preset: Preset) -> tuple[StageCall, ...]:
    """The calls that every distilled set of a preset needs: autoencoder, latents, backbone."""
    common = PresetCalls(preset)
    tune = StageCall(preset.finetune, {"latents": common.latents, "backbone": common.backbone})
    return common.needed_by([tune])


def _distill(sweep: Sweep, common: PresetCalls, arm: str, params: Mapping[str, Any], seed: int, *, is_control: bool) -> Trial:
    preset = common.preset
    _check_packages(preset)
    build = made(common, seed, max(sweep.spec.evaluate.ipc))
    return _trial(sweep, common, arm, params, seed, is_control, build, build[-1].ref, sweep.spec.evaluate.ipc)


def _check_packages(preset: Preset) -> None:
    if preset.finetune.adapter == "lora" and importlib.util.find_spec("peft") is None:
        raise StageError(
            "adapter lora needs the package peft",
            code="missing-package",
            where="finetune.adapter",
            fix="pip install 'ddgd-ray[lora]'",
        )


def _real(sweep: Sweep, common: PresetCalls, arm: str, select: StageCall, seed: int) -> Trial:
    all_ipc = sweep.spec.evaluate.ipc if arm != "full_data" else (0,)
    return _trial(sweep, common, arm, {}, seed, True, (select,), select.ref, all_ipc)


def _ready_made(sweep: Sweep, common: PresetCalls, arm: str, folder: str, seed: int) -> Trial:
    where = sweep.source.where(("sets", arm))
    source = set_source(resolve(folder, where), common.preset.images.classes)
    wanted = max(sweep.spec.evaluate.ipc)
    if wanted > source.smallest:
        raise StageError(
            f"ipc {wanted} is more than the {source.smallest} images of its smallest class",
            code="data-missing",
            where=source.path,
            fix=f"use ipc {source.smallest} or less",
        )
    made = Outside(source.fingerprint, source.path)
    return _trial(sweep, common, arm, {}, seed, False, (), made, sweep.spec.evaluate.ipc, folder=source.path)


def _trial(
    sweep: Sweep,
    common: PresetCalls,
    arm: str,
    params: Mapping[str, Any],
    seed: int,
    is_control: bool,
    build: tuple[StageCall, ...],
    made: Ref | Outside,
    all_ipc: tuple[int, ...],
    folder: str = "",
) -> Trial:
    """The trial of this set, with its evaluators, its measures and the common calls that these need."""
    evaluators = tuple(_evaluators(sweep, common, made, all_ipc, seed))
    measures = tuple(common.measure(space, made, ipc) for space in sweep.spec.quality for ipc in all_ipc if ipc)
    own = [*build, *(one.labels for one in evaluators if one.labels), *(one.call for one in evaluators)]
    own += (call for measure in measures for call in measure.calls)
    prepare = common.needed_by(own)
    return Trial(arm, dict(params), seed, is_control, prepare, build, evaluators, measures, folder)


def classifier_seed(distill_seed: int, evaluate_seed: int) -> int:
    """The seed that a classifier is trained with: drawn from both seeds, so the same for every arm at this place.

    Were it the evaluator's seed alone, all distillation seeds would share the luck of the same few classifiers: it would not
    show in the spread over distillation seeds, though it is part of every mean.
    """
    digest = hashlib.sha256(f"classifier {distill_seed} {evaluate_seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _evaluators(
    sweep: Sweep, common: PresetCalls, made: Ref | Outside, all_ipc: tuple[int, ...], distill_seed: int
) -> Iterator[Evaluator]:
    main = common.preset.evaluate.protocol
    protocols: dict[str, ProtocolSpec] = {}
    for protocol in (main, *(_protocol(name, main) for name in sweep.spec.evaluate.also)):
        protocols.setdefault(canonical_json(protocol.canonical()), protocol)  # a name of `also` may be the main one's
    for protocol in protocols.values():
        inputs: dict[str, Ref | Outside] = {"set": made, "real": common.decoded(protocol)}
        if protocol.labels == "teacher":
            inputs["teacher"] = common.reference(0)
        labels = common.stored_labels(protocol, made, max(all_ipc)) if protocol.labels == "stored" else None
        if labels is not None:
            inputs["labels"] = labels.ref
        for network, ipc, seed in itertools.product(sweep.spec.evaluate.networks, all_ipc, sweep.spec.seeds.evaluate):
            own = classifier_seed(distill_seed, seed)
            fields = {"network": network, "ipc": ipc, "seed": own, "protocol": protocol}
            test = None
            if sweep.spec.test == "finalists":
                call = StageCall(with_values(common.preset.evaluate, **fields, tests="none", keep_weights=True), inputs)
                test = StageCall(TestSpec(), {"classifier": call.ref, "real": inputs["real"]})
            else:
                call = StageCall(with_values(common.preset.evaluate, **fields), inputs)
            yield Evaluator(network, ipc, seed, call, protocol.label, protocol == main, test, labels)


def _protocol(name: str, main: ProtocolSpec) -> ProtocolSpec:
    return main.without_augmentation() if name == NO_AUGMENTATION_OF_MAIN else ProtocolSpec.model_validate(name)
