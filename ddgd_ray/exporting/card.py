"""The cards: README.md of an exported set or model. Text of the run and its store alone, so the same for the same export."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.images import ImageSet
from ddgd_ray.exporting.licences import Note, licence_of, notes
from ddgd_ray.exporting.lineage import Lineage
from ddgd_ray.exporting.numbers import context_table, number_tables
from ddgd_ray.report.render import Cell, Column, Table, markdown

PAPERS = (
    "The method is that of *Diversity-Driven Generative Dataset Distillation Based on Diffusion Model with Self-Adaptive Memory* "
    "(arXiv 2505.19469), which extends *Efficient Dataset Distillation via Minimax Diffusion* (arXiv 2311.15529)."
)
LOADING = {
    "imagefolder": """
    torchvision.datasets.ImageFolder("FOLDER/train")       # numbers the classes by their folders' names: imagefolder_label
    datasets.load_dataset("FOLDER", split="train")         # label as in labels.json
    ddgd-ray evaluate FOLDER --preset {preset}             # judge it again
""",
    "hf": """
    datasets.load_dataset("FOLDER", split="train")         # image, label (ClassLabel), class, file_name, origin, sha256
""",
    "webdataset": """
    webdataset.WebDataset("FOLDER/train-000000.tar", shardshuffle=False).decode("pil").to_tuple("{suffix}", "cls")
    datasets.load_dataset("FOLDER", split="train")         # {suffix}, cls, json
""",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (math.inf, "1M<n<10M"))


def set_card(choice: Choice, images: ImageSet, made_from: Lineage | None, layout: str, command: str) -> str:
    """README.md of a set. command: what exports it again."""
    run, num = choice.run, len(images.images)
    terms = notes(images.spec, made_from)
    parts = {
        "": f"# {run.spec['name']}: {choice.arm}, seed {choice.seed}\n\n{_what(choice, images, num)}",
        "How to load": LOADING[layout].format(preset=run.spec["preset"], suffix=images.images[0].path.suffix.lower()[1:]).strip("\n"),
        "How it was made": _made(choice, made_from),
        "Numbers": _numbers(choice),
        "Provenance": _provenance(choice, made_from, images.spec, command),
        "Licence": _licence(terms),
    }
    return _front_matter(choice, num, layout, licence_of(terms)) + _joined(parts)


def model_card(name: str, choice: Choice | None, made_from: Lineage, weights: str, labels: Mapping[int, str], command: str) -> str:
    """README.md of a model, its last section says how to load it. choice: whose set it made, None when asked by key alone."""
    (encode,) = (link for link in made_from.links if link.stage == "encode")
    terms = notes(encode.spec["images"], made_from)
    adapter = made_from.first("finetune")
    assert adapter is not None
    shown = ", ".join(f"{label} {name}" for label, name in list(labels.items())[:20]) + (" ..." if len(labels) > 20 else "")
    kind = {"ema": "averaged over the steps (ema)", "raw": "of the last step (raw)"}[weights]
    what = (
        f"A class-conditional diffusion transformer (DiT), fine-tuned to draw distilled data sets; its adapter "
        f"`{adapter.spec['adapter']}` is folded into the weights, {kind}. "
        f"{len(labels)} classes, as label and name: {shown}."
    )
    parts = {
        "": f"# {name}\n\n{what}",
        "How it was made": _method(made_from),
        "Numbers": _numbers(choice, of_model=True)
        if choice
        else "Exported by its key alone: the numbers of the sets that it drew are in the card of `ddgd-ray export-model RUN`.",
        "Provenance": _provenance(choice, made_from, encode.spec["images"], command),
        "Licence": _licence(terms),
        "How to load": "    pipeline = diffusers.DiTPipeline.from_pretrained(FOLDER)\n"
        f"    pipeline(class_labels=[{', '.join(map(str, list(labels)[:2]))}], num_inference_steps=50).images\n\n"
        "DiTPipeline guides all latent channels, ddgd-ray `sample.cfg_channels` of them: what the two draw differs for that.",
    }
    head = [f"license: {licence_of(terms)}", "library_name: diffusers", "tags: [dit, dataset-distillation]"]
    return _yaml(head) + _joined(parts)


def _front_matter(choice: Choice, num: int, layout: str, licence: str) -> str:
    files = {"imagefolder": "train/**", "hf": "data/*.parquet", "webdataset": "train-*.tar"}[layout]
    size = next(name for limit, name in SIZES if num < limit)
    lines = [
        f"pretty_name: {json.dumps(f'{choice.run.spec["name"]}, {choice.name}')}",
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
    return _yaml(lines)


def _yaml(lines: Sequence[str]) -> str:
    return "\n".join(["---", *lines, "---", "", ""])


def _joined(parts: Mapping[str, str]) -> str:
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts.items() if text) + "\n"


def _what(choice: Choice, images: ImageSet, num: int) -> str:
    spec = images.spec
    counts = {sum(image.label == label for image in images.images) for label in range(len(images.classes))}
    per_class = f"{counts.pop()} a class" if len(counts) == 1 else f"{min(counts)} to {max(counts)} a class"
    of = {"fashion": "Fashion-MNIST", "fashion-full": "Fashion-MNIST", "digits": "scikit-learn's handwritten digits"}
    source = of.get(spec["source"], f"the image folder of preset {choice.run.spec['preset']}")
    kind = "grey" if spec["channels"] == 1 else "RGB"
    return (
        f"{num} images, {per_class}, {len(images.classes)} classes, {spec['size']} x {spec['size']} pixels, {kind}: "
        f"{_kind(choice)} of {source}. `metadata.jsonl` has a line an image (file, label, class, origin, SHA-256), `labels.json` the "
        "label of each class folder, `provenance.json` every setting, `SHA256SUMS` a line a file."
    )


def _kind(choice: Choice) -> str:
    record = choice.record
    if not record["build"]:
        return "a ready-made stand-in for the training images"
    return "a selection" if record["build"][-1][0] == "select" else "a distilled stand-in for the training images"


def _made(choice: Choice, made_from: Lineage | None) -> str:
    if made_from is None:
        return "Ready-made: the images were not made by ddgd-ray, which judged them alone."
    selected = made_from.first("select")
    if selected is None:
        drawn = made_from.first("sample")
        assert drawn is not None
        names = ("sampler", "steps", "guidance", "cfg_channels", "weights", "seed")
        settings = ", ".join(f"{name} {drawn.spec[name]}" for name in names)
        return f"{_method(made_from)}\n\nThe set was drawn from that model: {settings}."
    how = {
        "random": "drawn at random",
        "herding": "picked by herding",
        "kcenter": "picked by greedy k-center",
        "all": "all of them",
    }[selected.spec["method"]]
    return f"A control: real training images, {how}, seed {selected.spec['seed']}. Nothing here is generated."


def _method(made_from: Lineage) -> str:
    tuned = made_from.first("finetune")
    assert tuned is not None
    spec = tuned.spec
    if spec["steps"] == 0:
        return "A class-conditional diffusion transformer (DiT) without any fine-tuning: a control."
    text = (
        f"A class-conditional diffusion transformer (DiT) was fine-tuned on the real images for {spec['steps']} steps of "
        f"{spec['batch_size']} images (adapter {spec['adapter']}, learning rate {spec['learning_rate']:g}, seed {spec['seed']})"
    )
    if not (spec["lambda_r"] or spec["lambda_g"]):
        return f"{text}, on the diffusion loss alone: a control."
    memory = "a memory of {size} {whose} latents a class from which `{pop}` takes what leaves"
    real = memory.format(whose="real", **spec["memory_real"])
    made = memory.format(whose="generated", **spec["memory_gen"])
    return (
        f"{text} with two losses beside the diffusion loss: one, weight {spec['lambda_r']:g}, draws the predicted latents to the "
        f"least similar entry of {real}; the other, weight {spec['lambda_g']:g}, pushes them from the most similar entry of {made}. "
        f"{PAPERS}"
    )


def _numbers(choice: Choice, *, of_model: bool = False) -> str:
    run = choice.run
    lost, known = run.unfinished()
    objective = run.spec["objective"]
    on = "held-out training images" if objective["metric"] == "val_top1" else "the test images, so its accuracies there are an oracle's"
    parts = []
    if choice.best is not None:
        parts.append(
            f"The run chose this arm: best by {objective['metric']} ({objective['direction']}d) at {run.ipc} images per class, "
            f"{choice.best}, measured on {on}."
        )
    else:
        parts.append("This arm was named for the export; the run's objective did not choose it.")
    if lost:
        parts.append(f"{lost} of the run's {known} evaluators have no result yet; means are over the others.")
    if of_model:
        parts.append("Measured on the sets that models of this arm drew:")
    tables = number_tables(run, choice.arm, choice.seed)
    parts += [_under_heading(table) for table in tables] or ["Nothing is measured of this arm yet."]
    context = context_table(run, choice.arm)
    return "\n\n".join([*parts, *([_under_heading(context)] if context else [])])


def _provenance(choice: Choice | None, made_from: Lineage | None, images: Mapping[str, Any], command: str) -> str:
    parts = [f"ddgd-ray {__version__}, preset {choice.run.spec['preset']}." if choice else f"ddgd-ray {__version__}."]
    if choice is not None:
        run = choice.run
        varied = ", ".join(f"{name} = {value}" for name, value in choice.record["params"].items())
        parts[0] += f" This arm: {varied or 'nothing varied'}."
        written = PurePath(str(run.sweep.get("source", "SWEEP.yaml"))).name
        swept = written if written.startswith("ddgd-ray") else f"ddgd-ray sweep {written} --preset {run.spec['preset']}"
        parts.append(f"    {swept}\n    {command}")
    else:
        parts.append(f"    {command}")
    if made_from is not None:
        lines = [
            (link.stage, [Cell(f"`{link.artifact.key}`"), Cell(link.origin or "-")])
            for link in made_from.links
        ]
        columns = [Column("stage"), Column("key: SHA-256 of its settings and inputs"), Column("origin")]
        parts.append(markdown(Table("", columns, lines)).removeprefix("## \n\n"))
        outside = [f"- {what}: `{fingerprint}`" for fingerprint, what in made_from.outside.items()]
        parts.append("From outside, by content:\n\n" + "\n".join(outside))
    versions = made_from.links[-1].artifact.manifest["versions"] if made_from else {}
    if versions:
        parts.append("Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return "\n\n".join(parts)


def _under_heading(table: Table) -> str:
    """One level below a section of the card."""
    return f"#{markdown(table)}"


def _licence(terms: Sequence[Note]) -> str:
    return "\n".join(f"- {note.text}" for note in terms)
