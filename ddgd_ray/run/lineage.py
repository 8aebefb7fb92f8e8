"""From a published artifact back to everything that it was made from, and to what came from outside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.inputs.fingerprints import index_classes
from ddgd_ray.run.records import first_problem
from ddgd_ray.spec.evaluation import STAGE_SPECS
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.storage.store import Artifact, Store

OUTSIDE = {"images": "real images", "weights": "weights", "set": "ready-made set", "model": "feature network"}
"""{input that no stage made, as stages name it: what it is}."""
S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Lineage:
    """The artifacts behind one, which is the last of them; inputs come before what is made of them.

    origins: {key: `repo@commit`} of adopted weights where that is known. outside: {fingerprint: what it is} of what no stage
    made.
    """

    artifacts: tuple[Artifact, ...]
    origins: Mapping[str, str]
    outside: Mapping[str, str]

    def first(self, stage: str) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.stage == stage), None)

    def input_of(self, artifact: Artifact, name: str) -> Artifact:
        """The artifact that is this input of another one."""
        return next(found for found in self.artifacts if found.key == artifact.inputs[name])

    def as_json(self) -> dict[str, Any]:
        """Stages with keys, specs, inputs and versions: what a key was computed from, and with which libraries."""
        stages = []
        for artifact in self.artifacts:
            named = {"stage": artifact.stage, "key": artifact.key, "version": artifact.version, "spec": artifact.spec}
            named |= {"inputs": artifact.inputs, "versions": artifact.versions}
            stages.append(named | ({"origin": self.origins[artifact.key]} if artifact.key in self.origins else {}))
        return {"stages": stages, "outside": dict(self.outside)}


def lineage(store: Store, artifact: Artifact) -> Lineage:
    """The lineage of an artifact. Raises ArtifactError when an input is gone from the store, or an origin cannot be read."""
    found: dict[str, Artifact] = {}
    outside: dict[str, str] = {}

    def visit(one: Artifact) -> None:
        for name, key in sorted(one.inputs.items()):
            if key in found or key in outside:
                continue
            made = next((made for stage in STAGE_SPECS if (made := store.get(stage, key)) is not None), None)
            if made is not None:
                visit(made)
            elif ":" in key:
                outside[key] = OUTSIDE.get(name, name)
            else:
                what = f"its {name} {key[:12]} is not in the store"
                raise ArtifactError(what, where=str(one.path), fix="run the sweep again: it is made anew")
        found[one.key] = one

    visit(artifact)
    origins = {key: origin for key, one in found.items() if (origin := _origin(one))}
    return Lineage(tuple(found.values()), origins, outside)


def _origin(artifact: Artifact) -> str:
    """`repo@commit` of adopted weights, "" where it is not known."""
    path = artifact.path / "origin.json"
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
        return f"{found['repo']}@{found['commit']}" if found else ""
    except (ValueError, KeyError, TypeError, OSError) as err:
        raise ArtifactError("cannot be read", where=str(path), fix="delete this folder; it is made again") from err


def spec_of(artifact: Artifact, kind: type[S]) -> S:
    """The spec that an artifact was made by. Raises ArtifactError for one of another version of the project."""
    return _checked(artifact.spec, kind, artifact)


def images_of(artifact: Artifact) -> ImagesSpec:
    """The real images that an artifact stands for or was made from. Raises ArtifactError as `spec_of` does."""
    return _checked(artifact.spec.get("images"), ImagesSpec, artifact)


def _checked(content: Any, kind: type[S], artifact: Artifact) -> S:
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as err:
        raise ArtifactError(
            f"{first_problem(err)}: another version of ddgd-ray made this {artifact.stage}",
            code="other-schema",
            where=str(artifact.folder),
            fix="use that version, or run the sweep again: it is made anew",
        ) from err


@dataclass(frozen=True)
class TunedModel:
    """Folders of the artifacts that make one model, and the class that each label of the generator stands for."""

    adapter: Path
    backbone: Path
    autoencoder: Path
    labels: dict[int, str]


def find_tuned(store: Store, prefix: str) -> Artifact:
    """The fine-tuning whose key begins with `prefix`. Raises SpecError unless exactly one does."""
    published = store.keys("finetune")
    keys = [key for key in published if key.startswith(prefix)]
    if len(keys) != 1:
        what = f"{len(keys)} fine-tunings begin with {prefix!r}" if keys else f"no fine-tuning begins with {prefix!r}"
        there = ", ".join(key[:12] for key in (keys or published)[:10]) or "none"
        raise SpecError(f"{what}; there: {there}", where=str(store.root), fix="give more digits, or another --run-dir")
    found = store.get("finetune", keys[0])
    assert found is not None
    return found


def tuned_model(made_from: Lineage) -> TunedModel:
    """The model of a fine-tuning, which is the last artifact of its lineage."""
    adapter = made_from.artifacts[-1]
    assert adapter.stage == "finetune", adapter.stage
    latents = made_from.input_of(adapter, "latents")
    images = images_of(latents)
    labels = index_classes(images.classes) if images.labels == "imagenet" else list(range(len(images.classes)))
    return TunedModel(
        adapter.path,
        made_from.input_of(adapter, "backbone").path,
        made_from.input_of(latents, "autoencoder").path,
        dict(zip(labels, images.classes, strict=True)),
    )
