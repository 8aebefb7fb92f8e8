"""The latent cache: equal bytes after any crash and with any number of ranks; damage is seen and named."""

import logging
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddgd_ray.errors import ArtifactError, StageError
from ddgd_ray.spec.stages import EncodeSpec, ImagesSpec
from ddgd_ray.stages import encode
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts import shards
from ddgd_ray.stages.parts.backbone import Autoencoder, save_identity, to_unit_range
from ddgd_ray.stages.parts.images import read_splits
from ddgd_ray.stages.parts.latents import LatentCache
from ddgd_ray.stages.parts.shards import Shard, plan_shards
from ddgd_ray.storage.store import file_sha256

SPEC = EncodeSpec(images=ImagesSpec(source="digits", classes=tuple("0123456789"), size=8, channels=1))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_ROWS", 300)  # the 1,442 digits make five shards


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "vae").mkdir()
    save_identity(tmp_path / "vae")
    return {"images": Path(), "autoencoder": tmp_path / "vae"}


def made(inputs: dict[str, Path], out: Path, **context: Any) -> dict[str, str]:
    """SHA-256 of each file of a run of the stage."""
    out.mkdir()
    encode.run(SPEC, inputs, out, Context(chunk=64, **context))
    return {path.name: file_sha256(path) for path in out.rglob("*")}


def test_the_shards_hold_every_image_and_its_mirror_image_in_order(inputs: dict[str, Path], tmp_path: Path) -> None:
    files = made(inputs, tmp_path / "out", num_threads=2)
    assert sorted(files) == ["labels.npy", *(f"posterior-0000{index}.npy" for index in range(5))]
    (train,) = read_splits(SPEC.images, Path(), "train")
    pixels = to_unit_range(torch.from_numpy(train.images)).numpy().astype(np.float16)
    found = np.concatenate([np.load(tmp_path / "out" / name) for name in sorted(files)[1:]])
    assert np.array_equal(found[:, 0, :1], pixels)
    assert np.array_equal(found[:, 1, :1], pixels[..., ::-1])
    assert np.array_equal(np.load(tmp_path / "out" / "labels.npy"), train.labels)


class Crash(Exception):
    pass


def crash_at(shard: int, seen: list[int]) -> Any:
    def report(step: int, metrics: Mapping[str, float]) -> None:
        seen.append(step)
        if step == shard:
            raise Crash

    return report


def test_a_crash_leaves_the_finished_shards_and_the_next_run_goes_on_behind_them(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = made(inputs, tmp_path / "calm")
    keep, computed = tmp_path / "keep", []
    keep.mkdir()
    with pytest.raises(Crash):
        made(inputs, tmp_path / "first", keep=keep, report=crash_at(2, []))
    kept = {path.name: path.stat().st_mtime_ns for path in keep.glob("*.npy")}
    assert {"posterior-00000.npy", "posterior-00001.npy", "posterior-00002.npy"} <= kept.keys()
    assert len(kept) < 5
    plain = Autoencoder.posterior

    def counted(self: Autoencoder, images: torch.Tensor) -> Any:
        computed.append(len(images) // 2)
        return plain(self, images)

    monkeypatch.setattr(Autoencoder, "posterior", counted)
    assert made(inputs, tmp_path / "second", keep=keep) == calm
    assert sum(computed) == 1442 - 300 * len(kept)  # the probe of the latents' shape has half an image
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in keep.glob("*.npy")}.items()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record"])
def test_a_damaged_kept_shard_is_made_again(
    damage: str, inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    calm = made(inputs, tmp_path / "calm", keep=keep)
    path = keep / "posterior-00001.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.unlink()  # the published file is the same one, by a hard link
    if damage == "record":
        path.write_bytes((tmp_path / "calm" / path.name).read_bytes())
        (keep / f"{path.name}.json").write_text('{"shard": ')
    elif damage != "remove":
        path.write_bytes(data if damage == "flip" else data[:-100])
    with caplog.at_level(logging.WARNING):
        assert made(inputs, tmp_path / "again", keep=keep) == calm
    assert [str(path) in record.message and "made again" in record.message for record in caplog.records] == [True]


def _rank(rank: int, address: str, inputs: dict[str, Path], keep: Path, out: Path) -> None:
    shards.MAX_ROWS = 300
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    made(inputs, out, keep=keep, rank=rank, num_ranks=2)
    torch.distributed.destroy_process_group()


def test_two_ranks_make_the_files_of_one(inputs: dict[str, Path], tmp_path: Path) -> None:
    calm = made(inputs, tmp_path / "calm")
    (tmp_path / "keep").mkdir()
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=_rank, args=(rank, f"file://{tmp_path}/meet", inputs, tmp_path / "keep", tmp_path / f"out{rank}"))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(90)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert {path.name: file_sha256(path) for path in (tmp_path / "out0").iterdir()} == calm
    assert not list((tmp_path / "out1").iterdir())


def test_shards_are_bounded_in_images_and_in_bytes() -> None:
    latent_256, pixels_256 = (8, 32, 32), (6, 256, 256)
    assert [len(range(shard.start, shard.stop)) for shard in plan_shards(700, latent_256)] == [300, 300, 100]
    rows = plan_shards(700, pixels_256)[0].shape
    assert rows[0] < 300
    assert np.prod(rows) * 2 <= shards.MAX_BYTES


def test_no_batch_crosses_a_shard() -> None:
    blocks = Shard(3, 900, 1100, (2, 8, 8)).blocks(64)
    assert [(int(rows[0]), int(rows[-1])) for rows in blocks] == [(900, 963), (964, 1027), (1028, 1091), (1092, 1099)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """30 random posteriors in one file, as the first version wrote them."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "posterior.npy", rng.normal(size=(30, 2, 4, 3, 3)).astype(np.float16))
    np.save(tmp_path / "labels.npy", np.arange(30) % 3)
    return tmp_path


def in_shards(folder: Path, *places: int) -> Path:
    for index, part in enumerate(np.split(np.load(folder / "posterior.npy"), places)):
        np.save(folder / f"posterior-{index:05d}.npy", part)
    (folder / "posterior.npy").unlink()
    return folder


def test_a_draw_from_shards_is_the_draw_from_one_file(cache: Path) -> None:
    ids = torch.tensor([29, 0, 9, 10, 11, 9, 20])
    one = LatentCache(cache).draw(ids, torch.Generator().manual_seed(3))
    many = LatentCache(in_shards(cache, 10, 10, 11)).draw(ids, torch.Generator().manual_seed(3))  # one of them empty
    assert torch.equal(one.z0, many.z0)
    assert torch.equal(one.labels, many.labels)


def test_a_truncated_file_of_the_cache_is_named(cache: Path) -> None:
    path = in_shards(cache, 10, 20) / "posterior-00001.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"posterior-00001\.npy: is truncated or no array.*\n.*it is made again"):
        LatentCache(cache)


def test_a_missing_shard_is_told_by_the_number_of_images(cache: Path) -> None:
    (in_shards(cache, 10, 20) / "posterior-00001.npy").unlink()
    with pytest.raises(ArtifactError, match=r"2 posterior files hold 20 images, labels\.npy has 30"):
        LatentCache(cache)


def test_shards_of_different_shape_are_refused(cache: Path) -> None:
    np.save(in_shards(cache, 10) / "posterior-00001.npy", np.zeros((20, 2, 4, 3, 2), np.float16))
    with pytest.raises(ArtifactError, match=r"posterior-00001\.npy: has shape \(20, 2, 4, 3, 2\)"):
        LatentCache(cache)


def test_ranks_that_share_no_folder_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="this shard of the latent cache is missing") as caught:
        shards.read_skipped(tmp_path, Shard(0, 0, 10, (2, 8, 8)))
    assert "on storage that they share" in caught.value.fix
