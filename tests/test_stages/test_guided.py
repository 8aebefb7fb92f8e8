"""Guides and starts in a real sampling of digits: nothing at strength 0, the same set in any batches, what each promises."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ddgd_ray.errors import StageError
from ddgd_ray.method.difffit import freeze_all_but, trainable_state
from ddgd_ray.method.guidance import Step
from ddgd_ray.method.inversion import mismatch
from ddgd_ray.method.spectrum import mean_amplitudes, radial
from ddgd_ray.spec.stages import AutoencoderSpec, EncodeSpec, ImagesSpec, PretrainSpec, SampleSpec
from ddgd_ray.spec.ways import InvertSpec, ModesSpec, SpectrumSpec
from ddgd_ray.stages import autoencoder, encode, invert, modes, pretrain, sample, spectrum
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.invert import read_moments
from ddgd_ray.stages.parts.adapters import Adapter, save_adapter
from ddgd_ray.stages.parts.backbone import Autoencoder, load_dit, save_identity, to_unit_range
from ddgd_ray.stages.parts.distilled import read_set
from ddgd_ray.stages.parts.images import read_splits
from ddgd_ray.stages.parts.latents import LatentCache
from ddgd_ray.stages.parts.steering import Steering
from ddgd_ray.stages.spectrum import read_gain
from ddgd_ray.storage.store import file_sha256

DIGITS = ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1, validation_per_class=20)
GUIDES = ("mode", "manifold", "features", "transport")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A DiT trained on the digits for a moment, pixels as latents, and what guides and starts are told of them."""
    names = ("backbone", "adapter", "autoencoder", "latents", "modes", "moments")
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    save_identity(folders["autoencoder"])
    encode.run(EncodeSpec(images=DIGITS), {"images": Path(), **folders}, folders["latents"], Context())
    trained = PretrainSpec(layers=3, heads=2, head_dim=16, steps=150, batch_size=32)
    pretrain.run(trained, folders, folders["backbone"], Context())
    tuned = load_dit(folders["backbone"])
    freeze_all_but(tuned, "difffit")
    state = trainable_state(tuned)
    save_adapter(folders["adapter"], Adapter("difffit"), {name: tensor.clone() for name, tensor in state.items()}, state)
    modes.run(ModesSpec(num=4, radius=0.1, tangents=3, images=DIGITS), folders, folders["modes"], Context())
    invert.run(InvertSpec(strength=0.6, steps=5, images=DIGITS), folders, folders["moments"], Context())
    return folders


def spec(**changes: Any) -> SampleSpec:
    fields = {"sampler": "ddpm", "steps": 5, "cfg_channels": 1, "guidance": 1.5, "ipc": 4, "images": DIGITS} | changes
    return SampleSpec.model_validate(fields)


def draw(inputs: dict[str, Path], out: Path, ctx: Context | None = None, **changes: Any) -> dict[str, str]:
    out.mkdir()
    sample.run(spec(**changes), inputs, out, ctx or Context())
    return {str(path.relative_to(out)): file_sha256(path) for path in sorted(out.rglob("*.png"))}


def test_modes_are_those_of_scikit_learn_the_largest_cluster_first(inputs: dict[str, Path]) -> None:
    cache, found = LatentCache(inputs["latents"]), modes.read_modes(inputs["modes"])
    for label in (0, 7):
        rows = (cache.labels == label).nonzero()[:, 0]
        flat = cache.means(rows).flatten(1).double().numpy()
        fitted = KMeans(4, n_init=10, random_state=0).fit(flat)
        sizes = np.bincount(fitted.labels_)
        order = sorted(range(4), key=lambda k: -sizes[k])
        np.testing.assert_allclose(found.centres[label].flatten(1), fitted.cluster_centers_[order], atol=1e-6)
        np.testing.assert_allclose(found.weights_YK[label], sizes[order] / len(rows), rtol=1e-6)
        for place, k in enumerate(order):
            nearest = int(np.linalg.norm(flat - fitted.cluster_centers_[k], axis=1).argmin())
            assert int(found.rows_YK[label, place]) == int(rows[nearest])
            assert torch.equal(found.nearest[label, place], cache.means(rows[nearest : nearest + 1])[0])
    gram = found.tangents @ found.tangents.transpose(2, 3)
    torch.testing.assert_close(gram, torch.eye(3).expand(10, 4, 3, 3), rtol=0, atol=1e-5)


def test_more_modes_than_latents_are_refused_with_the_class(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="5000 modes with 0 tangents need more than the .* latents of class 0"):
        modes.run(ModesSpec(num=5000, images=DIGITS), inputs, tmp_path, Context())


@pytest.fixture(scope="module")
def plain(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The sets without guidance, by sampler."""
    return {name: draw(inputs, tmp_path_factory.mktemp(name) / "set", sampler=name) for name in ("ddpm", "ddim")}


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("guide", GUIDES)
def test_strength_zero_is_no_guidance_to_the_bit(
    inputs: Any, plain: dict[str, dict[str, str]], guide: str, sampler: str, tmp_path: Path
) -> None:
    assert draw(inputs, tmp_path / "set", sampler=sampler, guide={"name": guide, "strength": 0.0}) == plain[sampler]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guided_set_is_another_one_and_the_same_in_any_batches(
    inputs: Any, plain: dict[str, dict[str, str]], guide: str, sampler: str, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {"sampler": sampler, "guide": {"name": guide, "strength": 1.0}}
    if guide == "transport":
        chosen["guide"]["group"] = 3  # the last group of each class is drawn whole and one image of it is used
    whole = draw(inputs, tmp_path / "whole", **chosen)
    assert sum(whole[name] != plain[sampler][name] for name in whole) > 15  # of 40; those that a hasty model saturates stay so
    assert draw(inputs, tmp_path / "parts", Context(chunk=7), **chosen) == whole
    small = draw(inputs, tmp_path / "small", **chosen, ipc=2)
    assert small.items() <= whole.items()


def pixels(inputs: dict[str, Path], out: Path, **changes: Any) -> torch.Tensor:
    draw(inputs, out, **changes)
    split = read_set(out, DIGITS, 4)
    return torch.from_numpy(split.images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["centre", "nearest"])
def test_an_image_is_pulled_to_the_point_of_its_class_and_index(inputs: dict[str, Path], kind: str) -> None:
    found = modes.read_modes(inputs["modes"])
    points = found.centres if kind == "centre" else found.nearest
    items = [(3, 1), (3, 6), (8, 0)]  # six modulo the four modes is two
    asked = spec(guide={"name": "mode", "strength": 0.2, "stop": 0.0}, modes={"kind": kind})
    guide = Steering(asked, inputs, load_dit(inputs["backbone"]), lambda z, t, y: z, "cpu").guide(items)
    assert guide is not None
    mean, x0 = torch.zeros(3, 1, 8, 8), torch.full((3, 1, 8, 8), 0.25)
    one_B = torch.ones(3, dtype=torch.int64)
    moved = guide(Step(mean, x0, torch.tensor(0.5), 3, x0, one_B, one_B, 0.9))
    expected = torch.stack([points[3, 1], points[3, 2], points[8, 0]])
    torch.testing.assert_close(moved, 0.2 * 0.5 * (expected - 0.25))


def test_a_late_start_is_nearer_to_its_prototype_than_an_early_one(inputs: dict[str, Path], tmp_path: Path) -> None:
    points = modes.read_modes(inputs["modes"]).centres.flatten(0, 1)
    far = []
    for strength in (0.2, 0.8):
        start = {"name": "prototype", "strength": strength}
        far.append(float((pixels(inputs, tmp_path / f"{strength}", start=start) - points).flatten(1).norm(dim=1).mean()))
    assert far[0] < 0.7 * far[1]


def test_an_inverted_start_is_the_same_in_any_batches_and_follows_the_seed(inputs: dict[str, Path], tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"sampler": "ddim", "start": {"name": "inversion", "strength": 0.6, "groups": 20}}
    whole = draw(inputs, tmp_path / "whole", **chosen)
    assert draw(inputs, tmp_path / "parts", Context(chunk=3), **chosen) == whole
    assert draw(inputs, tmp_path / "other", **chosen, seed=1) != whole


def test_more_groups_are_never_less_like_the_class(inputs: dict[str, Path]) -> None:
    wanted = read_moments(inputs["moments"])
    model = load_dit(inputs["backbone"])
    misses = []
    for groups in (1, 10, 100):
        asked = spec(sampler="ddim", start={"name": "inversion", "groups": groups})
        begin = Steering(asked, inputs, model, lambda z, t, y: z, "cpu").begin([(3, index) for index in range(4)])
        assert begin is not None
        misses.append(float(mismatch(begin(torch.zeros(4, 1, 8, 8)).flatten(1), wanted[3])))
    assert misses[0] >= misses[1] >= misses[2]
    assert misses[2] < misses[0]


def test_the_spectral_gain_gives_reconstructions_the_amplitudes_of_the_images(tmp_path: Path) -> None:
    """A small autoencoder of the digits: what it damps is put back ring by ring."""
    folders = {name: tmp_path / name for name in ("autoencoder", "spectrum")}
    for folder in folders.values():
        folder.mkdir()
    trained = AutoencoderSpec(images=DIGITS, widths=(8, 8), latent_channels=2, steps=30)
    autoencoder.run(trained, {"images": Path()}, folders["autoencoder"], Context())
    asked = SpectrumSpec(most=1000.0, per_class=20, images=DIGITS)
    metrics = spectrum.run(asked, {"images": Path(), "autoencoder": folders["autoencoder"]}, folders["spectrum"], Context())
    (train,) = read_splits(DIGITS, Path(), "train")
    rows = np.concatenate([np.flatnonzero(train.labels == label)[:20] for label in range(10)])
    images = to_unit_range(torch.from_numpy(train.images[rows]))
    own = Autoencoder.load(folders["autoencoder"])
    back = own.decode_raw(own.posterior(images)[0])
    gain = read_gain(folders["spectrum"])
    expected = radial(mean_amplitudes(images)) / radial(mean_amplitudes(back))
    expected[:, 0, 0] = 1
    torch.testing.assert_close(gain, expected, rtol=1e-4, atol=0)
    assert metrics["greatest"] == pytest.approx(float(gain.max()))
    assert metrics["greatest"] > 1.05
