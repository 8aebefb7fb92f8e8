"""How many images a data set has, without reading them."""

from dataclasses import dataclass

from ddgd_ray.inputs.fingerprints import resolve
from ddgd_ray.inputs.imagefolder import image_files
from ddgd_ray.spec.stages import TRAIN_PER_CLASS, ImagesSpec

TESTS_PER_CLASS = {"fashion": 200, "fashion-full": 1000, "digits": 40}


@dataclass(frozen=True)
class Counts:
    """Images in all: to distill, and those that classifiers are judged by, for validation and for testing."""

    train: int
    judged: int


def counts_of(images: ImagesSpec) -> Counts:
    """Counts of the whole data set; files of a folder that cannot be decoded count. Raises StageError where it is missing."""
    classes = len(images.classes)
    held = images.validation_per_class * classes
    if images.source in TRAIN_PER_CLASS:
        return Counts(TRAIN_PER_CLASS[images.source] * classes - held, TESTS_PER_CLASS[images.source] * classes + held)
    files = image_files(images, resolve(images.root, "images.root"))
    return Counts(sum(map(len, files.train.values())) - held, sum(map(len, files.val.values())) + held)
