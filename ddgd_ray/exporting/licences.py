"""Which terms a set or a model stands under, by what it was made from. Statements of fact for a reader, no legal advice."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddgd_ray.inputs.fingerprints import embedded_fashion, synset_name
from ddgd_ray.run.lineage import Lineage, spec_of
from ddgd_ray.spec.stages import AdoptSpec, ImagesSpec

NON_COMMERCIAL = "cc-by-nc-4.0"


@dataclass(frozen=True)
class Note:
    """The terms of one part, in words. licence: an identifier as on the Hugging Face hub, "" where none is known."""

    licence: str
    text: str


FASHION = Note("mit", "Real images: Fashion-MNIST, copyright (c) 2017 Zalando SE, MIT licence: its text is in NOTICE.")
DIGITS = Note(
    "cc-by-4.0",
    "Real images: Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998), UCI Machine Learning "
    "Repository, CC BY 4.0, as scikit-learn ships it.",
)
IMAGENET = Note(
    "",
    "Real images: classes of ImageNet. Its terms of access allow non-commercial research and education alone, and the "
    "copyright of its images stays with their owners. Whether and how you may pass on what was derived from them is for you "
    "to check.",
)
OWN_IMAGES = Note("", "Real images: a folder whose terms are not known here. State them before you pass this on.")
READY_MADE = Note("", "The images were made elsewhere and judged here: whoever made them says on what terms they may be used.")
TRAINED_HERE = "The generative model was trained from scratch on the real images: no weights from outside."
DIT = Note(
    NON_COMMERCIAL,
    "Generative model: fine-tuned from the published weights of DiT ({origin}), which are CC-BY-NC-4.0: no commercial use, of "
    "the weights or of what is derived from them.",
)
UNKNOWN_DIT = Note(
    NON_COMMERCIAL,
    "Generative model: fine-tuned from weights that came from outside (content {origin}). The published weights of DiT are "
    "CC-BY-NC-4.0: unless you know these to be others, no commercial use, of the weights or of what is derived from them.",
)
SD_VAE = Note("mit", "Autoencoder: {origin}, MIT licence.")
UNKNOWN_VAE = Note("", "Autoencoder: weights that came from outside (content {origin}); their own terms hold.")


WEIGHTS = {"backbone": ("facebook/DiT-", DIT, UNKNOWN_DIT), "autoencoder": ("stabilityai/sd-vae-ft-", SD_VAE, UNKNOWN_VAE)}
"""{part: repositories whose terms are known, what holds for them, what holds for weights of another or no known origin}."""


def notes(images: ImagesSpec, made_from: Lineage | None) -> list[Note]:
    """The terms of every part of a set or model. images: the real images. made_from: None for a ready-made set."""
    found = [_images_note(images)]
    if made_from is None:
        return [READY_MADE, *found]
    for artifact in made_from.artifacts:
        if artifact.stage == "adopt":
            known_as, known, unknown = WEIGHTS[spec_of(artifact, AdoptSpec).part]
            repo = made_from.origins.get(artifact.key, "")
            note = known if repo.startswith(known_as) else unknown
            origin = repo or artifact.inputs["weights"]
            found.append(Note(note.licence, note.text.format(origin=origin)))
    if made_from.first("finetune") is not None and made_from.first("adopt") is None:
        found.append(Note("", TRAINED_HERE))
    return found


def notice_files(found: Sequence[Note]) -> dict[str, str]:
    """{file name: licence text} of those texts that must go along."""
    if FASHION not in found:
        return {}
    notice = embedded_fashion().with_name("NOTICE").read_text()
    return {"NOTICE": f"Made from Fashion-MNIST, under the MIT License:\n\n{notice[notice.index('Copyright') :]}"}


def licence_of(found: Sequence[Note]) -> str:
    """One identifier for a card's head: that of all parts, or the one that binds most; `other` where terms are unknown."""
    parts = {note.licence for note in found if note.text != TRAINED_HERE}
    if len(parts) == 1:
        return parts.pop() or "other"
    return NON_COMMERCIAL if parts <= {"mit", NON_COMMERCIAL} else "other"


def _images_note(images: ImagesSpec) -> Note:
    embedded = {"fashion": FASHION, "fashion-full": FASHION, "digits": DIGITS}
    if images.source in embedded:
        return embedded[images.source]
    is_imagenet = images.labels == "imagenet" or all(synset_name(name) for name in images.classes)
    return IMAGENET if is_imagenet else OWN_IMAGES
