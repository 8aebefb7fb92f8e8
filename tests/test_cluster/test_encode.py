"""The latent cache made by Ray Data: the bytes of the stage that makes it alone."""

import time
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from ddgd_ray.cluster.encode import encode_over_cluster
from ddgd_ray.cluster.train import WorkerGroup
from ddgd_ray.errors import Stopped
from ddgd_ray.spec.stages import EncodeSpec, ImagesSpec
from ddgd_ray.stages.base import Context, Outside, StageCall
from ddgd_ray.stages.parts.backbone import save_identity
from ddgd_ray.stages.publish import publish_call
from ddgd_ray.storage.store import Artifact, Store

CLASSES = ("a", "b", "c")


def call_of(folder: Path, *, num_images: int, size: int) -> StageCall:
    """Encoding `num_images` a class of noise, by the autoencoder that changes nothing."""
    rng = np.random.default_rng(0)
    for split, num in (("train", num_images), ("val", 1)):
        for name in CLASSES:
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(num):
                picture = Image.fromarray(rng.integers(0, 256, (size + 9, size, 3), dtype=np.uint8))
                picture.save(folder / "images" / split / name / f"{index:04d}.png", compress_level=0)
    (folder / "vae").mkdir()
    save_identity(folder / "vae")
    spec = EncodeSpec(images=ImagesSpec(source="imagefolder", classes=CLASSES, size=size, root=str(folder / "images")))
    inputs = {"images": Outside("i" * 64, str(folder / "images")), "autoencoder": Outside("a" * 64, str(folder / "vae"))}
    return StageCall(spec, inputs)


def files_of(artifact: Artifact) -> dict[str, str]:
    """SHA-256 by name, without the curves, in which stands the time."""
    return {name: entry["sha256"] for name, entry in artifact.manifest["files"].items() if name != "curves.jsonl"}


def both_ways(tmp_path: Path, call: StageCall, group: WorkerGroup) -> tuple[Artifact, Artifact]:
    alone, spread = Store(tmp_path / "alone"), Store(tmp_path / "spread")
    for store in (alone, spread):
        store.prepare()
    ctx = Context(chunk=16)
    one, _ = publish_call(call, alone, ctx)
    two, was_there = encode_over_cluster(call, spread, ctx, group)
    assert not was_there
    assert encode_over_cluster(call, spread, ctx, group)[1]
    assert not list((tmp_path / "spread" / "kept").iterdir())
    return one, two


def test_a_cache_made_by_ray_data_has_the_bytes_of_one_made_alone(ray_cluster: None, tmp_path: Path) -> None:
    one, two = both_ways(tmp_path, call_of(tmp_path, num_images=8, size=16), WorkerGroup(1, {"CPU": 1}))
    assert files_of(one) == files_of(two)
    assert one.metrics == two.metrics


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shards_of_several_processes_have_these_bytes_too(ray_cluster: None, tmp_path: Path) -> None:
    """240 images of 256 px make two shards."""
    one, two = both_ways(tmp_path, call_of(tmp_path, num_images=80, size=256), WorkerGroup(2, {"CPU": 1}))
    assert len([name for name in files_of(one) if name.startswith("posterior")]) == 2
    assert files_of(one) == files_of(two)


def test_an_order_to_stop_comes_back_as_such(ray_cluster: None, tmp_path: Path) -> None:
    store, call = Store(tmp_path / "store"), call_of(tmp_path, num_images=2, size=16)
    store.prepare()
    (tmp_path / "stop").write_text("")
    with pytest.raises(Stopped) as caught:
        encode_over_cluster(call, store, Context(stop_file=tmp_path / "stop"), WorkerGroup(1, {"CPU": 1}))
    assert not store.has(*call.ref)
    assert caught.value.where == f"encode {call.key[:8]}"
    assert all_cpus_are_free(), "its processes hold them though it has ended"


def all_cpus_are_free() -> bool:
    """Within the seconds that Ray takes to say so."""
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < deadline:
        time.sleep(0.2)
    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
