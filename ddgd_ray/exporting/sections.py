"""The sections of a card, of a set or of a model. Text of the run and its store alone: the same for the same export."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.licences import Note
from ddgd_ray.exporting.lineage import Lineage
from ddgd_ray.exporting.numbers import context_table, number_tables
from ddgd_ray.report.render import Cell, Column, Table, markdown

PAPERS = (
    "The method is that of *Diversity-Driven Generative Dataset Distillation Based on Diffusion Model with Self-Adaptive "
    "Memory* (arXiv 2505.19469), which extends *Efficient Dataset Distillation via Minimax Diffusion* (arXiv 2311.15529)."
)


def front_matter(lines: Sequence[str]) -> str:
    return "\n".join(["---", *lines, "---", "", ""])


def joined(parts: Mapping[str, str]) -> str:
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts.items() if text) + "\n"


def method_section(made_from: Lineage) -> str:
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
        f"{text} with two losses beside the diffusion loss: one, weight {spec['lambda_r']:g}, draws the predicted latents to "
        f"the least similar entry of {real}; the other, weight {spec['lambda_g']:g}, pushes them from the most similar entry "
        f"of {made}. {PAPERS}"
    )


def numbers_section(choice: Choice, ipc: int = 0) -> str:
    """ipc: images a class of the exported set, 0 for a model."""
    run = choice.run
    parts = [_selection(choice)]
    lost, known = run.unfinished()
    if lost:
        parts.append(f"{lost} of the run's {known} evaluators have no result yet; means are over the others.")
    if not ipc:
        parts.append("Measured on the sets that models of this arm drew:")
    elif not any(row.arm == choice.arm and row.ipc in (ipc, 0) for row in run.rows):
        parts.append(f"No set of {ipc} images per class of this arm was judged.")
    parts += [_under_heading(table) for table in number_tables(run, choice.arm, choice.seed)]
    context = context_table(run, choice.arm)
    return "\n\n".join([*parts, *([_under_heading(context)] if context else [])])


def _selection(choice: Choice) -> str:
    run, objective, best = choice.run, choice.run.spec["objective"], choice.run.best()
    if best is None:
        return "No arm of the run has a result yet."
    on = "held-out training images" if objective["metric"] == "val_top1" else "the TEST images: an oracle"
    sizes = " and ".join(map(str, run.spec["evaluate"]["ipc"]))
    of = f"{objective['metric']}, {objective['direction']}d at {sizes} images per class on {on}"
    if choice.is_best:
        return f"The run's objective prefers this arm: {best[1]} by {of}."
    return f"The run's objective prefers another arm, {best[0]}: {best[1]} by {of}."


def provenance_section(choice: Choice | None, made_from: Lineage | None, images: Mapping[str, Any], command: str) -> str:
    parts = [f"ddgd-ray {__version__}, preset {choice.run.spec['preset']}." if choice else f"ddgd-ray {__version__}."]
    if choice is not None:
        run = choice.run
        varied = ", ".join(f"{name} = {value}" for name, value in choice.record["params"].items())
        parts[0] += f" This arm: {varied or 'nothing varied'}."
        written = PurePath(str(run.sweep.get("source", "SWEEP.yaml"))).name
        swept = written if written.startswith("ddgd-ray") else f"ddgd-ray sweep {written} --preset {run.spec['preset']}"
        parts.append(
            f"    {swept}\n    {command}\n\nOverrides given to `sweep` are in `provenance.json`, with all other settings."
        )
    else:
        parts.append(f"    {command}")
    if made_from is not None:
        lines = [(link.stage, [Cell(f"`{link.artifact.key}`"), Cell(link.origin or "-")]) for link in made_from.links]
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


def licence_section(terms: Sequence[Note]) -> str:
    return "\n".join(f"- {note.text}" for note in terms)
