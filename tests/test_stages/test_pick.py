"""Sets picked from pools of digits: exact sizes, prefixes, the record of what became which, and each rule's own promise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ddgd_ray.errors import StageError
from ddgd_ray.method.augment import normalize
from ddgd_ray.method.coresets import farthest_first, herding
from ddgd_ray.method.mosaic import shrunk
from ddgd_ray.spec.evaluation import EvaluateSpec, FeaturesSpec, SelectSpec
from ddgd_ray.spec.pick import PickSpec, ScoresSpec
from ddgd_ray.spec.protocol import ProtocolSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import decode, evaluate, features, pick, scores, select
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import save_identity
from ddgd_ray.stages.parts.classifier import load_network
from ddgd_ray.stages.parts.distilled import origins, read_set, write_set
from ddgd_ray.stages.parts.images import read_splits
from ddgd_ray.stages.parts.pools import read_pools

DIGITS = ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1, validation_per_class=20)
TRAINED = ProtocolSpec.model_validate({"name": "quick-digits", "steps": 60, "steps_large": 60, "num_tests": 2})
POOL = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pools of 12 digits a class, one of them standing in for samples, their pixels as features, and a trained network."""
    names = ("generated", "real", "generated_features", "real_features", "every", "decoded", "model", "pixels")
    made = {name: tmp_path_factory.mktemp(name) for name in names}
    for kind, seed in (("generated", 1), ("real", 2)):
        drawn = SelectSpec(method="random", ipc=POOL, images=DIGITS, seed=seed)
        select.run(drawn, {"images": Path()}, made[kind], Context())
    save_identity(made["pixels"])
    for kind in ("generated", "real"):
        asked = FeaturesSpec(space="latents", images=DIGITS, size=8)
        features.run(asked, {"set": made[kind], "model": made["pixels"]}, made[f"{kind}_features"], Context())
    select.run(SelectSpec(method="all", ipc=0, images=DIGITS), {"images": Path()}, made["every"], Context())
    decode.run(decode.DecodeSpec(images=DIGITS, size=8, resize=8), {"images": Path()}, made["decoded"], Context())
    trained = EvaluateSpec(network="resnet_slim", ipc=0, protocol=TRAINED, tests="none", keep_weights=True, images=DIGITS)
    evaluate.run(trained, {"set": made["every"], "real": made["decoded"]}, made["model"], Context())
    manifest = {"spec": trained.canonical(), "stage": "evaluate"}
    (made["model"] / "manifest.json").write_text(json.dumps(manifest))  # the store writes it, and load_network reads it
    return made


def spec(rule: str, **changes: Any) -> PickSpec:
    return PickSpec.model_validate({"rule": rule, "ipc": 4, "images": DIGITS, "seed": 3} | changes)


def scored(inputs: dict[str, Path], out: Path, rule: str, kinds: tuple[str, ...] = ("generated",), **changes: Any) -> Path:
    out.mkdir()
    trained = {} if rule == "confidence" else {"network": "convnet3_slim", "protocol": TRAINED, "trainings": 2, "looks": 4}
    asked = ScoresSpec.model_validate({"rule": rule, "size": 8, "images": DIGITS, **trained, **changes})
    scores.run(asked, {name: inputs[name] for name in (*kinds, "model")}, out, Context())
    return out


def picked(inputs: dict[str, Path], out: Path, rule: str, **changes: Any) -> dict[str, str]:
    """{CLASS/FILE of the set: KIND/CLASS/FILE of the pool}."""
    out.mkdir()
    kinds = {"generated": ("generated",), "real": ("real",), "both": ("generated", "real")}[changes.get("of", "generated")]
    given = {name: inputs[name] for kind in kinds for name in (kind, f"{kind}_features")}
    if rule in ("confidence", "el2n", "forgetting"):
        given["scores"] = scored(inputs, out.parent / f"{out.name}-scores", rule, kinds)
    metrics = pick.run(spec(rule, **changes), given, out, Context())
    assert metrics["num_images"] == 10 * changes.get("ipc", 4)
    return {name: origin.partition(", which is ")[0] for name, origin in origins(out).items()}


@pytest.mark.parametrize("of", ["generated", "real", "both"])
@pytest.mark.parametrize("rule", ["random", "herding", "kcenter", "farthest", "confidence", "el2n", "forgetting"])
def test_every_rule_gives_exact_classes_and_prefixes(inputs: dict[str, Path], rule: str, of: str, tmp_path: Path) -> None:
    large = picked(inputs, tmp_path / "large", rule, of=of)
    small = picked(inputs, tmp_path / "small", rule, of=of, ipc=2)
    assert small.items() <= large.items()
    assert len(set(large.values())) == 40
    for name, origin in large.items():
        kind, label, _ = origin.split("/")
        assert label == name.partition("/")[0]
        assert kind in {"generated", "real"} & ({of} if of != "both" else {"generated", "real"})


def test_the_record_names_the_image_whose_pixels_the_set_has(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = picked(inputs, tmp_path / "set", "herding", of="both")
    pool = read_pools(inputs, DIGITS)
    own = read_set(tmp_path / "set", DIGITS, 0)
    place = {name: row for row, name in enumerate(pool.names)}
    for image, name in zip(own.images, own.names, strict=True):
        assert np.array_equal(image, pool.images[place[found[name]]])
    assert "which is train-" in next(iter(origins(tmp_path / "set").values()))


@pytest.mark.parametrize("rule", ["random", "herding", "kcenter", "farthest", "confidence"])
def test_a_pool_of_exactly_ipc_is_no_selection(inputs: dict[str, Path], rule: str, tmp_path: Path) -> None:
    picked(inputs, tmp_path / "set", rule, ipc=POOL)
    own, pool = read_set(tmp_path / "set", DIGITS, 0), read_set(inputs["generated"], DIGITS, 0)
    assert own.names == pool.names
    assert np.array_equal(own.images, pool.images)


def test_more_than_the_pool_has_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="ipc 13 is more than the 12 pool images of class 0"):
        picked(inputs, tmp_path / "set", "random", ipc=13)


@pytest.mark.parametrize(("rule", "normalized"), [("herding", True), ("herding", False), ("farthest", True)])
def test_feature_rules_are_those_of_the_method(inputs: dict[str, Path], rule: str, normalized: bool, tmp_path: Path) -> None:
    found = picked(inputs, tmp_path / "set", rule, normalized=normalized)
    own = torch.from_numpy(np.load(inputs["generated_features"] / "features.npy")[:POOL])
    rows = herding(own, 4, normalized=normalized) if rule == "herding" else farthest_first(own, 4)
    assert [found[f"0/{index:05d}.png"] for index in range(4)] == [f"generated/0/{row:05d}.png" for row in rows.tolist()]


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_confidence_keeps_what_is_recognised_and_takes_the_asked_end_of_it(
    inputs: dict[str, Path], order: str, tmp_path: Path
) -> None:
    found = picked(inputs, tmp_path / "set", "confidence", order=order)
    pool, network = read_set(inputs["generated"], DIGITS, 0), load_network(inputs["model"], "last", "cpu")
    with torch.inference_mode():
        images = torch.from_numpy(pool.images).permute(0, 3, 1, 2)
        probability = network(normalize(images.float() / 255)).softmax(dim=1)
    for label in range(10):
        rows = [row for row in range(len(pool)) if pool.labels[row] == label]
        right = [row for row in rows if int(probability[row].argmax()) == label]
        assert len(right) >= 4, "a network that recognises too little tells nothing here"
        sign = -1 if order == "descending" else 1
        expected = sorted(right, key=lambda row: sign * float(probability[row, label]))[:4]
        mine = [found[f"{label}/{index:05d}.png"] for index in range(4)]
        assert mine == [f"generated/{pool.names[row]}" for row in expected]


def test_trained_scores_follow_their_definition_and_the_number_of_looks(inputs: dict[str, Path], tmp_path: Path) -> None:
    hard = np.load(scored(inputs, tmp_path / "el2n", "el2n") / "scores.npy")
    forgotten = np.load(scored(inputs, tmp_path / "forgetting", "forgetting") / "scores.npy")
    assert hard.shape == forgotten.shape == (10 * POOL,)
    assert 0 < hard.min() < hard.max() < 2**0.5
    assert set((2 * forgotten).astype(int)) <= set(range(9))  # halves of two trainings, 4 looks at most
    again = np.load(scored(inputs, tmp_path / "again", "el2n") / "scores.npy")
    assert np.array_equal(hard, again)


def test_an_image_with_a_wrong_label_is_the_hardest_and_never_learned(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A one among the zeros: EL2N puts it above the median of its class, confidence below."""
    pool = read_set(inputs["generated"], DIGITS, 0)
    images = pool.images.copy()
    images[0] = pool.images[POOL]
    (tmp_path / "pool").mkdir()
    write_set(tmp_path / "pool", DIGITS, images, pool.labels.tolist(), pool.names)
    given = inputs | {"generated": tmp_path / "pool"}
    hard = np.load(scored(given, tmp_path / "el2n", "el2n") / "scores.npy")[:POOL]
    sure = np.load(scored(given, tmp_path / "sure", "confidence") / "scores.npy")[:POOL]
    assert hard.argmax() == 0
    assert sure.argmin() == 0


def mosaics(inputs: dict[str, Path], out: Path, **changes: Any) -> list[str]:
    out.mkdir()
    asked = spec("rded", of="real", candidates=40, **changes)
    pick.run(asked, {"images": Path(), "teacher": inputs["model"]}, out, Context())
    return list(origins(out).values())


def test_mosaics_are_crops_of_the_images_that_they_name(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = mosaics(inputs, tmp_path / "set", ipc=2)
    assert len(found) == 20
    assert all(line.startswith("crops of train-") and line.count("train-") == 4 for line in found)
    (train,) = read_splits(DIGITS, Path(), "train")
    label_of = dict(zip(train.names, train.labels.tolist(), strict=True))
    own = read_set(tmp_path / "set", DIGITS, 0)
    for line, label in zip(found, own.labels.tolist(), strict=True):
        assert {label_of[name] for name in line.removeprefix("crops of ").split(", ")} == {label}
    small = mosaics(inputs, tmp_path / "small", ipc=1)
    assert small == found[::2]


def test_a_teacher_is_surer_of_the_crops_it_chose(inputs: dict[str, Path], tmp_path: Path) -> None:
    network = load_network(inputs["model"], "last", "cpu")

    def sureness(name: str, **changes: Any) -> float:
        mosaics(inputs, tmp_path / name, tiles=1, **changes)
        own = read_set(tmp_path / name, DIGITS, 0)
        with torch.inference_mode():
            images = torch.from_numpy(own.images).permute(0, 3, 1, 2).float() / 255
            probability = network(normalize(images)).softmax(dim=1)
        return float(probability.gather(1, torch.from_numpy(own.labels)[:, None]).mean())

    assert sureness("many", crops=8) > sureness("one", crops=1)


def test_a_tile_keeps_the_brightness_of_its_crop() -> None:
    crops = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shrunk(crops, 4).mean(dim=(1, 2, 3)), crops.mean(dim=(1, 2, 3)))


def test_too_few_candidates_for_the_mosaics_say_what_to_raise(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="ipc 11 needs 44 crops, one an image; 40 images of class 0 are looked at"):
        mosaics(inputs, tmp_path / "set", ipc=11)


@pytest.mark.parametrize(
    ("rule", "fields", "words"),
    [
        ("herding", {"order": "ascending"}, "order means nothing to rule herding"),
        ("confidence", {"normalized": False}, "normalized means nothing to rule confidence"),
        ("random", {"space": "latents"}, "space means nothing to rule random"),
        ("confidence", {"trainings": 5}, "trainings means nothing to rule confidence"),
        ("rded", {"of": "real", "pool": 3}, "pool means nothing to rule rded"),
        ("rded", {}, "rded cuts crops out of real images, not of generated ones"),
        ("rded", {"of": "real", "tiles": 3}, "3 tiles do not fill a side of 8 px"),
    ],
)
def test_fields_of_other_rules_are_refused(rule: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(rule, **fields)


def test_none_can_be_varied_beside_fields_of_another_rule() -> None:
    assert spec("none", order="ascending").draws
