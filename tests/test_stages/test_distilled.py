"""A set on disk: what is read is what was written, and others can read it."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddgd_ray.errors import StageError
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.distilled import read_set, write_set
from ddgd_ray.stages.parts.png_folder import LEDGER, PngFolder

SPEC = ImagesSpec(source="imagefolder", classes=("n02093754", "n01440764", "ours"), size=8)
LABELS = [0, 2, 1, 0, 2, 1]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path, SPEC, IMAGES, LABELS, [f"row {row}" for row in range(6)])
    return tmp_path


def test_a_set_is_read_as_it_was_written(folder: Path) -> None:
    found = read_set(folder, SPEC, 0)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(found.images, IMAGES[[0, 3, 2, 5, 1, 4]])
    assert read_set(folder, SPEC, 1).names == ["n02093754/00000.png", "n01440764/00000.png", "ours/00000.png"]


def test_the_label_map_tells_class_label_and_name(folder: Path) -> None:
    labels = json.loads((folder / "labels.json").read_text())
    terrier = {"label": 0, "generator_label": 0, "wordnet_id": "n02093754", "name": "Border terrier"}
    assert labels["n02093754"] == terrier
    assert labels["ours"] == {"label": 2, "generator_label": 2, "wordnet_id": None, "name": None}
    by_index = SPEC.model_copy(update={"classes": ("n02093754", "n01440764"), "labels": "imagenet"})
    write_set(folder, by_index, IMAGES[:2], [0, 1], ["a", "b"])
    known = json.loads((folder / "labels.json").read_text())
    assert [known[name]["generator_label"] for name in by_index.classes] == [182, 0]


def test_torchvisions_image_folder_reads_a_set(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(folder / "images"))
    assert found.classes == sorted(SPEC.classes)
    assert len(found) == 6


def test_every_line_of_the_metadata_names_a_file_beside_it(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [(line["class"], line["origin"]) for line in lines][:2] == [("n02093754", "row 0"), ("ours", "row 1")]
    assert all((folder / line["file_name"]).is_file() for line in lines)


@pytest.mark.parametrize("damage", ["other pixels", "cut", "missing"])
def test_a_file_that_is_not_the_written_one_is_named(folder: Path, damage: str) -> None:
    path = folder / "images" / "ours" / "00001.png"
    if damage == "other pixels":  # a sound PNG, but another one
        path.write_bytes((folder / "images" / "ours" / "00000.png").read_bytes())
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.unlink()
    with pytest.raises(StageError, match=r"images/ours/00001\.png.*expected") as caught:
        read_set(folder, SPEC, 1 if damage == "missing" else 2)
    assert caught.value.code == "corrupt-image"
    assert caught.value.fix


def test_kept_images_count_only_with_their_line_in_the_ledger(tmp_path: Path) -> None:
    with PngFolder(tmp_path) as folder:
        folder.put({f"{number}.png": image for number, image in enumerate(IMAGES)})
    lines = (tmp_path / LEDGER).read_text().splitlines(keepends=True)
    assert len(lines) == 6
    (tmp_path / LEDGER).write_text("".join(lines[:5])[:-3])  # the process died in the fifth line
    with PngFolder(tmp_path) as again:
        assert sorted(again.sha256) == sorted(line.split()[1] for line in lines[:4])
