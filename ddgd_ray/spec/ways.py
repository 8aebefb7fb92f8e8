"""One spec for each stage that other ways of making a set need: centres, inverted latents, a decoder's gain, stored labels.

Changed what a stage computes? Bump its `version` in the same commit.
"""

from typing import ClassVar, Literal

from pydantic import Field

from ddgd_ray.spec.stages import ImagesSpec, StageSpec


class ModesSpec(StageSpec):
    """k-means of each class's latents, seeded; with the real latents nearest to the centres, and tangent spaces there."""

    stage: ClassVar[str] = "modes"
    version: ClassVar[int] = 1

    num: int = Field(ge=1)
    """Centres a class, by falling size of their clusters: a smaller set uses the larger clusters."""
    radius: float = Field(0.0, ge=0, le=1)
    """Share of a class's latents around a centre that tell its tangent space."""
    tangents: int = Field(0, ge=0)
    """Dimension of the tangent spaces; 0: none."""
    images: ImagesSpec
    seed: int = Field(0, ge=0)


class InvertSpec(StageSpec):
    """Mean and spread of each class's latents after DDIM inversion to the level at which a sampling starts."""

    stage: ClassVar[str] = "invert"
    version: ClassVar[int] = 1

    strength: float = Field(gt=0, le=1)
    """As of sample.start."""
    steps: int = Field(ge=2, le=1000)
    """As of the sampling."""
    weights: str = Field("ema", pattern="^(ema|raw)$")
    images: ImagesSpec


class SpectrumSpec(StageSpec):
    """A gain for each spatial frequency that gives the decoder's images the amplitudes of the real ones."""

    stage: ClassVar[str] = "spectrum"
    version: ClassVar[int] = 1

    most: float = Field(gt=1)
    """Greatest gain."""
    per_class: int = Field(100, ge=1)
    """Training images a class that are compared with their reconstructions; all where there are fewer."""
    images: ImagesSpec


class RelabelSpec(StageSpec):
    """What the reference network says of each image of a set, once: labels that are kept with the set."""

    stage: ClassVar[str] = "relabel"
    version: ClassVar[int] = 1

    classes_kept: int = Field(0, ge=0)
    """Answers an image that are kept, the greatest; 0: all."""
    temperature: float = Field(1.0, gt=0)
    """At which the answers that are not kept have, together, the probability that they had."""
    dtype: Literal["float16", "float32"] = "float16"
    ipc: int = Field(0, ge=0)
    """Images per class, the first ones of the set; 0: all."""
    size: int = Field(ge=8, le=1024)
    """Pixels a side that the network sees."""
    images: ImagesSpec
