"""From a published fine-tuning back to everything it was made from."""

from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.inputs.fingerprints import index_classes
from ddgd_ray.storage.store import Artifact, Store


@dataclass(frozen=True)
class TunedModel:
    """Folders of the artifacts, and the class that each label of the generator stands for."""

    adapter: Path
    backbone: Path
    autoencoder: Path
    labels: dict[int, str]


def tuned_model(store: Store, prefix: str) -> TunedModel:
    """The fine-tuning whose key begins with `prefix`. Raises SpecError unless one does, ArtifactError when an input is gone."""
    published = store.keys("finetune")
    keys = [key for key in published if key.startswith(prefix)]
    if len(keys) != 1:
        what = f"{len(keys)} fine-tunings begin with {prefix!r}" if keys else f"no fine-tuning begins with {prefix!r}"
        there = ", ".join(key[:12] for key in (keys or published)[:10]) or "none"
        raise SpecError(f"{what}; there: {there}", where=str(store.root), fix="give more digits, or another --run-dir")
    adapter = store.get("finetune", keys[0])
    assert adapter is not None
    latents = _input(store, adapter, "latents", "encode")
    images = latents.manifest["spec"]["images"]
    classes = tuple(images["classes"])
    labels = index_classes(classes) if images["labels"] == "imagenet" else list(range(len(classes)))
    return TunedModel(
        adapter.path,
        _input(store, adapter, "backbone", "pretrain", "adopt").path,
        _input(store, latents, "autoencoder", "autoencoder", "adopt").path,
        dict(zip(labels, classes, strict=True)),
    )


def _input(store: Store, artifact: Artifact, name: str, *stages: str) -> Artifact:
    key = artifact.manifest["inputs"][name]
    for stage in stages:
        found = store.get(stage, key)
        if found is not None:
            return found
    raise ArtifactError(
        f"its {name} {key[:12]} is not in the store", where=str(artifact.path), fix="run the sweep again: it is made anew"
    )
