"""What an artifact was made from, back to what came from outside."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddgd_ray.errors import ArtifactError
from ddgd_ray.spec.evaluation import STAGE_SPECS
from ddgd_ray.storage.store import Artifact, Store

# inputs that no stage made, by the names that stages give them
OUTSIDE = {"images": "real images", "weights": "weights", "set": "ready-made set", "model": "feature network"}


@dataclass(frozen=True)
class Link:
    """One artifact of a chain. origin: `repo@commit` of adopted weights where it is known."""

    artifact: Artifact
    origin: str = ""

    @property
    def stage(self) -> str:
        return str(self.artifact.manifest["stage"])

    @property
    def spec(self) -> Mapping[str, Any]:
        spec: Mapping[str, Any] = self.artifact.manifest["spec"]
        return spec


@dataclass(frozen=True)
class Lineage:
    """links: inputs before what is made of them. outside: {fingerprint: what it is} of what no stage made."""

    links: tuple[Link, ...]
    outside: Mapping[str, str]

    def first(self, stage: str) -> Link | None:
        return next((link for link in self.links if link.stage == stage), None)

    def as_json(self) -> dict[str, Any]:
        """Stages with keys, specs, inputs and versions: what a key was computed from, and with which libraries."""
        kept = ("stage", "key", "version", "spec", "inputs", "versions")
        stages = [
            {name: link.artifact.manifest[name] for name in kept} | ({"origin": link.origin} if link.origin else {})
            for link in self.links
        ]
        return {"stages": stages, "outside": dict(self.outside)}


def lineage(store: Store, artifact: Artifact) -> Lineage:
    """Raises ArtifactError when one of its inputs is gone from the store."""
    links: dict[str, Link] = {}
    outside: dict[str, str] = {}

    def visit(one: Artifact) -> None:
        for name, key in sorted(one.manifest["inputs"].items()):
            if key in links or key in outside:
                continue
            found = next((found for stage in STAGE_SPECS if (found := store.get(stage, key)) is not None), None)
            if found is not None:
                visit(found)
            elif ":" in key:
                outside[key] = OUTSIDE.get(name, name)
            else:
                raise ArtifactError(
                    f"its {name} {key[:12]} is not in the store",
                    where=str(one.path),
                    fix="run the sweep again: it is made anew",
                )
        links[one.key] = Link(one, _origin(one))

    visit(artifact)
    return Lineage(tuple(links.values()), outside)


def _origin(artifact: Artifact) -> str:
    path = artifact.path / "origin.json"
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
        return f"{found['repo']}@{found['commit']}" if found else ""
    except (ValueError, KeyError, TypeError, OSError) as err:
        raise ArtifactError("cannot be read", where=str(path), fix="delete this folder; it is made again") from err
