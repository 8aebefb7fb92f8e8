"""What lies beside an exported model: its card, README.md, and what it was made from."""

from collections.abc import Mapping, Sequence

from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.licences import licence_of, notes, notice_files
from ddgd_ray.exporting.lineage import Lineage
from ddgd_ray.exporting.provenance import PROVENANCE, as_text, provenance
from ddgd_ray.exporting.sections import (
    front_matter,
    joined,
    licence_section,
    method_section,
    numbers_section,
    provenance_section,
)


def model_texts(
    name: str, choice: Choice | None, made_from: Lineage, weights: str, labels: Mapping[int, str], command: str
) -> dict[str, str]:
    """{file name: text} to put beside a model; the card's last section says how to load it.

    choice: whose set it made, None when asked by key alone.
    """
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
        "How it was made": method_section(made_from),
        "Numbers": numbers_section(choice)
        if choice
        else "Exported by its key alone: the numbers of the sets that it drew are in the card of `ddgd-ray export-model RUN`.",
        "Provenance": provenance_section(choice, made_from, encode.spec["images"], command),
        "Licence": licence_section(terms),
        "How to load": _loading(choice, list(labels)[:2]),
    }
    head = [f"license: {licence_of(terms)}", "library_name: diffusers", "tags: [dit, dataset-distillation]"]
    texts = {"README.md": front_matter(head) + joined(parts)}
    texts[PROVENANCE] = as_text(provenance(choice, encode.spec["images"], made_from))
    return texts | notice_files(terms)


def _loading(choice: Choice | None, some: Sequence[int]) -> str:
    """With the run's own settings of sampling where they are known."""
    drawn = choice.run.store.get(*choice.record["build"][-1]) if choice else None
    spec = drawn.manifest["spec"] if drawn else {"guidance": 4.0, "steps": 50}
    settings = f"guidance_scale={spec['guidance']}, num_inference_steps={spec['steps']}"
    return (
        "    pipeline = diffusers.DiTPipeline.from_pretrained(FOLDER)\n"
        f"    pipeline(class_labels=[{', '.join(map(str, some))}], {settings}).images\n\n"
        "DiTPipeline guides all latent channels, ddgd-ray `sample.cfg_channels` of them: what the two draw differs for that."
    )
