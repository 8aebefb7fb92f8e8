"""provenance.json: every setting that an exported set or model depends on, and the keys of what it was made from."""

import json
from collections.abc import Mapping
from typing import Any

from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.lineage import Lineage

PROVENANCE = "provenance.json"
ASKED = ("name", "preset", "recipe", "vary", "seeds", "evaluate", "controls", "objective")


def provenance(choice: Choice | None, images: Mapping[str, Any], made_from: Lineage | None) -> dict[str, Any]:
    """Holds no path and no name of a machine. images: ImagesSpec of the real images. choice: None when no run was asked."""
    found: dict[str, Any] = {}
    if choice is not None:
        named = {"arm": choice.arm, "seed": choice.seed, "params": choice.record["params"]}
        found["run"] = {name: choice.run.spec[name] for name in ASKED}
        found["trial"] = named | {"evaluators": choice.record["evaluators"]}
    return found | {"images": images} | (made_from.as_json() if made_from else {})


def as_text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
