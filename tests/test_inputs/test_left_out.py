"""Images in any place where torchvision's ImageFolder finds them, and a word about each picture that is not read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ddgd_ray.doctor.inputs import check_images
from ddgd_ray.errors import StageError
from ddgd_ray.inputs.class_files import IMAGE_SUFFIXES, LeftOut, images_below
from ddgd_ray.inputs.fingerprints import images_source
from ddgd_ray.inputs.imagefolder import ImageFiles, image_files
from ddgd_ray.inputs.notes import image_notes, other_split, set_notes
from ddgd_ray.inputs.setfolder import set_files
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.readers import list_source

SPEC = ImagesSpec(source="imagefolder", root="x", classes=("cat", "dog"), size=32, validation_per_class=1, labels="position")


def draw(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((40, 40, 3), value, np.uint8)
    Image.fromarray(pixels[..., 0] if path.suffix.lower() == ".pgm" else pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three images each of training and testing."""
    for split in ("train", "val"):
        for name in SPEC.classes:
            for index in range(3):
                draw(tmp_path / split / name / f"{index}.png", index)
    return tmp_path


def read(root: Path, spec: ImagesSpec = SPEC) -> ImageFiles:
    return image_files(spec, root)


def test_the_suffixes_are_those_of_torchvision() -> None:
    assert set(IMAGE_SUFFIXES) == set(IMG_EXTENSIONS)


def test_files_and_order_are_those_of_torchvision_in_folders_below_a_class_too(folder: Path) -> None:
    for number, name in enumerate(["a/x.tif", "a-b/y.TIFF", "a/b/z.ppm", "Z/w.pgm", "v.webp", "u.bmp", "t.JPEG"]):
        draw(folder / "train" / "cat" / name, number)
    found = images_below(folder / "train" / "cat", LeftOut())
    theirs = [path for path, label in ImageFolder(str(folder / "train")).samples if label == 0]
    assert found == theirs
    assert len(found) == 10


def test_images_in_folders_below_a_class_are_read_under_names_of_their_own(folder: Path) -> None:
    draw(folder / "train" / "cat" / "more" / "0.png", 7)
    names = read(folder).names("train")
    assert len(set(names)) == len(names) == 7
    assert "train/cat/more/0.png" in names
    train, _ = list_source(SPEC, folder)
    assert train.names == names
    assert int(train.picture(names.index("train/cat/more/0.png"))[0, 0, 0]) == 7


def test_the_fingerprint_sees_images_below_a_class(folder: Path) -> None:
    spec = SPEC.model_copy(update={"root": str(folder)})
    before = images_source(spec)[0]
    draw(folder / "train" / "cat" / "more" / "0.png", 7)
    assert images_source(spec)[0] != before


def test_a_folder_that_links_to_one_above_it_is_entered_once(folder: Path) -> None:
    (folder / "train" / "cat" / "again").symlink_to(folder / "train" / "cat")
    assert len(images_below(folder / "train" / "cat", LeftOut())) == 3


def test_what_is_not_read_is_counted_and_named(folder: Path) -> None:
    cat = folder / "train" / "cat"
    for name in ("a.gif", "b.gif", "c.jfif", "list.txt", ".DS_Store"):
        (cat / name).write_bytes(b"GIF8")
    os.mkfifo(cat / "pipe.png")
    draw(cat / "__MACOSX" / "x.png")
    files = read(folder)
    assert dict(files.left_out.counts) == {
        ".gif": 2,
        ".jfif": 1,
        ".txt": 1,
        "hidden": 1,
        "is a named pipe, no file": 1,
        "folder __MACOSX": 1,
    }
    (note,) = image_notes(SPEC, files)
    assert "7 files are left out (2 .gif" in note.what
    assert str(cat) in note.what


def test_a_class_whose_pictures_are_not_read_is_not_called_empty(folder: Path) -> None:
    for path in (folder / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(StageError, match=r"cat \(no image that is read: 3 files are left out \(3 \.gif\)"):
        read(folder)


def test_doctor_tells_of_pictures_that_are_not_read(folder: Path) -> None:
    (folder / "train" / "cat" / "a.gif").write_bytes(b"GIF89a")
    found = check_images(SPEC.model_copy(update={"root": str(folder)}))
    assert [finding.level for finding in found] == ["PASS", "WARN"]
    assert "1 file is left out (1 .gif)" in found[1].what
    assert found[1].fix


def test_a_set_is_read_below_its_class_folders_and_tells_what_it_leaves_out(folder: Path) -> None:
    root = folder / "train"
    draw(root / "cat" / "more" / "0.png")
    (root / "dog" / "a.gif").write_bytes(b"GIF89a")
    files = set_files(root, SPEC.classes)
    assert [len(paths) for paths in files.values()] == [4, 3]
    (note,) = set_notes(root, SPEC.classes)
    assert "1 file is left out (1 .gif)" in note.what


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "lost+found"])
def test_a_folder_that_an_archive_or_a_system_left_is_to_be_removed(folder: Path, name: str) -> None:
    (folder / "train" / name).mkdir()
    with pytest.raises(StageError, match="no class") as caught:
        set_files(folder / "train", SPEC.classes)
    assert caught.value.fix.startswith("remove it: rm -r ")


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("training", "valid"), ("train", "VALID"), ("TRAINING", "testing")]
)
def test_other_common_names_of_the_splits_are_understood(folder: Path, train: str, val: str) -> None:
    before = read(folder)
    (folder / "train").rename(folder / "t")
    (folder / "val").rename(folder / "v")
    (folder / "t").rename(folder / train)
    (folder / "v").rename(folder / val)
    assert [name for name, _ in read(folder).named()] == [name for name, _ in before.named()]


def test_two_train_folders_are_refused(folder: Path) -> None:
    (folder / "training").mkdir()
    with pytest.raises(StageError, match="several places"):
        read(folder)


def test_classes_may_be_called_train_and_val(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"classes": ("train", "val", "bus"), "test_per_class": 1})
    for name in spec.classes:
        for index in range(4):
            draw(tmp_path / name / f"{index}.png", index)
    files = read(tmp_path, spec)
    assert [len(paths) for paths in files.train.values()] == [3, 3, 3]
    assert [len(paths) for paths in set_files(tmp_path, spec.classes).values()] == [4, 4, 4]


def test_classes_called_train_and_val_may_lie_in_a_split(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"classes": ("train", "val")})
    for split in ("train", "val"):
        for name in spec.classes:
            draw(tmp_path / split / name / "0.png")
    assert [len(paths) for paths in read(tmp_path, spec).val.values()] == [1, 1]


WOOF = ImagesSpec(
    source="imagefolder", root="x", classes=("n02086240", "n02087394"), size=32, validation_per_class=1, labels="imagenet"
)


def imagenet(root: Path, val_name: Callable[[str, int], str], num: int) -> ImageFiles:
    for name in WOOF.classes:
        for index in range(2):
            (root / "train" / name).mkdir(parents=True, exist_ok=True)
            (root / "train" / name / f"{name}_{index}.JPEG").touch()
        for index in range(num):
            (root / "val" / name).mkdir(parents=True, exist_ok=True)
            (root / "val" / name / val_name(name, index)).touch()
    return image_files(WOOF, root)


def test_imagenets_own_validation_images_need_no_word(tmp_path: Path) -> None:
    files = imagenet(tmp_path, lambda name, index: f"ILSVRC2012_val_{name}{index:05d}.JPEG", 50)
    assert other_split(WOOF, files) == ""


@pytest.mark.parametrize(
    ("val_name", "num"),
    [(lambda name, index: f"{name}_{index}.JPEG", 50), (lambda name, index: f"ILSVRC2012_val_{name}{index:05d}.JPEG", 43)],
)
def test_another_split_under_imagenets_names_is_told(tmp_path: Path, val_name: Callable[[str, int], str], num: int) -> None:
    (note,) = image_notes(WOOF, imagenet(tmp_path, val_name, num))
    assert "cannot be compared" in note.what
    assert f"{num} a class where ImageNet has 50" in note.what
