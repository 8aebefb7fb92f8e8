"""Ready-made sets: any folder of class folders will do, and what does not fit is said in full."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import set_source
from ddgd_ray.inputs.setfolder import class_folders, set_files
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.distilled import read_set

CLASSES = ("bird", "cat", "dog")


def write(folder: Path, number: int, size: tuple[int, int] = (9, 9)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number % 100:02d}.png")


@pytest.fixture
def a_set(tmp_path: Path) -> Callable[..., Path]:
    """A set of num images a class, its folders named as told."""

    def make(place: str = "set", names: tuple[str, ...] = CLASSES, num: int = 3) -> Path:
        for label, name in enumerate(names):
            for index in range(num):
                write(tmp_path / place / name, 100 * label + index)
        return tmp_path / place

    return make


@pytest.mark.parametrize("below", ["", "/images", "/train"])
def test_class_folders_are_found_where_sets_have_them(a_set: Callable[..., Path], tmp_path: Path, below: str) -> None:
    a_set(f"set{below}")
    files = set_files(tmp_path / "set", CLASSES)
    assert list(files) == list(CLASSES)
    assert [Path(path).name for path in files["cat"]] == ["00.png", "01.png", "02.png"]


@pytest.mark.parametrize("entry", [lambda label: label, lambda label: {"label": label, "name": "x"}])
def test_a_label_map_says_which_folder_is_which_class(a_set: Callable[..., Path], entry: Callable[[int], Any]) -> None:
    root = a_set(names=("00002", "00000", "00001"))
    (root / "labels.json").write_text(json.dumps({"00000": entry(1), "00001": entry(2), "00002": entry(0)}))
    files = set_files(root, CLASSES)
    assert [Path(paths[0]).parent.name for paths in files.values()] == ["00002", "00000", "00001"]


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (("bird", "cat"), CLASSES, ["2 class folders, expected the 3 classes", "missing here:  dog"]),
        ((*CLASSES, "fish"), CLASSES, ["4 class folders", "not a class:   fish", "remove these folders"]),
        (("bird", "cat", "hound"), CLASSES, ["missing here:  dog", "not a class:   hound", "choose another --preset"]),
        (("0", "1", "2"), CLASSES, ['write labels.json, {"0": 0, ...}']),
    ],
)
def test_folders_that_are_other_classes_are_told_apart(
    a_set: Callable[..., Path], names: tuple[str, ...], classes: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(StageError) as caught:
        set_files(a_set(names=names), classes)
    assert caught.value.code == "label-map"
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"bird": 1, "cat": 0, "dog": 2}, "bird is label 1, images.classes has it at 0"),
        ({"bird": 0, "cat": 1, "dog": 1}, "label 1 is given to 2 folders"),
        ({"bird": 0, "cat": 1}, "folder dog has no label"),
        ({"bird": 0, "cat": 1, "dog": 2, "fish": 3}, "fish is label 3"),
        (["bird"], 'expected {"FOLDER": LABEL, ...}'),
        ({"bird": "0", "cat": 1, "dog": 2}, 'expected {"FOLDER": LABEL, ...}'),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(a_set: Callable[..., Path], labels: Any, words: str) -> None:
    root = a_set()
    (root / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(StageError) as caught:
        set_files(root, CLASSES)
    assert caught.value.code == "label-map"
    assert words in str(caught.value)


def test_what_is_no_set_is_named(a_set: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the set's folder does not exist"):
        set_files(tmp_path / "nowhere", CLASSES)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StageError, match="the set's folder is a file"):
        set_files(tmp_path / "file", CLASSES)
    write(tmp_path / "flat", 1)
    with pytest.raises(StageError, match="images lie there without class folders"):
        class_folders(tmp_path / "flat")
    root = a_set()
    for path in (root / "cat").iterdir():
        path.unlink()
    with pytest.raises(StageError, match="1 of 3 classes have no images: cat"):
        set_files(root, CLASSES)


def test_the_fingerprint_is_that_of_the_images_in_order(a_set: Callable[..., Path], tmp_path: Path) -> None:
    first, again = set_source(a_set("one"), CLASSES), set_source(a_set("another/images"), CLASSES)
    assert first.fingerprint == again.fingerprint
    assert (first.smallest, again.smallest) == (3, 3)
    (tmp_path / "one" / "dog" / "00.png").rename(tmp_path / "one" / "dog" / "99.png")  # another image is the first now
    assert set_source(tmp_path / "one", CLASSES).fingerprint != first.fingerprint


def test_a_file_that_is_no_image_is_found_before_anything_runs(a_set: Callable[..., Path]) -> None:
    root = a_set()
    (root / "dog" / "page.png").write_text("<html>")
    with pytest.raises(StageError, match="1 of 10 files of the set are no images") as caught:
        set_source(root, CLASSES)
    assert "page.png" in str(caught.value)


def test_damaged_images_are_listed(a_set: Callable[..., Path]) -> None:
    root, spec = a_set(), ImagesSpec(source="imagefolder", classes=CLASSES, size=8)
    for name in ("bird", "dog"):
        path = root / name / "01.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StageError, match="2 of 9 images of the set cannot be used") as caught:
        read_set(root, spec, 3, num_threads=2)
    assert "bird/01.png" in str(caught.value)
    assert "dog/01.png" in str(caught.value)
    assert len(read_set(root, spec, 1)) == 3, "what is not used does not matter"


def test_images_of_any_shape_are_fitted(a_set: Callable[..., Path]) -> None:
    root = a_set()
    write(root / "dog", 250, size=(40, 17))
    split = read_set(root, ImagesSpec(source="imagefolder", classes=CLASSES, size=8), 0, size=12)
    assert split.images.shape == (10, 12, 12, 3)
    assert split.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4
