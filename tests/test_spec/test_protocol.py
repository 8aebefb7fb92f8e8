"""Protocols: the named ones hold published numbers, and a changed one cannot pass for them."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ddgd_ray.errors import SpecError
from ddgd_ray.spec.preset import build_preset, read_preset, with_overrides
from ddgd_ray.spec.protocol import ProtocolSpec, StepPlan, protocol_names


def protocol(data: Any) -> ProtocolSpec:
    return ProtocolSpec.model_validate(data)


@pytest.mark.parametrize("name", protocol_names())
@pytest.mark.parametrize("suffix", ["", "-noaug"])
def test_a_shipped_protocol_is_called_by_its_name(name: str, suffix: str) -> None:
    assert protocol(name + suffix).label == name + suffix
    assert protocol({"name": name + suffix}) == protocol(name + suffix)


@pytest.mark.parametrize(
    ("ipc", "epochs"),
    [(1, 3000), (2, 2000), (10, 2000), (11, 1500), (50, 1500), (51, 1000), (200, 1000), (201, 500), (500, 500), (501, 300)],
)
def test_idc_trains_as_long_as_the_literature(ipc: int, epochs: int) -> None:
    assert protocol("idc").num_epochs(ipc) == epochs
    assert protocol("idc-256").num_epochs(ipc) == epochs
    assert protocol("idc-quick").num_epochs(ipc) == epochs // 10


def test_idc_holds_the_published_numbers() -> None:
    idc = protocol("idc")
    assert (idc.size, idc.test_resize, protocol("idc-256").size) == (224, 0, 256)
    assert (idc.optimizer, idc.learning_rate, idc.momentum, idc.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (idc.schedule, idc.batch_of(10), idc.labels, idc.label_smoothing, idc.drop_last) == ("step", 64, "hard", 0, False)
    assert (idc.crop_scale, idc.flip, idc.jitter, idc.lighting, idc.cutmix, idc.shift) == (0.5, True, 0.4, 0.1, True, 0)
    assert idc.num_tests == 100
    assert not any(protocol(name).jitter_clamped for name in ("idc", "idc-256", "idc-quick"))
    assert protocol("teacher").jitter_clamped, "torchvision's own"


@pytest.mark.parametrize(("ipc", "epochs"), [(1, 2000), (10, 1300), (50, 1000), (100, 600), (500, 300), (501, 200)])
def test_idc_trains_hundred_classes_for_two_thirds_of_the_epochs(ipc: int, epochs: int) -> None:
    assert protocol("idc").of(100, "resnet_ap10").num_epochs(ipc) == epochs
    assert protocol("idc-quick").of(100, "resnet_ap10").num_epochs(ipc) == epochs // 10
    assert protocol("idc").of(99, "resnet_ap10").num_epochs(ipc) == protocol("idc").num_epochs(ipc)


def test_idc_has_a_rate_a_decay_and_a_batch_of_their_own_above_hundred_classes() -> None:
    few, many = (protocol("idc").of(num, "convnet6") for num in (100, 1000))
    assert (few.learning_rate, few.weight_decay, few.batch_size) == (0.01, 5e-4, 64)
    assert (many.learning_rate, many.weight_decay, many.batch_size, many.num_epochs(10)) == (0.1, 1e-4, 128, 2000)
    assert few.label == many.label == "idc"


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ("resnet18_bn", 1e-3),
        ("timm/efficientnet_b0", 2e-3),
        ("timm/mobilenetv2_100", 2.5e-3),
        ("timm/vgg11", 5e-4),
        ("timm/vit_base_patch16_224", 1e-4),
        ("timm/swinv2_tiny_window8_256", 1e-4),
    ],
)
def test_rded_has_a_rate_for_each_student(network: str, rate: float) -> None:
    assert protocol("rded").of(10, network).learning_rate == rate


def test_rded_doubles_its_batch_from_hundred_classes_and_decays_matrices_alone() -> None:
    sizes = [protocol("rded").of(num, "resnet18_bn").batch_of(ipc) for num in (10, 100, 1000) for ipc in (1, 10, 50)]
    assert sizes == [10, 50, 100, 20, 100, 200, 20, 100, 200]
    assert protocol("rded").decays == "matrices"


def test_rded_looks_at_the_test_images_six_times_in_its_last_fifth() -> None:
    plan = StepPlan.of(protocol("rded"), 100, 10)  # two steps an epoch
    assert sorted(plan.tests(protocol("rded"))) == [2 * epoch for epoch in (250, 260, 270, 280, 290, 300)]
    assert len(StepPlan.of(protocol("idc"), 100, 10).tests(protocol("idc"))) == 100


def test_a_field_set_by_hand_counts_for_any_number_of_classes() -> None:
    changed = protocol({"name": "idc", "learning_rate": 0.5})
    assert [changed.of(num, "convnet6").learning_rate for num in (10, 1000)] == [0.5, 0.5]
    assert changed.of(1000, "convnet6").batch_size == 128, "the other fields of the case stay"
    assert protocol(json.loads(json.dumps(changed.canonical()))) == changed
    own = protocol({"name": "idc", "cases": [{"classes": (2, 5), "batch_size": 8}]})
    assert own.label not in ("idc", changed.label)
    assert protocol(json.loads(json.dumps(own.canonical()))) == own


def test_rded_holds_the_published_numbers() -> None:
    rded = protocol("rded")
    assert (rded.labels, rded.temperature, rded.epochs, rded.cutmix) == ("teacher", 20, 300, True)
    assert (rded.optimizer, rded.learning_rate, rded.weight_decay, rded.schedule) == ("adamw", 1e-3, 0.01, "half_cosine")
    assert [rded.batch_of(ipc) for ipc in (1, 10, 11, 50, 100)] == [10, 50, 100, 100, 100]


def test_a_changed_field_changes_the_label_and_a_field_written_as_it_is_does_not() -> None:
    assert protocol({"name": "idc", "batch_size": 64, "epochs_up_to": protocol("idc").epochs_up_to}).label == "idc"
    labels = {protocol({"name": "idc", **change}).label for change in ({"batch_size": 32}, {"size": 32}, {"flip": False})}
    assert len(labels) == 3
    assert all(label.startswith("idc+") for label in labels)


def test_a_protocol_of_ones_own_is_known_by_its_fields() -> None:
    mine = protocol({"name": "mine", "epochs": 3, "schedule": "step"})
    assert mine.label.startswith("mine+")
    assert mine.label != protocol({"name": "mine", "epochs": 4, "schedule": "step"}).label


def test_a_protocol_survives_a_manifest() -> None:
    changed = protocol({"name": "idc", "epochs_up_to": ((1, 5),)})
    assert protocol(json.loads(json.dumps(changed.canonical()))) == changed
    assert ProtocolSpec.model_validate_json(json.dumps(changed.canonical())) == changed


def test_without_augmentation_nothing_random_is_left_but_the_order() -> None:
    bare = protocol({"name": "idc", "steps": 7}).without_augmentation()
    assert (bare.crop_scale, bare.flip, bare.jitter, bare.lighting, bare.cutmix) == (1, False, 0, 0, False)
    assert (bare.steps, bare.learning_rate) == (7, 0.01)
    assert bare.label.startswith("idc-noaug+")
    assert protocol("idc").without_augmentation() == protocol("idc-noaug")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("icd", "did you mean idc?"),
        ({"name": "idc", "label": "idc-best"}, "a protocol's label follows from its fields"),
        ({"name": "quick-small", "steps": 0}, "neither epochs nor steps"),
        ({"name": "idc", "schedule": "one_cycle"}, "one_cycle counts steps"),
        ({"name": "idc", "epochs_up_to": ((10, 5), (1, 9))}, "expected pairs of positive numbers, rising"),
    ],
)
def test_what_makes_no_protocol_is_refused(data: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=".*") as caught:
        protocol(data)
    assert words in str(caught.value)


def test_a_field_set_beside_a_protocols_name_leaves_the_name() -> None:
    errors: list[SpecError] = []
    document = with_overrides(read_preset("digits"), {"evaluate.protocol.steps": (30, "--set")}, errors)
    preset = build_preset(document, errors)
    assert preset is not None
    assert (preset.evaluate.protocol.name, preset.evaluate.protocol.steps) == ("quick-digits", 30)
    both = {"evaluate.protocol.size": (0, "--set"), "evaluate.protocol": ("rded", "--set")}
    preset = build_preset(with_overrides(read_preset("fashion"), both, errors), errors)
    assert preset is not None
    assert (preset.evaluate.protocol.name, preset.evaluate.protocol.size) == ("rded", 0)
    assert not errors
