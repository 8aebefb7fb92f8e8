"""Settings for images of one's own: what a folder, a machine and a stated time make sensible, each with its reason. Pure.

`settings` goes by the folder alone, so that the same folder gives the same keys on any machine. `Tier` says how large the
images and the networks are; how long they learn is a share of the time that there is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.errors import SpecError
from ddgd_ray.inputs.fingerprints import index_classes
from ddgd_ray.inputs.survey import Survey

MANY_CORES = 4
HELD_OUT = 0.15
"""Share of a class's images for validation, and as many for testing where nothing is split off."""
MOST_HELD_OUT = 50
MEMORY_TURNS = 2
"""How often a memory is filled over a fine-tuning at least: pop decides nothing before it is full."""
MOST_MEMORY, LEAST_MEMORY = 64, 4
BATCH = 32
EMA_KEEPS = 0.05
"""Share of the starting weights that the average may still hold at the end."""
NETWORKS: tuple[str, ...] = ("convnet3_slim", "resnet_slim")
ARMS = ("max_similarity", "min_similarity", "fifo")


@dataclass(frozen=True)
class Tier:
    """Sizes that go together, with the steps that they are worth at a share of 1."""

    name: str
    size: int
    widths: tuple[int, ...]
    layers: int
    heads: int
    head_dim: int
    autoencoder_steps: int
    pretrain_steps: int
    finetune_steps: int

    @property
    def latent_side(self) -> int:
        return self.size >> (len(self.widths) - 1)


TIERS = (
    Tier("tiny", 32, (16, 32, 32), 4, 3, 32, 400, 2000, 150),
    Tier("small", 64, (16, 32, 64, 64), 6, 4, 48, 1500, 8000, 400),
    Tier("middle", 128, (32, 64, 128, 128), 8, 6, 64, 6000, 30000, 1500),
)
LEAST_SHARE, MOST_SHARE = 0.25, 3.0
PIXELS = 20
"""Images of fewer pixels a side are their own latents."""


@dataclass(frozen=True)
class Setting:
    """One line of a sweep file: a dotted path of the preset, its value, and why."""

    path: str
    value: Any
    why: str = ""


def tiers_for(survey: Survey) -> tuple[Tier, ...]:
    """From the smallest; none larger than the images themselves, but for the first."""
    return TIERS[:1] + tuple(tier for tier in TIERS[1:] if survey.side >= tier.size)


def split_settings(survey: Survey) -> list[Setting]:
    """Where the images are, which classes they have, and what is held out."""
    held = max(1, min(MOST_HELD_OUT, int(HELD_OUT * survey.fewest)))
    found = [
        Setting("images.root", str(survey.root)),
        Setting("images.classes", survey.classes, f"{len(survey.classes)} folders with images"),
        Setting("images.channels", survey.channels, "colour" if survey.channels == 3 else "no colour in what was opened"),
    ]
    of_class = f"of the {survey.fewest} of the smallest class"
    if survey.test:
        found.append(Setting("images.validation_per_class", held, f"{of_class} in train/, to choose by"))
    else:
        found.append(Setting("images.test_per_class", held, f"{of_class}; the folder has no split of its own"))
        found.append(Setting("images.validation_per_class", held, "as many, to choose by"))
    return found


def num_train(survey: Survey) -> int:
    """Images of the smallest class that are left to distill."""
    held = max(1, min(MOST_HELD_OUT, int(HELD_OUT * survey.fewest)))
    return survey.fewest - held * (1 if survey.test else 2)


def settings(survey: Survey, tier: Tier = TIERS[0], share: float = 1.0) -> list[Setting]:
    """What preset imagefolder must be told. share: of the tier's steps, for the networks that are trained from scratch."""
    total = num_train(survey) * len(survey.classes)
    pretrain_batch = _power_of_two(min(64, total // 4))
    found = [*split_settings(survey), *_size_settings(survey, tier)]
    found += [
        Setting("autoencoder.steps", _fifties(tier.autoencoder_steps * share)),
        Setting("autoencoder.batch_size", BATCH),
        Setting("backbone.layers", tier.layers),
        Setting("backbone.heads", tier.heads),
        Setting("backbone.head_dim", tier.head_dim),
        Setting("backbone.steps", _fifties(tier.pretrain_steps * share)),
        Setting("backbone.batch_size", pretrain_batch),
    ]
    return found + _finetune_settings(survey, tier)


def _size_settings(survey: Survey, tier: Tier) -> list[Setting]:
    if survey.side < PIXELS:
        size = 8 if survey.side < 12 else 16
        return [
            Setting("images.size", size, f"the images' own, {survey.side} px"),
            Setting("autoencoder.kind", "identity", "pixels are the latents of images so small"),
            Setting("sample.cfg_channels", survey.channels),
        ]
    return [
        Setting("images.size", tier.size, f"the images' shorter side is {survey.side} px"),
        Setting("autoencoder.widths", tier.widths, f"latents of {tier.latent_side} x {tier.latent_side}"),
        Setting("sample.cfg_channels", 4),
    ]


def _finetune_settings(survey: Survey, tier: Tier) -> list[Setting]:
    per_class, classes = num_train(survey), len(survey.classes)
    batch = _power_of_two(min(BATCH, per_class * classes))
    most = max(LEAST_MEMORY, min(MOST_MEMORY, per_class // 2))
    steps = max(tier.finetune_steps, math.ceil(MEMORY_TURNS * LEAST_MEMORY * classes / batch))
    memory = max(LEAST_MEMORY, min(most, steps * batch // (MEMORY_TURNS * classes)))
    return [
        Setting("finetune.steps", steps),
        Setting("finetune.batch_size", batch),
        Setting("finetune.ema_decay", ema_decay(steps), f"after {steps} steps {EMA_KEEPS:.0%} of the start is left"),
        Setting("finetune.memory_real.size", memory, f"filled {steps * batch / classes / memory:.1f} times"),
        Setting("finetune.memory_gen.size", memory),
    ]


def ema_decay(steps: int) -> float:
    """The decay that leaves EMA_KEEPS of the starting weights after so many steps, three digits below 1."""
    decay = EMA_KEEPS ** (1 / max(1, steps))
    return min(0.9999, round(decay, 4 if steps > 300 else 3))


def ipc_for(survey: Survey) -> int:
    return min(10, num_train(survey))


def has_imagenet_classes(survey: Survey) -> bool:
    """Whether every class folder is named by an ImageNet-1k WordNet id, which DiT-XL/2 knows."""
    try:
        index_classes(survey.classes)
    except SpecError:
        return False
    return True


def full_settings(survey: Survey) -> list[Setting]:
    """On top of preset imagewoof, the recipe of the paper at 256 px with DiT-XL/2: these images, and memories that fill."""
    found = split_settings(survey)
    found.append(Setting("images.labels", "imagenet", "the class folders are WordNet ids, which DiT-XL/2 knows"))
    per_class = num_train(survey)
    if per_class < MOST_MEMORY:
        memory = max(LEAST_MEMORY, per_class // 2)
        found += [
            Setting("finetune.memory_real.size", memory, f"half of the {per_class} images of the smallest class"),
            Setting("finetune.memory_gen.size", memory),
        ]
    return found


def as_overrides(chosen: list[Setting]) -> Mapping[str, Any]:
    return {setting.path: setting.value for setting in chosen}


def resources_for(cores: float, num_gpus: int) -> dict[str, Any]:
    """What trains alone has the machine; classifiers share a GPU."""
    if num_gpus:
        on_gpu = {"cpus": 1, "gpus": 1}
        without = {stage: {"gpus": 0} for stage in ("adopt", "decode", "select")}
        return {**on_gpu, "stages": {"evaluate": {"gpus": 0.25}, **without}}
    if cores < MANY_CORES:  # networks so small gain little from a second core, and the controls have use for it
        return {"cpus": 1}
    wide = min(4, int(cores) // 2)
    return {"cpus": 1, "stages": {"autoencoder": {"cpus": wide}, "pretrain": {"cpus": wide}}}


def _fifties(number: float) -> int:
    return max(50, 50 * round(number / 50))


def _power_of_two(number: int) -> int:
    """The largest that is no larger, 1 at least."""
    return 1 << max(0, int(number).bit_length() - 1)
