"""Image folders: three layouts give the same answer, and what does not fit is named. No file is decoded here."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import images_source, training_images_per_class
from ddgd_ray.inputs.imagefolder import SOLUTION, ImageFiles, image_files
from ddgd_ray.spec.stages import ImagesSpec

CLASSES = ("n02096294", "n02093754")
NUM_TRAIN, NUM_VAL = 4, 2
KAGGLE = "ILSVRC/Data/CLS-LOC"


def spec(**changes: Any) -> ImagesSpec:
    return ImagesSpec(**{"source": "imagefolder", "classes": CLASSES, "size": 32, **changes})


def write(path: Path) -> Path:
    """A file that begins as a JPEG does and holds its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff" + path.name.encode() * 4)
    return path


def val_name(name: str, index: int) -> str:
    return f"ILSVRC2012_val_{name}_{index}.JPEG"


def write_train(base: Path) -> None:
    for name in CLASSES:
        for index in range(NUM_TRAIN):
            write(base / "train" / name / f"{name}_{index}.JPEG")


def write_split(root: Path, test: str = "val") -> Path:
    write_train(root)
    for name in CLASSES:
        for index in range(NUM_VAL):
            write(root / test / name / val_name(name, index))
    return root


def write_kaggle(root: Path) -> Path:
    """Kaggle's archive: a flat val with a class that nobody asked for, and its table beside ILSVRC."""
    write_train(root / KAGGLE)
    lines = ["ImageId,PredictionString"]
    for name in (*CLASSES, "n01440764"):
        for index in range(NUM_VAL):
            path = write(root / KAGGLE / "val" / val_name(name, index))
            lines.append(f"{path.stem},{name} 1 2 30 40 {CLASSES[0]} 5 6 7 8")
    (root / SOLUTION).write_text("\n".join(lines) + "\n")
    return root


def write_flat(root: Path, num_images: int = NUM_TRAIN + NUM_VAL) -> Path:
    for name in CLASSES:
        for index in range(num_images):
            write(root / name / f"{name}_{index}.JPEG")
    return root


def names(files: ImageFiles) -> list[str]:
    return [name for name, _ in files.named()]


def fingerprint(root: Path, **changes: Any) -> str:
    return images_source(spec(root=str(root), **changes))[0]


def refusal(root: Path, **changes: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        images_source(spec(root=str(root), **changes))
    return caught.value


# ---- layouts


@pytest.mark.parametrize("test", ["val", "validation", "test"])
def test_the_test_images_may_lie_in_any_of_three_folders(tmp_path: Path, test: str) -> None:
    expected = names(image_files(spec(), write_split(tmp_path / "expected")))
    assert names(image_files(spec(), write_split(tmp_path / "other", test))) == expected
    assert fingerprint(tmp_path / "other") == fingerprint(tmp_path / "expected")


@pytest.mark.parametrize("below", ["", "ILSVRC", "ILSVRC/Data", KAGGLE])
def test_kaggles_archive_gives_the_files_of_the_split_folder_from_any_level(tmp_path: Path, below: str) -> None:
    split, kaggle = write_split(tmp_path / "split"), write_kaggle(tmp_path / "kaggle") / below
    assert names(image_files(spec(), kaggle)) == names(image_files(spec(), split))
    assert fingerprint(kaggle) == fingerprint(split)


def test_a_folder_without_a_split_gives_the_same_classes_and_as_many_images(tmp_path: Path) -> None:
    split = image_files(spec(), write_split(tmp_path / "split"))
    sliced = image_files(spec(test_per_class=NUM_VAL), write_flat(tmp_path / "flat"))
    for ours, theirs in ((sliced.train, split.train), (sliced.val, split.val)):
        assert list(ours) == list(theirs) == list(CLASSES)
        assert [len(paths) for paths in ours.values()] == [len(paths) for paths in theirs.values()]


def test_the_test_images_of_a_folder_without_a_split_are_not_training_images(tmp_path: Path) -> None:
    files = image_files(spec(test_per_class=NUM_VAL), write_flat(tmp_path / "flat"))
    for name in CLASSES:
        assert not set(files.train[name]) & set(files.val[name])
        assert sorted(files.train[name] + files.val[name]) == sorted(map(str, (tmp_path / "flat" / name).iterdir()))


def test_the_slice_for_testing_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    here, there = write_flat(tmp_path / "here"), write_flat(tmp_path / "far" / "there")
    flat = spec(test_per_class=NUM_VAL)
    assert names(image_files(flat, here)) == names(image_files(flat, there))


def test_images_added_later_take_the_place_of_at_most_as_many_test_images(tmp_path: Path) -> None:
    flat = spec(test_per_class=10)
    before = {path for paths in image_files(flat, write_flat(tmp_path, 40)).val.values() for path in paths}
    after = {path for paths in image_files(flat, write_flat(tmp_path, 42)).val.values() for path in paths}
    assert len(before - after) <= 2 * len(CLASSES)


def test_the_order_of_the_classes_is_that_of_the_spec(tmp_path: Path) -> None:
    files = image_files(spec(classes=CLASSES[::-1]), write_kaggle(tmp_path))
    assert list(files.train) == list(files.val) == list(CLASSES[::-1])


def test_val_is_taken_where_test_is_there_too(tmp_path: Path) -> None:
    write_split(tmp_path)
    write(tmp_path / "test" / "ILSVRC2012_test_1.JPEG")
    assert len(image_files(spec(), tmp_path).val[CLASSES[0]]) == NUM_VAL


def test_hidden_files_and_files_of_another_kind_do_not_count(tmp_path: Path) -> None:
    before = fingerprint(write_split(tmp_path))
    write(tmp_path / "train" / CLASSES[0] / "._n02096294_0.JPEG")
    (tmp_path / "train" / CLASSES[0] / "Thumbs.db").write_bytes(b"thumbs")
    (tmp_path / "train" / CLASSES[0] / "folder.jpg").mkdir()
    assert fingerprint(tmp_path) == before


# ---- errors


def test_a_missing_folder_is_named_with_the_layouts_that_would_fit(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere")
    assert (error.code, error.where) == ("data-missing", str(tmp_path / "nowhere"))
    assert "does not exist" in error.what
    assert "ROOT/train/CLASS" in error.what


def test_a_root_that_is_a_file_or_a_broken_link_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a file" in refusal(tmp_path / "file").what
    assert "is a broken link" in refusal(tmp_path / "link").what


def test_a_root_with_strange_folders_says_which_it_found(tmp_path: Path) -> None:
    write(tmp_path / "cats" / "1.jpg")
    write(tmp_path / "dogs" / "1.jpg")
    assert "found 2 folders (cats, dogs) and 0 files" in refusal(tmp_path).what


def test_train_without_test_images_says_what_lies_beside_it(tmp_path: Path) -> None:
    write_train(tmp_path)
    (tmp_path / "README").write_text("")
    error = refusal(tmp_path)
    assert "folder beside train, found 1 folders (train) and 1 files" in error.what


def test_a_class_without_images_is_named_with_the_reason_and_its_split(tmp_path: Path) -> None:
    write_split(tmp_path)
    for path in (tmp_path / "train" / CLASSES[0]).iterdir():
        path.unlink()
    error = refusal(tmp_path)
    assert error.where == str(tmp_path / "train")
    assert f"1 of 2 classes have no images: {CLASSES[0]} (empty folder)" in error.what


def test_all_classes_without_images_of_both_splits_are_named_at_once(tmp_path: Path) -> None:
    write_split(tmp_path)
    shutil.rmtree(tmp_path / "train" / CLASSES[0])
    shutil.rmtree(tmp_path / "val" / CLASSES[1])
    (tmp_path / "val" / CLASSES[1]).symlink_to(tmp_path / "gone")
    error = refusal(tmp_path)
    assert f"{tmp_path / 'train'}: 1 of 2 classes have no images: {CLASSES[0]} (no folder)" in error.what
    assert f"{tmp_path / 'val'}: 1 of 2 classes have no images: {CLASSES[1]} (broken link)" in error.what


def test_images_in_two_places_are_ambiguous(tmp_path: Path) -> None:
    write_split(tmp_path)
    write_kaggle(tmp_path)
    error = refusal(tmp_path)
    assert f"several places: {tmp_path / 'train'} and {tmp_path / KAGGLE / 'train'}" in error.what


def test_val_beside_validation_is_ambiguous(tmp_path: Path) -> None:
    write_split(tmp_path)
    write_split(tmp_path, "validation")
    assert "val and validation are both there" in refusal(tmp_path).what


def test_a_folder_without_a_split_needs_test_per_class(tmp_path: Path) -> None:
    error = refusal(write_flat(tmp_path))
    assert "how many images of each are for testing is not said" in error.what
    assert "--set images.test_per_class=" in error.fix


def test_the_train_folder_given_as_the_root_is_told_from_a_folder_without_a_split(tmp_path: Path) -> None:
    write_split(tmp_path)
    assert refusal(tmp_path / "train").fix == f"--set images.root={tmp_path}"


def test_test_per_class_is_refused_where_there_is_a_split(tmp_path: Path) -> None:
    assert refusal(write_split(tmp_path), test_per_class=1).fix == "leave out images.test_per_class"


def test_a_slice_for_testing_must_leave_training_images(tmp_path: Path) -> None:
    error = refusal(write_flat(tmp_path), test_per_class=NUM_TRAIN + NUM_VAL)
    assert f"{CLASSES[0]} 6, {CLASSES[1]} 6" in error.what


def test_a_flat_val_without_its_table_says_that_it_needs_it(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    (tmp_path / SOLUTION).unlink()
    error = refusal(tmp_path)
    assert "images lie there without class folders; 2 of 2 classes have no images" in error.what
    assert SOLUTION in error.fix


def test_a_table_with_missing_images_names_them(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    missing = tmp_path / KAGGLE / "val" / val_name(CLASSES[1], 0)
    missing.unlink()
    error = refusal(tmp_path)
    assert error.where == str(missing.parent)
    assert f"1 of 4 images that {tmp_path / SOLUTION} lists for these classes are not there: {missing.stem}" in error.what


def test_images_of_other_classes_may_be_missing_from_a_flat_val(tmp_path: Path) -> None:
    before = fingerprint(write_kaggle(tmp_path))
    (tmp_path / KAGGLE / "val" / val_name("n01440764", 0)).unlink()
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("text", [b"<html>\n404\n", b"ImageId,PredictionString\nlonely\n", b"ImageId\xff\n"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    write_kaggle(tmp_path)
    (tmp_path / SOLUTION).write_bytes(text)
    error = refusal(tmp_path)
    assert error.where == str(tmp_path / SOLUTION)
    assert "columns ImageId,PredictionString" in error.what


# ---- corrupt files and the fingerprint


def break_link(path: Path) -> Path:
    path.unlink()
    path.symlink_to(path.parent / "gone")
    return path


def test_files_that_are_no_images_and_broken_links_are_listed(tmp_path: Path) -> None:
    write_split(tmp_path)
    folder = tmp_path / "train" / CLASSES[0]
    (folder / f"{CLASSES[0]}_1.JPEG").write_bytes(b"<html>404</html>")
    link = break_link(folder / f"{CLASSES[0]}_2.JPEG")
    error = refusal(tmp_path)
    assert error.code == "corrupt-image"
    assert "2 of 12 files are no images:" in error.what
    assert f"{folder / CLASSES[0]}_1.JPEG\n" in error.what
    assert f"{link}: a broken link" in error.what


def test_corrupt_files_are_skipped_up_to_max_corrupt(tmp_path: Path) -> None:
    write_split(tmp_path)
    break_link(tmp_path / "train" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG")
    (tmp_path / "val" / CLASSES[1] / val_name(CLASSES[1], 0)).write_bytes(b"")
    fingerprint(tmp_path, on_corrupt="skip", max_corrupt=2)
    error = refusal(tmp_path, on_corrupt="skip", max_corrupt=1)
    assert "2 of 12 files are no images, images.max_corrupt allows 1" in error.what


def test_skipped_files_do_not_count_as_training_images(tmp_path: Path) -> None:
    write_split(tmp_path)
    break_link(tmp_path / "train" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG")
    assert training_images_per_class(spec(on_corrupt="skip"), tmp_path) == NUM_TRAIN - 1


def test_a_class_with_nothing_but_corrupt_training_images_is_refused_though_they_may_be_skipped(tmp_path: Path) -> None:
    write_split(tmp_path)
    for path in (tmp_path / "train" / CLASSES[0]).iterdir():
        path.write_bytes(b"")
    error = refusal(tmp_path, on_corrupt="skip")
    assert f"class {CLASSES[0]} has 4 training images, 4 of them corrupt" in error.what


def test_the_fingerprint_holds_the_policy_for_corrupt_files_but_not_a_limit_without_effect(tmp_path: Path) -> None:
    write_split(tmp_path)
    fail, skip = fingerprint(tmp_path), fingerprint(tmp_path, on_corrupt="skip")
    assert len({fail, skip, fingerprint(tmp_path, on_corrupt="skip", max_corrupt=3)}) == 3
    assert fingerprint(tmp_path, max_corrupt=3) == fail


def test_a_file_that_breaks_changes_the_fingerprint_under_skip(tmp_path: Path) -> None:
    before = fingerprint(write_split(tmp_path), on_corrupt="skip")
    break_link(tmp_path / "train" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG")
    assert fingerprint(tmp_path, on_corrupt="skip") != before


def test_the_fingerprint_does_not_depend_on_the_path_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fingerprint(write_split(tmp_path / "here"))
    (tmp_path / "link").symlink_to(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "deep" / "copy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGES", str(tmp_path / "here"))
    for root in ("link", "deep/copy", f"{tmp_path}/here/", "$IMAGES"):
        assert images_source(spec(root=root))[0] == expected


def test_the_fingerprint_tells_a_renamed_image_and_one_in_another_class(tmp_path: Path) -> None:
    before = fingerprint(write_split(tmp_path))
    path = tmp_path / "train" / CLASSES[0] / f"{CLASSES[0]}_3.JPEG"
    os.rename(path, path.with_name("renamed.JPEG"))
    renamed = fingerprint(tmp_path)
    os.rename(path.with_name("renamed.JPEG"), tmp_path / "train" / CLASSES[1] / path.name)
    assert len({before, renamed, fingerprint(tmp_path)}) == 3


@pytest.mark.parametrize("test_per_class", [0, 2])
def test_names_that_are_not_utf8_are_names_too(tmp_path: Path, test_per_class: int) -> None:
    write_flat(tmp_path) if test_per_class else write_split(tmp_path)
    before = fingerprint(tmp_path, test_per_class=test_per_class)
    folder = tmp_path / CLASSES[0] if test_per_class else tmp_path / "train" / CLASSES[0]
    write(folder / "latin.jpg").rename(folder / os.fsdecode(b"caf\xe9.jpg"))
    assert fingerprint(tmp_path, test_per_class=test_per_class) != before
