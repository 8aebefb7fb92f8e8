"""What a folder of images that nobody has described holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.survey import survey

Make = Callable[..., Path]


def put(folder: Path, count: int, *, size: tuple[int, int] = (40, 30), colour: bool = True) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        shape = (size[1], size[0], 3) if colour else (size[1], size[0])
        noise = np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


def test_class_folders_alone_have_no_split(tmp_path: Path) -> None:
    for name, count in (("b", 5), ("a", 9)):
        put(tmp_path / name, count)
    found = survey(tmp_path)
    assert (found.root, found.train, found.test) == (tmp_path, {"a": 9, "b": 5}, {})
    assert (found.fewest, found.side, found.channels) == (5, 30, 3)


@pytest.mark.parametrize("test_folder", ["val", "validation", "test"])
def test_a_split_is_found_by_its_names(test_folder: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "train" / name, 6)
        put(tmp_path / test_folder / name, 3)
    found = survey(tmp_path)
    assert (found.root, found.test, found.test_folder) == (tmp_path, {"a": 3, "b": 3}, test_folder)


def test_train_without_a_test_folder_is_class_folders_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "train" / name, 6)
    found = survey(tmp_path)
    assert (found.root, found.test) == (tmp_path / "train", {})


def test_a_folder_that_holds_nothing_but_a_folder_is_passed_through(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "unpacked" / "flowers" / name, 4)
    assert survey(tmp_path).root == tmp_path / "unpacked" / "flowers"


def test_pictures_without_colour_are_grey_whatever_their_mode(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / name, 4, colour=False)
    for path in (tmp_path / "a").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert survey(tmp_path).channels == 1


def test_folders_without_images_are_left_out_and_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / name, 4)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".git").mkdir()
    found = survey(tmp_path)
    assert (found.classes, found.left_out) == (("a", "b"), ("notes",))


def test_what_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / name, 4)
    (tmp_path / "a" / "0.png").write_bytes(b"no picture")
    found = survey(tmp_path)
    assert found.unreadable == [str(tmp_path / "a" / "0.png")]
    assert found.opened == 8


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({}, "0 of 0 folders hold images"),
        ({"a": 5}, "1 of 1 folders hold images"),
        ({"a": 5, "b": 3}, "1 of 2 classes have fewer than 4 images: b 3"),
        ({".": 5}, "5 images lie there without class folders"),
    ],
)
def test_a_folder_that_gives_no_table_is_refused(folders: dict[str, int], words: str, tmp_path: Path) -> None:
    for name, count in folders.items():
        put(tmp_path / "root" / name, count)
    (tmp_path / "root").mkdir(exist_ok=True)
    with pytest.raises(StageError, match=words):
        survey(tmp_path / "root")


def test_ilsvrcs_test_folder_without_labels_is_no_test_set(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "train" / name, 6)
    put(tmp_path / "test", 5)
    found = survey(tmp_path)
    assert (found.root, found.test) == (tmp_path / "train", {})
