"""Stored soft labels: what a network said of each image, whole or in part, and a training that learns from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddgd_ray.errors import ArtifactError
from ddgd_ray.method.augment import normalize
from ddgd_ray.spec.evaluation import EvaluateSpec, SelectSpec
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.spec.ways import RelabelSpec
from ddgd_ray.stages import decode, evaluate, relabel, select
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.evaluate import Training
from ddgd_ray.stages.parts.classifier import load_network
from ddgd_ray.stages.parts.distilled import read_set

DIGITS = ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1, validation_per_class=20)


def protocol(**changes: Any) -> ProtocolSpec:
    return ProtocolSpec.model_validate({"name": "quick-digits", "steps": 20, "num_tests": 1} | changes)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set of six digits a class, and a network trained on it."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("set", "real", "teacher")}
    select.run(SelectSpec(method="random", ipc=6, images=DIGITS), {"images": Path()}, made["set"], Context())
    decode.run(decode.DecodeSpec(images=DIGITS, size=8, resize=8), {"images": Path()}, made["real"], Context())
    taught = {"protocol": protocol(steps=60), "tests": "none", "keep_weights": True}
    spec = EvaluateSpec.model_validate({"network": "resnet_slim", "ipc": 0, "images": DIGITS, **taught})
    evaluate.run(spec, made, made["teacher"], Context())
    (made["teacher"] / "manifest.json").write_text(json.dumps({"spec": spec.canonical()}))  # as the store writes it
    return made


def labelled(inputs: dict[str, Path], out: Path, **changes: Any) -> dict[str, float]:
    out.mkdir()
    return relabel.run(RelabelSpec.model_validate({"size": 8, "images": DIGITS} | changes), inputs, out, Context())


def answers(inputs: dict[str, Path]) -> dict[str, torch.Tensor]:
    split, network = read_set(inputs["set"], DIGITS, 0), load_network(inputs["teacher"], "last", "cpu")
    with torch.inference_mode():
        logits = network(normalize(torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255))
    return dict(zip(split.names, logits, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
def test_all_answers_are_kept_image_by_image(inputs: dict[str, Path], dtype: str, tolerance: float, tmp_path: Path) -> None:
    metrics = labelled(inputs, tmp_path / "labels", dtype=dtype)
    expected, found = answers(inputs), relabel.read_labels(tmp_path / "labels")
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=tolerance, atol=tolerance)
    assert metrics["label_bytes"] == 60 * 10 * (4 if dtype == "float32" else 2)
    sizes = sum(path.stat().st_size for path in inputs["set"].rglob("*.png"))
    assert metrics["image_bytes"] == sizes


def test_of_few_answers_the_greatest_stay_and_the_others_share_the_rest(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics = labelled(inputs, tmp_path / "labels", dtype="float32", classes_kept=3, temperature=4.0)
    for name, logits in answers(inputs).items():
        found = (relabel.read_labels(tmp_path / "labels")[name] / 4).softmax(dim=0)
        whole = (logits / 4).softmax(dim=0)
        greatest = whole.topk(3).indices
        torch.testing.assert_close(found[greatest], whole[greatest], rtol=1e-4, atol=1e-5)
        left = [y for y in range(10) if y not in greatest.tolist()]
        assert float(found[left].std()) == pytest.approx(0, abs=1e-6)
    assert metrics["label_bytes"] == 60 * (3 * 4 + 3 + 4)


def test_an_image_without_a_label_is_told(inputs: dict[str, Path], tmp_path: Path) -> None:
    labelled(inputs, tmp_path / "labels", ipc=2)
    with pytest.raises(ArtifactError, match="40 of 60 images have no stored label"):
        relabel.stored_logits(tmp_path / "labels", read_set(inputs["set"], DIGITS, 0).names)


def losses(inputs: dict[str, Path], logits: torch.Tensor | None, **changes: Any) -> torch.Tensor:
    """Of one step on the whole set, by the protocol; logits: stored for each image."""
    split = read_set(inputs["set"], DIGITS, 0)
    spec = EvaluateSpec(network="convnet3_slim", ipc=0, protocol=protocol(**changes), images=DIGITS, seed=1)
    training = Training([spec], split, 8, None, [Context()], stored=logits)
    batch = {"rows": torch.arange(60)[None], "partner": torch.arange(60).flip(0)[None], "boxes": torch.tensor([[0, 4, 0, 4]])}
    return training._losses(batch)


PLAIN = {"shift": 0, "flip": False, "label_smoothing": 0.0, "cutmix": False}


def test_sure_answers_at_temperature_one_are_hard_labels(inputs: dict[str, Path]) -> None:
    """The KL divergence from a one-hot target is the cross-entropy: with CutMix both are mixed by the same share."""
    sure = torch.nn.functional.one_hot(torch.arange(60) // 6, 10).float() * 1e4
    for cutmix in (False, True):
        fields = PLAIN | {"cutmix": cutmix}
        hard = losses(inputs, None, **fields)
        soft = losses(inputs, sure, **fields, labels="stored", temperature=1.0)
        # the entropy of the mixed target is what the two differ by
        share = 1 - 16 / 64
        entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share)) if cutmix else 0.0
        is_own = torch.arange(60) // 6 == torch.arange(60).flip(0) // 6  # partners of one class stay one-hot
        mean_entropy = entropy * float((~is_own).float().mean())
        torch.testing.assert_close(soft, hard - mean_entropy, rtol=1e-4, atol=1e-4)


LEARNING = protocol(labels="stored", steps=60, temperature=4.0)


def test_a_network_learns_from_stored_labels_what_their_teacher_knows(inputs: dict[str, Path], tmp_path: Path) -> None:
    labelled(inputs, tmp_path / "labels")
    given = inputs | {"labels": tmp_path / "labels"}
    spec = EvaluateSpec(network="resnet_slim", ipc=6, protocol=LEARNING, images=DIGITS, seed=3)
    (tmp_path / "out").mkdir()
    found = evaluate.run(spec, given, tmp_path / "out", Context())
    assert found["val_top1"] > 0.3  # chance is 0.1


def test_stored_fields_without_stored_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="stored_classes and stored_dtype mean something with labels: stored"):
        protocol(stored_classes=3)
