"""Choosing a set from a pool of more images than it needs: section `select` of a preset, and the stages behind it.

Changed what a stage computes? Bump its `version` in the same commit.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import ImagesSpec, StageSpec

FEATURE_RULES = ("herding", "kcenter", "farthest")
SCORE_RULES = ("confidence", "el2n", "forgetting")
TRAINED_RULES = ("el2n", "forgetting")


class PickSpec(StageSpec):
    """A set picked from a pool, or made of crops of real images."""

    stage: ClassVar[str] = "pick"
    version: ClassVar[int] = 1

    rule: Literal["none", "random", "herding", "kcenter", "farthest", "confidence", "el2n", "forgetting", "rded"] = "none"
    """none: the set is what is drawn. herding, kcenter, farthest go by features; confidence by the reference network; el2n and
    forgetting by networks that are trained on the pool; rded puts the surest crops of real images into mosaics."""
    of: Literal["generated", "real", "both"] = "generated"
    """Whose images: samples, random training images, or as many of each."""
    pool: int = Field(5, ge=1, le=100)
    """Images of a pool for each image of the set. 1: nothing is left to choose, the set is the pool in its order."""
    space: Literal["network", "latents"] = "network"
    """Feature space of herding, kcenter and farthest."""
    normalized: bool = True
    """herding: rows of features have unit length first, as in iCaRL; false: as they are, as in IDC's code."""
    order: Literal["descending", "ascending"] = "descending"
    """confidence: the surest first, or the least sure of what is recognised. el2n, forgetting: the hardest, or the easiest."""
    trainings: int = Field(3, ge=1, le=64)
    """el2n, forgetting: networks whose scores are averaged."""
    crops: int = Field(5, ge=1)
    """rded: random crops of an image, of which the surest is kept."""
    tiles: int = Field(2, ge=1, le=8)
    """rded: crops along a side of a mosaic; 2: four in a picture."""
    candidates: int = Field(300, ge=1)
    """rded: training images a class that are looked at; all where there are fewer."""
    ipc: int = Field(10, ge=1)
    """Images per class; a smaller set is a prefix of a larger one."""
    images: ImagesSpec
    seed: int = Field(0, ge=0)

    owners: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "space": FEATURE_RULES,
        "normalized": ("herding",),
        "order": SCORE_RULES,
        "trainings": TRAINED_RULES,
        "crops": ("rded",),
        "tiles": ("rded",),
        "candidates": ("rded",),
        "pool": ("random", *FEATURE_RULES, *SCORE_RULES),
    }
    """Fields that mean something to these rules alone."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.rule == "none":  # so that `none` and another can be varied beside fields of the other
            return self
        for field, rules in self.owners.items():
            if self.rule not in rules and getattr(self, field) != type(self).model_fields[field].default:
                what = f"{field} means nothing to rule {self.rule}, but to {', '.join(rules)}"
                raise ValueError(what, f"leave select.{field} out, or choose another rule")
        if self.rule == "rded" and self.of != "real":
            raise ValueError(f"rded cuts crops out of real images, not of {self.of} ones", "set select.of: real")
        if self.rule == "rded" and self.images.size % self.tiles:
            raise ValueError(
                f"{self.tiles} tiles do not fill a side of {self.images.size} px", "choose a divisor of images.size"
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether samples of a model are needed."""
        return self.rule == "none" or self.of != "real"


class ScoresSpec(StageSpec):
    """One number for each image of a pool, by which it is picked."""

    stage: ClassVar[str] = "scores"
    version: ClassVar[int] = 1

    rule: Literal["confidence", "el2n", "forgetting"]
    network: str = ""
    """el2n, forgetting: what is trained on the pool."""
    protocol: ProtocolSpec | None = None
    """el2n, forgetting: how."""
    trainings: int = Field(1, ge=1)
    looks: int = Field(10, ge=2)
    """Looks at the pool, evenly over a training; el2n is that of the first one."""
    size: int = Field(ge=8, le=1024)
    """Pixels a side that the network sees."""
    images: ImagesSpec
    seed: int = Field(0, ge=0)
