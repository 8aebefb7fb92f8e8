"""What lies beside an exported model: its card, README.md, and what it was made from."""

from collections.abc import Mapping, Sequence

from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.licences import licence_of, notes, notice_files
from ddgd_ray.exporting.numbers import numbers_section
from ddgd_ray.exporting.sections import (
    PROVENANCE,
    as_text,
    front_matter,
    joined,
    licence_section,
    method_section,
    provenance,
    provenance_section,
)
from ddgd_ray.run.lineage import Lineage, images_of, spec_of
from ddgd_ray.spec.stages import FinetuneSpec, SampleSpec


def model_texts(
    name: str, choice: Choice | None, made_from: Lineage, weights: str, labels: Mapping[int, str], command: str
) -> dict[str, str]:
    """{file name: text} to put beside a model; the card's last section says how to load it.

    choice: whose set it made, None when asked by key alone.
    """
    encode, tuned = made_from.first("encode"), made_from.first("finetune")
    assert encode is not None
    assert tuned is not None
    images, adapter = images_of(encode), spec_of(tuned, FinetuneSpec).adapter
    terms = notes(images, made_from)
    shown = ", ".join(f"{label} {name}" for label, name in list(labels.items())[:20]) + (" ..." if len(labels) > 20 else "")
    kind = {"ema": "averaged over the steps (ema)", "raw": "of the last step (raw)"}[weights]
    what = (
        f"A class-conditional diffusion transformer (DiT), fine-tuned to draw distilled data sets; its adapter "
        f"`{adapter}` is folded into the weights, {kind}. "
        f"{len(labels)} classes, as label and name: {shown}."
    )
    parts = {
        "": f"# {name}\n\n{what}",
        "How it was made": method_section(made_from),
        "Numbers": numbers_section(choice)
        if choice
        else "Exported by its key alone: the numbers of the sets that it drew are in the card of `ddgd-ray export-model RUN`.",
        "Provenance": provenance_section(choice, made_from, command),
        "Licence": licence_section(terms),
        "How to load": _loading(choice, list(labels)[:2]),
    }
    head = [f"license: {licence_of(terms)}", "library_name: diffusers", "tags: [dit, dataset-distillation]"]
    texts = {"README.md": front_matter(head) + joined(parts)}
    texts[PROVENANCE] = as_text(provenance(choice, images, made_from))
    return texts | notice_files(terms)


def _loading(choice: Choice | None, some: Sequence[int]) -> str:
    """How the model is loaded and sampled, with the run's own settings of sampling where they are known."""
    drawn = choice.run.store.get(*choice.trial.sample) if choice and choice.trial.sample else None
    guidance, steps = 4.0, 50
    if drawn is not None:
        spec = spec_of(drawn, SampleSpec)
        guidance, steps = spec.guidance, spec.steps
    return (
        "    pipeline = diffusers.DiTPipeline.from_pretrained(FOLDER)\n"
        f"    pipeline(class_labels=[{', '.join(map(str, some))}], guidance_scale={guidance}, "
        f"num_inference_steps={steps}).images\n\n"
        "DiTPipeline guides all latent channels, ddgd-ray `sample.cfg_channels` of them: what the two draw differs for that."
    )
