"""Guides and starts by name: their constants, what is refused, and that older keys stay."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ddgd_ray.errors import SpecErrors
from ddgd_ray.spec.base import Spec
from ddgd_ray.spec.guide import GuideSpec
from ddgd_ray.spec.stages import ImagesSpec, SampleSpec

DIGITS = ImagesSpec(source="digits", classes=("0", "1"), size=8, channels=1)


def sampling(**fields: Any) -> SampleSpec:
    return SampleSpec.model_validate({"images": DIGITS, "sampler": "ddim", **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        sampling(**fields)
    return str(caught.value)


def all_specs(cls: type[BaseModel] = Spec) -> list[type[BaseModel]]:
    return [cls, *(one for child in cls.__subclasses__() for one in all_specs(child))]


def test_what_was_added_is_left_out_at_its_default_and_only_there() -> None:
    names = {"guide", "start", "modes", "spectral_gain"}
    assert not names & sampling().canonical().keys()
    told = sampling(guide="mode", spectral_gain=2.0).canonical()
    assert names & told.keys() == {"guide", "spectral_gain"}
    assert told["guide"] == {**GuideSpec().canonical(), "name": "mode", "strength": 0.1, "stop": 0.5}


def test_added_fields_exist_and_read_back_as_they_were() -> None:
    """A field is left out by its default: the default must mean for ever what was done before there was the field."""
    for cls in all_specs():
        assert getattr(cls, "added", frozenset()) <= cls.model_fields.keys()
    for before in (sampling(), sampling(guide={"name": "transport", "group": 4}, start="prototype", modes={"num": 3})):
        assert SampleSpec.model_validate_json(before.model_dump_json()) == before


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("mode", {"strength": 0.1, "stop": 0.5, "start": 1.0}),
        ("manifold", {"strength": 0.1, "radius": 0.1, "tangents": 3}),
        ("features", {"strength": 0.5, "from_depth": 0.15, "to_depth": 0.43}),
        ("transport", {"group": 10, "epsilon": 0.1, "iterations": 5}),
    ],
)
def test_a_guide_by_name_has_its_published_constants(name: str, constants: dict[str, Any]) -> None:
    found = sampling(guide=name).guide
    assert {field: getattr(found, field) for field in constants} == constants


def test_the_window_is_that_of_the_paper_at_fifty_steps_and_the_blocks_those_of_dit_xl() -> None:
    assert sampling(guide="mode").guide.window(50) == (50, 25)
    assert sampling(guide="features").guide.blocks(28) == slice(3, 12)
    assert sampling(guide="features").guide.blocks(3) == slice(0, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guide": "modes"}, "did you mean mode?"),
        ({"guide": {"name": "mode", "group": 4}}, "group means nothing to mode, but to transport"),
        ({"guide": {"name": "mode", "stop": 1.0}}, "expected stop below start"),
        ({"guide": {"name": "transport", "group": 0}}, "group must be above 0"),
        ({"guide": "mode", "sampler": "dpmpp"}, "sampler dpmpp goes by its steps before"),
        ({"start": "inversion", "sampler": "ddpm"}, "start inversion needs sampler ddim"),
        ({"start": {"name": "prototype", "groups": 5}}, "groups means nothing to prototype, but to inversion"),
        ({"modes": {"num": 3}}, "modes mean something with a guide or start: prototype only"),
    ],
)
def test_what_would_do_nothing_is_refused(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(**fields)


def test_none_can_be_varied_beside_constants_of_another_guide() -> None:
    assert sampling(guide={"name": "none", "strength": 0.3}) == sampling()


def test_constants_of_a_guide_that_nobody_chose_are_refused_with_their_line(tiny: Callable[..., Any]) -> None:
    with pytest.raises(SpecErrors) as caught:
        tiny({"sample.guide.strength": 0.2})
    assert "sample.guide.strength means nothing without sample.guide" in str(caught.value)
    varied = tiny({"sample.guide.stop": 0.3, "vary": {"sample.guide": ("none", "mode")}})
    none, mode = (varied.preset_with(params).sample.guide for params in varied.spec.grid())
    assert (none.name, mode.name, mode.stop, mode.strength) == ("none", "mode", 0.3, 0.1)
