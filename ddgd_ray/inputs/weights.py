"""Outside inputs: where pre-trained weights lie, and the fingerprint of their content. Torch-free; nothing is downloaded."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.fingerprints import known_sha256, resolve
from ddgd_ray.plain_files import read_json
from ddgd_ray.spec.preset import DitWeightsSpec, WeightsSpec

# safetensors first: of a folder with both, the second is a copy
PATTERNS = ("diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class WeightsSource:
    """path: a folder in diffusers layout or a checkpoint file. origin: `repo@commit`, or the path, for people."""

    fingerprint: str
    path: Path
    origin: str


def weights_source(weights: WeightsSpec) -> WeightsSource:
    """Where the weights are. Raises StageError with the command that would fetch them."""
    part = weights.adopted().part
    if isinstance(weights, DitWeightsSpec) and weights.file:
        return _checkpoint(resolve(weights.file, f"{part}.file"), f"{part}.file")
    if not weights.folder:
        return _from_cache(weights, part)
    root = resolve(weights.folder, f"{part}.folder")
    if root.is_file() and root.suffix in CHECKPOINT_SUFFIXES:
        what = "expected a folder in diffusers layout, got a file"
        raise StageError(what, code="weights-missing", where=str(root), fix=f"--set {shlex.quote(f'{part}.file={root}')}")
    return _folder(root, part, str(root), fix=_fetch(weights, part))


def _fetch(weights: WeightsSpec, part: str) -> str:
    return f"hf download {weights.repo} --revision {weights.revision}, or set {part}.folder to a folder in diffusers layout"


def _from_cache(weights: WeightsSpec, part: str) -> WeightsSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = Path(snapshot_download(weights.repo, revision=weights.revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError) as err:
        raise StageError(
            f"the weights of {weights.repo} (revision {weights.revision}) are not on this machine",
            code="weights-missing",
            where=part,
            fix=_fetch(weights, part),
        ) from err
    # the cache keeps each commit in a folder of its name: snapshots/COMMIT
    return _folder(root, part, f"{weights.repo}@{root.name}", fix=_fetch(weights, part))


def _checkpoint(path: Path, where: str) -> WeightsSource:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        what = f"the checkpoint {kind}: {path}"
        raise StageError(what, code="weights-missing", where=where, fix=f"--set {where}=/path/to/DiT.pt")
    return WeightsSource(f"sha256:{known_sha256(path)}", path, str(path))


def _folder(root: Path, part: str, origin: str, *, fix: str) -> WeightsSource:
    for candidate in (root, root / "transformer", root / "vae"):
        config = candidate / "config.json"
        found = [files for files in (sorted(candidate.glob(pattern)) for pattern in PATTERNS) if files]
        if found and config.is_file() and _is_part(config, part):
            digest = hashlib.sha256()
            for path in (config, *found[0]):
                digest.update(f"{path.name}\0{known_sha256(path)}\n".encode())
            return WeightsSource(f"sha256:{digest.hexdigest()}", candidate, origin)
    what = "expected config.json and diffusion_pytorch_model.safetensors here"
    raise StageError(what, code="weights-missing", where=str(root), fix=fix)


def _is_part(config: Path, part: str) -> bool:
    names = {"autoencoder": "AutoencoderKL", "backbone": "DiTTransformer2DModel"}
    # facebook/DiT-XL-2-256 names its transformer Transformer2DModel, from before the class had its own name
    try:
        found = read_json(config)["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):  # not a model's: the caller says what was expected there
        return False
    return found == names[part] or (part == "backbone" and found == "Transformer2DModel")


def script_file(name: str) -> Path:
    """The TorchScript file of `reference.inception`. Raises StageError when it is not given or not there."""
    fix = "--set reference.inception=FILE, e.g. of inception-2015-12-05.pt as StyleGAN's metrics use it"
    if not name:
        what = "quality in the space inception needs a TorchScript file, and none is given"
        raise StageError(what, code="weights-missing", where="reference.inception", fix=fix)
    path = resolve(name, "reference.inception")
    if not path.is_file():
        raise StageError("there is no such file", code="weights-missing", where=f"reference.inception {path}", fix=fix)
    return path
