"""Coresets by features, features of images, and the quality of a set: each against what it is made from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ddgd_ray.errors import StageError
from ddgd_ray.method.coresets import herding, k_center
from ddgd_ray.spec.evaluation import FeaturesSpec, QualitySpec, SelectSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import features, quality, select
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import save_identity
from ddgd_ray.stages.parts.distilled import origins, read_set
from ddgd_ray.stages.parts.images import list_splits, read_splits

DIGITS = ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1, validation_per_class=20)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all training digits: their pixels."""
    model, out = tmp_path_factory.mktemp("identity"), tmp_path_factory.mktemp("features")
    save_identity(model)
    features.run(FeaturesSpec(space="latents", images=DIGITS, size=8), {"images": Path(), "model": model}, out, Context())
    return out


def table(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy")


def test_features_keep_their_image_and_its_label(real: Path) -> None:
    (train,) = read_splits(DIGITS, Path(), "train")
    assert np.array_equal(table(real, "rows"), np.arange(len(train)))
    assert np.array_equal(table(real, "labels"), train.labels)
    expected = train.images.astype(np.float32).reshape(len(train), -1) / 127.5 - 1
    np.testing.assert_allclose(table(real, "features"), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["herding", "herding_idc", "kcenter"])
def test_a_coreset_holds_the_images_that_the_rule_picks(real: Path, tmp_path: Path, method: str) -> None:
    spec = SelectSpec(method=method, ipc=4, images=DIGITS, seed=5)  # type: ignore[arg-type]
    select.run(spec, {"images": Path(), "features": real}, tmp_path, Context())
    (listing,) = list_splits(DIGITS, Path(), "train")
    found = origins(tmp_path)
    for label in range(10):
        mine = np.flatnonzero(listing.labels == label)
        own = torch.from_numpy(table(real, "features")[mine])
        first = int(np.random.default_rng([5, label]).integers(len(mine)))
        picked = k_center(own, 4, first=first) if method == "kcenter" else herding(own, 4, normalized=method == "herding")
        expected = [listing.names[mine[row]] for row in picked.tolist()]
        assert [found[f"{label}/{index:05d}.png"] for index in range(4)] == expected


def test_a_smaller_coreset_is_a_prefix_and_kcenter_starts_where_the_seed_says(real: Path, tmp_path: Path) -> None:
    def picked(name: str, **changes: int) -> dict[str, str]:
        out = tmp_path / name
        out.mkdir()
        fields = {"method": "kcenter", "ipc": 5, "images": DIGITS, "seed": 0} | changes
        select.run(SelectSpec.model_validate(fields), {"images": Path(), "features": real}, out, Context())
        return origins(out)

    large, small, other = picked("large"), picked("small", ipc=2), picked("other", seed=1)
    assert small.items() <= large.items()
    assert other != large


def test_a_coreset_larger_than_a_class_is_refused(real: Path, tmp_path: Path) -> None:
    spec = SelectSpec(method="herding", ipc=500, images=DIGITS)
    with pytest.raises(StageError, match=r"ipc 500 is more than the 1\d\d training images of class 0"):
        select.run(spec, {"images": Path(), "features": real}, tmp_path, Context())


def measured(real: Path, folder: Path, rows: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    folder.mkdir()
    np.save(folder / "features.npy", rows.astype(np.float32))
    np.save(folder / "labels.npy", labels)
    return quality.run(QualitySpec(), {"real": real, "set": folder}, folder, Context())


def test_quality_tells_copies_from_fresh_images_and_from_noise(real: Path, tmp_path: Path) -> None:
    rows, labels = table(real, "features"), table(real, "labels")
    chosen = np.random.default_rng(0).permutation(len(rows))[:100]
    copied = measured(real, tmp_path / "copied", rows[chosen], labels[chosen])
    assert (copied["copies"], copied["precision"]) == (1, 1)
    nearest = json.loads((tmp_path / "copied" / "copies.json").read_text())["nearest"]
    assert [line["row"] for line in nearest] == chosen.tolist()
    (held_out,) = read_splits(DIGITS, Path(), "validation")
    fresh_rows = held_out.images.reshape(len(held_out), -1) / 127.5 - 1
    fresh = measured(real, tmp_path / "fresh", fresh_rows[::2], held_out.labels[::2])
    noise = measured(real, tmp_path / "noise", np.random.default_rng(1).normal(size=(100, 64)), labels[:100])
    assert fresh["copies"] < 0.1
    assert noise["copies"] == noise["precision"] == 0
    assert fresh["precision"] > 0.8
    assert fresh["frechet"] < noise["frechet"] / 3
    assert fresh["vendi"] < noise["vendi"]
    assert fresh["similarity_within"] > fresh["similarity"] > noise["similarity"]


def test_a_set_of_fewer_images_than_neighbours_is_refused(real: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="5 neighbours need more than 4 images"):
        measured(real, tmp_path / "small", table(real, "features")[:4], table(real, "labels")[:4])


def test_a_sets_features_are_those_of_its_first_images(tmp_path: Path, real: Path) -> None:
    model, chosen, out = tmp_path / "model", tmp_path / "chosen", tmp_path / "out"
    for folder in (model, chosen, out):
        folder.mkdir()
    save_identity(model)
    select.run(SelectSpec(ipc=3, images=DIGITS), {"images": Path()}, chosen, Context())
    spec = FeaturesSpec(space="latents", images=DIGITS, size=8, ipc=2)
    features.run(spec, {"set": chosen, "model": model}, out, Context())
    expected = read_set(chosen, DIGITS, 2)
    assert table(out, "labels").tolist() == [label for label in range(10) for _ in range(2)]
    np.testing.assert_allclose(table(out, "features"), expected.images.reshape(20, -1) / 127.5 - 1, atol=1e-6)


class Means(torch.nn.Module):
    """As StyleGAN's Inception: uint8 in, logits out unless features are asked for."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if return_features:
            return images.float().mean(dim=3).flatten(1)
        return images.float().sum(dim=3)


def test_a_scripted_network_is_a_feature_space(tmp_path: Path) -> None:
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    spec = FeaturesSpec(space="inception", images=DIGITS, size=8)
    features.run(spec, {"images": Path(), "model": tmp_path / "means.pt"}, tmp_path, Context())
    (train,) = read_splits(DIGITS, Path(), "train")
    expected = np.repeat(train.images.mean(axis=2).transpose(0, 2, 1), 3, axis=1).reshape(len(train), -1)
    np.testing.assert_allclose(table(tmp_path, "features"), expected, rtol=1e-5)


def test_a_file_that_is_no_script_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(StageError, match="expected a TorchScript file") as caught:
        spec = FeaturesSpec(space="inception", images=DIGITS, size=8)
        features.run(spec, {"images": Path(), "model": tmp_path / "weights.pt"}, tmp_path, Context())
    assert "weights.pt" in str(caught.value.where)
