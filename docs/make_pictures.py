"""A folder of colour pictures to try things out with: FOLDER/CLASS/*.jpg, six classes, cut from three photographs.

    python docs/make_pictures.py FOLDER [IMAGES_PER_CLASS]

The photographs come with scikit-learn (extra `digits`: china.jpg and flower.jpg, CC BY 2.0) and matplotlib (grace_hopper.jpg,
public domain). A picture is a square of random place, size and angle inside its class's region, at a random brightness and
mirrored or not, so that no two are equal; pictures of one class overlap, test images too: good to see that things work,
nothing to publish.
"""

import sys
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

SIDE = 64
PHOTOS = {
    "china": ("sklearn.datasets.images", "china.jpg"),
    "flower": ("sklearn.datasets.images", "flower.jpg"),
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}
# class -> photograph and its region: left, top, right, bottom
REGIONS = {
    "dahlia": ("flower", (160, 75, 455, 365)),
    "face": ("hopper", (130, 100, 385, 340)),
    "flag": ("hopper", (0, 0, 150, 360)),
    "leaves": ("flower", (0, 40, 170, 427)),
    "pavilion": ("china", (70, 90, 340, 340)),
    "trees": ("china", (330, 250, 640, 427)),
}


def picture(photo: Image.Image, region: tuple[int, int, int, int], draw: np.random.Generator) -> Image.Image:
    """A square of 56 to 112 pixels inside the region, turned by up to 20 degrees, at SIDE pixels."""
    left, top, right, bottom = region
    side = int(draw.integers(56, 113))
    x, y = (int(draw.integers(low, high - side + 1)) for low, high in ((left, right), (top, bottom)))
    cut = photo.crop((x, y, x + side, y + side)).rotate(draw.uniform(-20, 20), Image.Resampling.BICUBIC)
    margin = side // 8  # the corners that turning left empty
    cut = cut.crop((margin, margin, side - margin, side - margin)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    cut = ImageEnhance.Brightness(cut).enhance(draw.uniform(0.7, 1.3))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else cut


def make(folder: Path, num_per_class: int = 120) -> None:
    photos = {}
    for name, (package, file) in PHOTOS.items():
        with resources.as_file(resources.files(package) / file) as path:
            photos[name] = Image.open(path).convert("RGB")
    for label, (name, (photo, region)) in enumerate(REGIONS.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(num_per_class):
            draw = np.random.default_rng([label, number])
            picture(photos[photo], region, draw).save(folder / name / f"{number:04d}.jpg", quality=92)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120)
