"""Notes on inputs: what is read is sound, and yet results may not mean what somebody thinks they do."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.inputs.class_files import LeftOut
from ddgd_ray.inputs.fingerprints import resolve
from ddgd_ray.inputs.imagefolder import ImageFiles, image_files
from ddgd_ray.inputs.setfolder import set_files
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.spec.sweep import Sweep

CONVERT = "convert these pictures to .png or .jpg, or move them away"
IMAGENET_VAL = "ILSVRC2012_val_"
IMAGENET_VAL_PER_CLASS = 50


@dataclass(frozen=True)
class Note:
    """One thing that a user should know of an input. code: `left-out` or `other-split`. fix: one action."""

    code: str
    where: str
    what: str
    fix: str

    def line(self) -> str:
        """The note as the command line tells a warning."""
        return f"warning[{self.code}]: {self.where}: {self.what}\n  help: {self.fix}"


def input_notes(sweep: Sweep) -> list[Note]:
    """Notes on the images and the ready-made sets of a sweep. Raises StageError as reading them would."""
    images = sweep.preset_with({}).images
    notes = []
    if images.source == "imagefolder" and images.root:
        notes += image_notes(images, image_files(images, resolve(images.root, "images.root")))
    for name, folders in sweep.spec.sets.items():
        for folder in folders if isinstance(folders, tuple) else (folders,):
            notes += set_notes(resolve(str(folder), f"sets.{name}"), images.classes)
    return notes


def image_notes(spec: ImagesSpec, files: ImageFiles) -> list[Note]:
    """Notes on an image folder: pictures that are not read, and a split that is not ImageNet's."""
    notes = (
        [Note("left-out", "images.root", f"in the class folders {files.left_out}", CONVERT)]
        if files.left_out.num_pictures
        else []
    )
    other = other_split(spec, files)
    return [*notes, Note("other-split", "images.root", other, "take ImageNet's own val images")] if other else notes


def set_notes(root: Path, classes: Sequence[str]) -> list[Note]:
    """Notes on a ready-made set: pictures that are not read."""
    set_files(root, classes, left_out := LeftOut())
    return [Note("left-out", "sets", f"in the set {root} {left_out}", CONVERT)] if left_out.num_pictures else []


def other_split(spec: ImagesSpec, files: ImageFiles) -> str:
    """What tells that the test images of WordNet classes are not ImageNet's validation images; "" where nothing does."""
    if spec.labels != "imagenet":
        return ""
    paths = [path for per_class in files.val.values() for path in per_class]
    others = sum(not os.path.basename(path).startswith(IMAGENET_VAL) for path in paths)
    counts = [len(per_class) for per_class in files.val.values()]
    few, many = min(counts), max(counts)
    if not others and few == many == IMAGENET_VAL_PER_CLASS:
        return ""
    a_class = f"{few} to {many}" if few < many else str(few)
    return (
        f"the test images are not ImageNet's validation images: {others} of {len(paths)} are not called {IMAGENET_VAL}*, "
        f"{a_class} a class where ImageNet has {IMAGENET_VAL_PER_CLASS} (fastai's ImageWoof and ImageNette have a split "
        "of their own); published tables cannot be compared with results on it"
    )
