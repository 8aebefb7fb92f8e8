"""The published settings, and where a preset differs from them: tables can be compared only as far as these agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.spec.preset import Preset
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.recipe import read_recipe

# recipe -> the recipe that does what its authors' scripts do; other recipes are compared with the paper's scripts
CODE_OF = {"minimax": "minimax-code", "minimax-code": "minimax-code"}
PAPER_CODE = "public-code"
# what both scripts share beside the fields of their recipes
COMMON: Mapping[str, Any] = {
    "images.size": 256,
    "finetune.adapter": "difffit",
    "finetune.steps": 12_000,
    "finetune.batch_size": 8,
    "finetune.learning_rate": 1e-3,
    "finetune.label_dropout": 0.1,
    "finetune.ema_decay": 0.9999,
    "finetune.ema_warmup": False,
    "finetune.memory_real.size": 64,
    "finetune.memory_real.max_age": 0,
    "finetune.memory_gen.size": 64,
    "finetune.memory_gen.max_age": 0,
    "finetune.t_min": 0,
    "finetune.t_max": 1000,
    "finetune.vb": True,
    "sample.sampler": "ddpm",
    "sample.steps": 50,
    "sample.guidance": 4.0,
    "sample.cfg_channels": 3,
    "sample.weights": "ema",
    "evaluate.tests": "all",
}


@dataclass(frozen=True)
class Difference:
    """A field whose value is not that of the authors' scripts."""

    field: str
    here: Any
    published: Any


def published_recipe(recipe: str) -> str:
    """The name of the recipe that does what the scripts behind `recipe` do."""
    return CODE_OF.get(recipe, PAPER_CODE)


def differences(preset: Preset, recipe: str) -> list[Difference]:
    """The fields of a preset that differ from the authors' scripts; recipe: the one that the preset follows, "" for none.

    A protocol differs field by field. Data set, steps on other data sets and weights are the preset's own.
    """
    name = published_recipe(recipe)
    published = dict(COMMON) | {field: value for field, (value, _) in read_recipe(name, "--recipe-diff").items()}
    wanted = published.pop("evaluate.protocol")
    found = [Difference(field, _value(preset, field), value) for field, value in published.items()]
    protocol, other = preset.evaluate.protocol, ProtocolSpec.model_validate(wanted)
    for field in ProtocolSpec.model_fields:
        if field not in ("name", "label"):
            found.append(Difference(f"evaluate.protocol.{field}", getattr(protocol, field), getattr(other, field)))
    return [one for one in found if one.here != one.published]


def _value(preset: Preset, field: str) -> Any:
    value: Any = preset
    for part in field.split("."):
        value = getattr(value, part)
    return value
