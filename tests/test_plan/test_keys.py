"""Keys of the shipped presets are pinned: whoever changes one sees that published work is not used any more."""

import json
from pathlib import Path

import pytest

from ddgd_ray.errors import SpecError
from ddgd_ray.plan.plan import common_calls
from ddgd_ray.run.folder import BUNDLED, open_store
from ddgd_ray.spec.preset import Preset, build_preset, read_preset
from ddgd_ray.storage.soundness import compare_files

GOLDEN = Path(__file__).parent.parent / "golden_keys.json"


def preset(name: str) -> Preset:
    errors: list[SpecError] = []
    built = build_preset(read_preset(name), errors)
    assert built is not None, errors
    return built


@pytest.mark.parametrize("name", ["fashion", "digits"])
def test_the_keys_of_a_preset_are_pinned(name: str) -> None:
    """Meant to change? Write the new keys into golden_keys.json, and for fashion: ddgd-ray pretrain fashion --bundle."""
    keys = {call.stage: call.key for call in common_calls(preset(name))}
    assert keys == json.loads(GOLDEN.read_text())[name]


def test_the_bundled_checkpoints_belong_to_the_default_preset(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for call in common_calls(preset("fashion")):
        if call.stage != "encode":
            artifact = store.get(*call.ref)
            assert artifact is not None, f"{call.stage}: run ddgd-ray pretrain fashion --bundle"
            assert artifact.path.is_relative_to(BUNDLED)
            compare_files(artifact)


def test_what_ships_inside_the_package_is_small() -> None:
    package = BUNDLED.parent
    shipped = [path for folder in (BUNDLED, package / "data") for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in shipped) <= 12e6
