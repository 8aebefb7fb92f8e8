"""An exported set is what torchvision, datasets and webdataset load, and twice the same bytes."""

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.exporting.choose import choose
from ddgd_ray.exporting.export_set import export_set
from ddgd_ray.exporting.layouts import LAYOUTS
from ddgd_ray.inputs.fingerprints import set_source
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run

CLASSES = ("zebra", "test", "ant hill", "train", "b", "c", "d", "e", "f", "g")  # not in alphabetical order, two named as splits


@pytest.fixture(scope="module")
def run(made_run: Callable[..., Path]) -> Path:
    return made_run({"images.classes": CLASSES})


def export(run: Path, layout: str, to: Path, **options: Any) -> Path:
    return export_set(choose(read_run(run, open_store(run.parent))), layout, to, **options).path


def pixels(image: Image.Image) -> tuple[int, ...]:
    return tuple(np.asarray(image).ravel().tolist())


def expected(run: Path, ipc: int = 3) -> dict[tuple[int, ...], int]:
    """{pixels: label} of the best arm's first seed."""
    artifact = choose(read_run(run, open_store(run.parent))).set
    assert artifact is not None
    lines = [json.loads(line) for line in (artifact.path / "metadata.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if int(line["file_name"][-9:-4]) < ipc]
    return {pixels(Image.open(artifact.path / line["file_name"])): line["label"] for line in chosen}


def test_torchvision_loads_every_image_under_its_class(run: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    out = export(run, "imagefolder", tmp_path / "out")
    loaded = ImageFolder(out / "train", loader=Image.open)
    labels = json.loads((out / "labels.json").read_text())
    assert loaded.classes == sorted(CLASSES)
    assert {name: labels[name]["imagefolder_label"] for name in loaded.classes} == loaded.class_to_idx
    ours = {pixels(image): labels[loaded.classes[label]]["label"] for image, label in loaded}
    assert ours == expected(run)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_datasets_loads_every_image_with_our_label(
    layout: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    out = export(run, layout, tmp_path / "out")
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    image, label = ("png", "cls") if layout == "webdataset" else ("image", "label")
    assert {pixels(line[image]): line[label] for line in loaded["train"]} == expected(run)
    if layout == "hf":
        assert loaded["train"].features["label"].names == list(CLASSES)
        assert set(loaded["train"]["class"]) == set(CLASSES)


def test_webdataset_loads_every_image_classes_interleaved(run: Path, tmp_path: Path) -> None:
    import webdataset

    out = export(run, "webdataset", tmp_path / "out")
    shards = webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode("pill")
    samples = list(shards.to_tuple("png", "cls", "json"))
    assert {pixels(image): label for image, label, _ in samples} == expected(run)
    assert [label for _, label, _ in samples] == [*range(10)] * 3
    assert all(line["class"] == CLASSES[label] for _, label, line in samples)


def test_many_images_go_into_several_shards(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import webdataset

    for room in ("layouts", "card"):
        monkeypatch.setattr(f"ddgd_ray.exporting.{room}.SHARD", 12)
    out = export(run, "webdataset", tmp_path / "out")
    shards = sorted(map(str, out.glob("*.tar")))
    assert [Path(shard).name for shard in shards] == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert "FOLDER/train-{000000..000002}.tar" in (out / "README.md").read_text()
    samples = list(
        webdataset.WebDataset(str(out / "train-{000000..000002}.tar"), shardshuffle=False).decode("pill").to_tuple("png", "cls")
    )
    assert {pixels(image): label for image, label in samples} == expected(run)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twice_and_elsewhere_the_same_bytes(layout: str, run: Path, tmp_path: Path) -> None:
    first = export(run, layout, tmp_path / "a.tar", is_archive=True)
    second = export(run, layout, tmp_path / "deeper" / "other.tar", is_archive=True)
    assert first.read_bytes() == second.read_bytes()
    folder = export(run, layout, tmp_path / "folder")
    with tarfile.open(first) as archive:
        names = archive.getnames()
        assert names == sorted(names)
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in archive} == {(0, 0, 0, "")}
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert unpacked.name == "made-0.008-s0-ipc3"
    assert subprocess.run(["diff", "-r", folder, unpacked], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_checksums_are_those_of_every_other_file(layout: str, run: Path, tmp_path: Path) -> None:
    out = export(run, layout, tmp_path / "out")
    listed = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    there = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert listed.keys() == there.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(there[name].read_bytes()).hexdigest() == digest for name, digest in listed.items())


def test_a_smaller_ipc_is_the_first_images_of_each_class(run: Path, tmp_path: Path) -> None:
    out = export(run, "imagefolder", tmp_path / "out", ipc=1)
    lines = [json.loads(line) for line in (out / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == list(range(10))
    assert {pixels(Image.open(out / "train" / line["file_name"])): line["label"] for line in lines} == expected(run, ipc=1)
    assert "No set of 1 images per class of this arm was judged." in (out / "README.md").read_text()


def test_an_exported_folder_can_be_judged_again(run: Path, tmp_path: Path) -> None:
    out = export(run, "imagefolder", tmp_path / "out")
    assert set_source(out, CLASSES).smallest == 3
