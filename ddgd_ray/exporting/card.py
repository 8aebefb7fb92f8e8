"""The card of an exported set, its README.md."""

import math
from collections import Counter

from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.images import ImageSet
from ddgd_ray.exporting.layouts import SHARD
from ddgd_ray.exporting.licences import licence_of, notes
from ddgd_ray.exporting.numbers import numbers_section
from ddgd_ray.exporting.sections import front_matter, joined, licence_section, method_section, provenance_section
from ddgd_ray.run.lineage import Lineage, spec_of
from ddgd_ray.spec.evaluation import SelectSpec
from ddgd_ray.spec.pick import PickSpec
from ddgd_ray.spec.stages import SampleSpec
from ddgd_ray.storage.store import Artifact

LOADING = {
    "imagefolder": """
    torchvision.datasets.ImageFolder("FOLDER/train")       # numbers the classes by their folders' names: imagefolder_label
    datasets.load_dataset("FOLDER", split="train")         # label as in labels.json
    ddgd-ray evaluate FOLDER --preset {preset}
""",
    "hf": """
    datasets.load_dataset("FOLDER", split="train")         # image, label (ClassLabel), class, file_name, origin, sha256
""",
    "webdataset": """
    webdataset.WebDataset("FOLDER/{shards}", shardshuffle=False).decode("pil").to_tuple("{suffix}", "cls")
    datasets.load_dataset("FOLDER", split="train")         # {suffix}, cls, json
""",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (math.inf, "1M<n<10M"))


def set_card(choice: Choice, images: ImageSet, made_from: Lineage | None, layout: str, command: str) -> str:
    """README.md of a set. command: what exports it again."""
    run, num = choice.run, len(images.images)
    terms = notes(images.spec, made_from)
    parts = {
        "": f"# {run.spec.name}: {choice.arm}, seed {choice.seed}\n\n{_what(choice, images, num)}",
        "How to load": _loading(layout, run.spec.preset, images),
        "How it was made": _made(choice, made_from),
        "Numbers": numbers_section(choice, min(Counter(image.label for image in images.images).values())),
        "Provenance": provenance_section(choice, made_from, command),
        "Licence": licence_section(terms),
    }
    return _head(choice, num, layout, licence_of(terms)) + joined(parts)


def _loading(layout: str, preset: str, images: ImageSet) -> str:
    last = (len(images.images) - 1) // SHARD
    shards = f"train-{{000000..{last:06d}}}.tar" if last else "train-000000.tar"
    return LOADING[layout].format(preset=preset, suffix=images.images[0].path.suffix.lower()[1:], shards=shards).strip("\n")


def _head(choice: Choice, num: int, layout: str, licence: str) -> str:
    files = {"imagefolder": "train/**", "hf": "data/*.parquet", "webdataset": "train-*.tar"}[layout]
    size = next(name for limit, name in SIZES if num < limit)
    lines = [
        f'pretty_name: "{choice.run.spec.name}, {choice.name}"',
        f"license: {licence}",
        "task_categories: [image-classification]",
        f'size_categories: ["{size}"]',
        "tags: [dataset-distillation]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f'    path: "{files}"',
    ]
    return front_matter(lines)


def _what(choice: Choice, images: ImageSet, num: int) -> str:
    spec = images.spec
    counts = set(Counter(image.label for image in images.images).values())
    per_class = f"{counts.pop()} a class" if len(counts) == 1 else f"{min(counts)} to {max(counts)} a class"
    of = {"fashion": "Fashion-MNIST", "fashion-full": "Fashion-MNIST", "digits": "scikit-learn's handwritten digits"}
    source = of.get(spec.source, f"the image folder of preset {choice.run.spec.preset}")
    kind = "grey" if spec.channels == 1 else "RGB"
    return (
        f"{num} images, {per_class}, {len(images.classes)} classes, {spec.size} x {spec.size} pixels, {kind}: "
        f"{_kind(choice)} of {source}. `metadata.jsonl` has a line an image (file, label, class, origin, SHA-256), "
        "`labels.json` the label of each class folder, `provenance.json` every setting, `SHA256SUMS` a line a file."
    )


def _kind(choice: Choice) -> str:
    if choice.trial.set is None:
        return "a ready-made stand-in for the training images"
    return "a distilled stand-in for the training images" if choice.trial.sample else "a selection"


def _made(choice: Choice, made_from: Lineage | None) -> str:
    if made_from is None:
        return "Ready-made: the images were not made by ddgd-ray, which judged them alone."
    own = made_from.artifacts[-1]  # features behind a selection may themselves go back to one
    if own.stage == "pick":
        return _picked(made_from, own)
    if own.stage == "sample":
        return _drawn(made_from, own)
    picked = spec_of(own, SelectSpec)
    how = {
        "random": "drawn at random",
        "herding": "picked by herding",
        "herding_idc": "picked by herding of features whose rows keep their length",
        "kcenter": "picked by greedy k-center",
        "all": "all of them",
    }[picked.method]
    return f"A control: real training images, {how}, seed {picked.seed}. Nothing here is generated."


def _drawn(made_from: Lineage, own: Artifact) -> str:
    drawn = spec_of(own, SampleSpec)
    settings = f"sampler {drawn.sampler}, steps {drawn.steps}, guidance {drawn.guidance}, "
    settings += f"cfg_channels {drawn.cfg_channels}, weights {drawn.weights}, seed {drawn.seed}"
    settings += f", guide {drawn.guide.name} of strength {drawn.guide.strength}" if drawn.guide.name != "none" else ""
    settings += f", start {drawn.start.name} at {drawn.start.strength}" if drawn.start.name != "noise" else ""
    settings += f", spectral_gain {drawn.spectral_gain}" if drawn.spectral_gain > 1 else ""
    return f"{method_section(made_from)}\n\nThe set was drawn from that model: {settings}."


def _picked(made_from: Lineage, own: Artifact) -> str:
    picked = spec_of(own, PickSpec)
    if picked.rule == "rded":
        how = f"the surest of {picked.crops} crops of an image, {picked.tiles**2} in a picture"
        return f"Crops of real training images in mosaics (RDED): {how}, seed {picked.seed}. Nothing here is generated."
    of = {"generated": "samples", "real": "real training images", "both": "samples and real training images"}[picked.of]
    pool = f"a pool of {picked.pool} {of} for each image"
    how = f"The set was picked by {picked.rule} from {pool}; `origin` says which became which."
    if "generated" not in own.inputs:
        return f"{how} Nothing here is generated."
    return f"{_drawn(made_from, made_from.input_of(own, 'generated'))}\n\n{how}"
