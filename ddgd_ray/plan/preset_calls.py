"""Stage calls that all trials of a preset have in common: autoencoder, latents, backbone, reference network, real features."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from ddgd_ray.inputs.fingerprints import images_source, known_sha256
from ddgd_ray.inputs.weights import script_file, weights_source
from ddgd_ray.spec.evaluation import DecodeSpec, EvaluateSpec, FeatureSpace, FeaturesSpec, QualitySpec, SelectSpec
from ddgd_ray.spec.preset import Preset, WeightsSpec
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.ways import ModesSpec, RelabelSpec, SpectrumSpec
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.storage.manifest import Ref


@dataclass(frozen=True)
class Measure:
    """The quality of a trial's set in one feature space: its features, then the comparison."""

    label: str
    calls: tuple[StageCall, ...]


class PresetCalls:
    """The calls that trials of one preset have in common. A call is added when one of the properties is first read."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        fingerprint, root = images_source(preset.images)
        self.images = Outside(fingerprint, str(root))
        self._calls: dict[Ref, StageCall] = {}

    def _add(self, call: StageCall) -> Ref:
        self._calls.setdefault(call.ref, call)
        return call.ref

    def needed_by(self, calls: Iterable[StageCall]) -> tuple[StageCall, ...]:
        """The common calls that `calls` need, directly or through others, in an order in which they can be made.

        A common call that is itself among `calls` is left out.
        """
        calls = list(calls)
        needed: set[Ref] = set()
        open_ = list(calls)
        while open_:
            for value in open_.pop().inputs.values():
                if not isinstance(value, Outside) and value not in needed and value in self._calls:
                    needed.add(value)
                    open_.append(self._calls[value])
        own = {call.ref for call in calls}
        return tuple(call for ref, call in self._calls.items() if ref in needed and ref not in own)

    @functools.cached_property
    def autoencoder(self) -> Ref:
        spec = self.preset.autoencoder
        return self._adopt(spec) if isinstance(spec, WeightsSpec) else self._add(StageCall(spec, {"images": self.images}))

    @functools.cached_property
    def latents(self) -> Ref:
        return self._add(StageCall(self.preset.encode, {"images": self.images, "autoencoder": self.autoencoder}))

    @functools.cached_property
    def backbone(self) -> Ref:
        spec = self.preset.backbone
        return self._adopt(spec) if isinstance(spec, WeightsSpec) else self._add(StageCall(spec, {"latents": self.latents}))

    def modes(self, num: int) -> Ref:
        """k-means centres for a sampling of `num` images a class."""
        chosen, guide = self.preset.sample.modes, self.preset.sample.guide
        spec = ModesSpec(
            num=chosen.num or num, radius=guide.radius, tangents=guide.tangents, images=self.preset.images, seed=chosen.seed
        )
        return self._add(StageCall(spec, {"latents": self.latents}))

    @functools.cached_property
    def spectrum(self) -> Ref:
        spec = SpectrumSpec(most=self.preset.sample.spectral_gain, images=self.preset.images)
        return self._add(StageCall(spec, {"images": self.images, "autoencoder": self.autoencoder}))

    def _adopt(self, weights: WeightsSpec) -> Ref:
        source = weights_source(weights)
        return self._add(StageCall(weights.adopted(), {"weights": Outside(source.fingerprint, str(source.path))}))

    def decoded(self, protocol: ProtocolSpec) -> Ref:
        size = protocol.size or self.preset.images.size
        spec = DecodeSpec(images=self.preset.images, size=size, resize=protocol.test_resize or size)
        return self._add(StageCall(spec, {"images": self.images}))

    def all_images(self) -> StageCall:
        return StageCall(SelectSpec(method="all", ipc=0, images=self.preset.images), {"images": self.images})

    def reference(self, seed: int) -> Ref:
        """The reference network, trained on all real images; it never looks at the test images."""
        chosen = self.preset.reference
        spec = EvaluateSpec(
            network=chosen.network,
            ipc=0,
            protocol=chosen.protocol,
            dtype=self.preset.evaluate.dtype,
            tests="none",
            keep_weights=True,
            images=self.preset.images,
            seed=seed,
        )
        every = self._add(self.all_images())
        return self._add(StageCall(spec, {"set": every, "real": self.decoded(chosen.protocol)}))

    def _space(self, space: FeatureSpace, seed: int) -> tuple[int, Ref | Outside]:
        """The side in pixels of the images that the model of this feature space sees, and a reference to that model."""
        own, chosen = self.preset.images.size, self.preset.reference
        if space == "latents":
            return own, self.autoencoder
        if space == "network":
            return chosen.protocol.size or own, self.reference(seed)
        path = script_file(chosen.inception)
        return own, Outside(f"sha256:{known_sha256(path)}", str(path))

    def real_features(self, space: FeatureSpace, seed: int) -> Ref:
        """The features of all training images in this space."""
        size, model = self._space(space, seed)
        spec = FeaturesSpec(space=space, images=self.preset.images, size=size)
        return self._add(StageCall(spec, {"images": self.images, "model": model}))

    def set_features(self, space: FeatureSpace, made: Ref | Outside, ipc: int) -> StageCall:
        """The features of a set's first `ipc` images a class, of all with 0."""
        size, model = self._space(space, 0)
        spec = FeaturesSpec(space=space, images=self.preset.images, size=size, ipc=ipc)
        return StageCall(spec, {"set": made, "model": model})

    def stored_labels(self, protocol: ProtocolSpec, made: Ref | Outside, ipc: int) -> StageCall:
        """What the reference network says of a set's first `ipc` images a class, of all with 0."""
        spec = RelabelSpec(
            classes_kept=protocol.stored_classes,
            temperature=protocol.temperature if protocol.stored_classes else 1.0,  # all answers serve any temperature
            dtype=protocol.stored_dtype,
            ipc=ipc,
            size=protocol.size or self.preset.images.size,
            images=self.preset.images,
        )
        return StageCall(spec, {"set": made, "teacher": self.reference(0)})

    def measure(self, space: FeatureSpace, made: Ref | Outside, ipc: int) -> Measure:
        features = self.set_features(space, made, ipc)
        inputs = {"set": features.ref, "real": self.real_features(space, 0)}
        return Measure(f"{space}, {ipc} images per class", (features, StageCall(QualitySpec(), inputs)))
