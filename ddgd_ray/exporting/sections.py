"""What the cards of a set and of a model have in common: how it was made, from what, on what terms; and provenance.json.

Text of the run and its store alone: the same for the same export.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.licences import Note
from ddgd_ray.report.render import Cell, Column, Table, markdown
from ddgd_ray.run.lineage import Lineage, spec_of
from ddgd_ray.spec.stages import FinetuneSpec, ImagesSpec

PROVENANCE = "provenance.json"
ASKED = ("name", "preset", "recipe", "vary", "seeds", "evaluate", "controls", "objective")
"""Sections of the sweep file that provenance.json repeats: those without a path or the name of a machine."""
PAPERS = (
    "The method is that of *Diversity-Driven Generative Dataset Distillation Based on Diffusion Model with Self-Adaptive "
    "Memory* (arXiv 2505.19469), which extends *Efficient Dataset Distillation via Minimax Diffusion* (arXiv 2311.15529)."
)


def front_matter(lines: Sequence[str]) -> str:
    return "\n".join(["---", *lines, "---", "", ""])


def joined(parts: Mapping[str, str]) -> str:
    """The sections {title: text} of a card, empty ones left out."""
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts.items() if text) + "\n"


def method_section(made_from: Lineage) -> str:
    """How the model behind a set or of a model was fine-tuned, in words."""
    tuned = made_from.first("finetune")
    assert tuned is not None
    spec = spec_of(tuned, FinetuneSpec)
    if spec.steps == 0:
        return "A class-conditional diffusion transformer (DiT) without any fine-tuning: a control."
    text = (
        f"A class-conditional diffusion transformer (DiT) was fine-tuned on the real images for {spec.steps} steps of "
        f"{spec.batch_size} images (adapter {spec.adapter}, learning rate {spec.learning_rate:g}, seed {spec.seed})"
    )
    if not (spec.lambda_r or spec.lambda_g):
        return f"{text}, on the diffusion loss alone: a control."
    memory = "a memory of {size} {whose} latents a class from which `{pop}` takes what leaves"
    real = memory.format(whose="real", size=spec.memory_real.size, pop=spec.memory_real.pop)
    made = memory.format(whose="generated", size=spec.memory_gen.size, pop=spec.memory_gen.pop)
    return (
        f"{text} with two losses beside the diffusion loss: one, weight {spec.lambda_r:g}, draws the predicted latents to "
        f"the least similar entry of {real}; the other, weight {spec.lambda_g:g}, pushes them from the most similar entry "
        f"of {made}. {PAPERS}"
    )


def provenance_section(choice: Choice | None, made_from: Lineage | None, command: str) -> str:
    """The commands that make and export it again, and the key of everything that it was made from."""
    if choice is None:
        parts = [f"ddgd-ray {__version__}.", f"    {command}"]
    else:
        sweep, spec = choice.run.sweep, choice.run.spec
        varied = ", ".join(f"{name} = {value}" for name, value in choice.trial.params.items())
        written = PurePath(sweep.source or "SWEEP.yaml").name
        swept = written if written.startswith("ddgd-ray") else f"ddgd-ray sweep {written} --preset {spec.preset}"
        parts = [
            f"ddgd-ray {__version__}, preset {spec.preset}. This arm: {varied or 'nothing varied'}.",
            f"    {swept}\n    {command}\n\nOverrides given to `sweep` are in `{PROVENANCE}`, with all other settings.",
        ]
    if made_from is not None:
        lines = [(one.stage, [Cell(f"`{one.key}`"), Cell(made_from.origins.get(one.key, "-"))]) for one in made_from.artifacts]
        columns = [Column("stage"), Column("key: SHA-256 of its settings and inputs"), Column("origin")]
        parts.append(markdown(Table("", columns, lines)).removeprefix("## \n\n"))
        outside = [f"- {what}: `{fingerprint}`" for fingerprint, what in made_from.outside.items()]
        parts.append("From outside, by content:\n\n" + "\n".join(outside))
        versions = made_from.artifacts[-1].versions
        parts += ["Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."] if versions else []
    return "\n\n".join(parts)


def licence_section(terms: Sequence[Note]) -> str:
    return "\n".join(f"- {note.text}" for note in terms)


def provenance(choice: Choice | None, images: ImagesSpec, made_from: Lineage | None) -> dict[str, Any]:
    """Every setting that an exported set or model depends on, and the keys of what it was made from.

    It holds no path and no name of a machine. images: the real images. choice: None where a key was named and no run.
    """
    found: dict[str, Any] = {}
    if choice is not None:
        trial = choice.trial
        found["run"] = {name: value for name, value in choice.run.spec.model_dump(mode="json").items() if name in ASKED}
        evaluators = [one.model_dump(mode="json") for one in trial.evaluators]
        found["trial"] = {"arm": trial.arm, "seed": trial.seed, "params": trial.params, "evaluators": evaluators}
    return found | {"images": images.canonical()} | (made_from.as_json() if made_from else {})


def as_text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
