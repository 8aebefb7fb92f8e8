"""Outside inputs: where images lie, and the fingerprint of their content. Torch-free and quick."""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.inputs.imagefolder import LAYOUTS, image_files
from ddgd_ray.inputs.setfolder import set_files, written_sha256
from ddgd_ray.spec.stages import TRAIN_PER_CLASS, ImagesSpec
from ddgd_ray.storage.hashes import Content, contents

FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# SHA-256 over the four decompressed files in the order above; the same from Debian and from torchvision's download
FASHION_FINGERPRINT = "sha256:14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214"
TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", *TIFF_BEGINNINGS, b"P2", b"P3", b"P5", b"P6")
READER = 2  # bumped when files of an image folder are decoded otherwise than before: their artifacts are made again


def embedded_fashion() -> Path:
    """The Fashion-MNIST subset inside the package: npz with train/test images (N, 28, 28) uint8 and labels."""
    return Path(str(resources.files("ddgd_ray") / "data" / "fashion.npz"))


def resolve(root: str, where: str) -> Path:
    """The path with `~` and $VARIABLES filled in. Raises StageError for a variable that is not set. where: its field."""
    plain = os.path.expanduser(root)
    if "\0" in root:
        raise StageError("a path cannot hold NUL", code="data-missing", where=where, fix=f"--set {where}=/path/to/folder")
    if os.path.lexists(plain):  # a $ in the name of what is there is no variable
        return Path(plain).absolute()
    path = os.path.expandvars(plain)
    if "$" in path:
        variable = root.partition("$")[2].partition("/")[0].strip("{}")
        raise StageError(
            f"the variable in this path is not set: {root}{f'; {LAYOUTS}' if where == 'images.root' else ''}",
            code="data-missing" if where == "images.root" else "weights-missing",
            where=where,
            fix=f"export {variable}=/path/to/folder, or --set {where}=/path/to/folder",
        )
    return Path(path).absolute()


def images_source(spec: ImagesSpec) -> tuple[str, Path]:
    """Fingerprint and folder of the images. Raises StageError when they are not there: what, where, how to get them."""
    if spec.labels == "imagenet":
        index_classes(spec.classes)
    if spec.source == "fashion":
        return f"sha256:{known_sha256(embedded_fashion())}", embedded_fashion().parent
    if spec.source == "digits":
        return "scikit-learn:digits", Path()
    if spec.source == "fashion-full":
        return FASHION_FINGERPRINT, _fashion_root(spec)
    if not spec.root:
        raise StageError(
            f"the images' folder is not given; {LAYOUTS}",
            code="data-missing",
            where="images.root",
            fix="add --set images.root=/path/to/folder",
        )
    root = resolve(spec.root, "images.root")
    return _folder_source(spec, root), root


@dataclass(frozen=True)
class SetSource:
    """A ready-made set: its content, where it lies, and the images of its smallest class."""

    fingerprint: str
    path: str
    smallest: int


def set_source(root: Path, classes: tuple[str, ...]) -> SetSource:
    """SHA-256 over the images of each class in order; what files and folders are called does not enter.

    Raises StageError for a folder that does not hold these classes, and lists files that are no images.
    """
    files = set_files(root, classes)
    written_sha256(root)  # what a stage would refuse later is refused now
    paths = [path for per_class in files.values() for path in per_class]
    digest, bad = hashlib.sha256(b"set 1\n"), []
    found = dict(zip(paths, _contents(paths), strict=True))
    for label, per_class in enumerate(files.values()):
        for path in per_class:
            content = found[path]
            if content is None or not _is_image(content):
                bad.append(path)
            else:
                digest.update(f"{label} {content.sha256}\n".encode())
    if bad:
        raise StageError(
            f"{len(bad)} of {len(paths)} files of the set are no images:\n" + "\n".join(f"    {path}" for path in bad[:20]),
            code="corrupt-image",
            where=str(root),
            fix="replace or remove these files",
        )
    return SetSource(f"sha256:{digest.hexdigest()}", str(root), min(map(len, files.values())))


def training_images_per_class(spec: ImagesSpec, root: Path) -> int:
    """Images of the smallest class that may be distilled: without the validation slice, and without what is no image."""
    if spec.source in TRAIN_PER_CLASS:
        return TRAIN_PER_CLASS[spec.source] - spec.validation_per_class
    classes = [paths[: len(paths) - spec.validation_per_class] for paths in image_files(spec, root).train.values()]
    return min(sum(map(_is_image, _contents(paths))) for paths in classes)


def known_sha256(path: Path) -> str:
    """The SHA-256 of a file, from the cache of hashes unless the file has changed."""
    return next(contents([str(path)])).sha256


def _fashion_root(spec: ImagesSpec) -> Path:
    candidates = [resolve(spec.root, "images.root")] if spec.root else [Path("/usr/share/datasets/fashion-mnist")]
    candidates += [folder / "FashionMNIST" / "raw" for folder in candidates]
    for folder in candidates:
        if all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in FASHION_FILES):
            return folder
    raise StageError(
        f"Fashion-MNIST is not there: expected {FASHION_FILES[0]}[.gz] and three more files",
        code="data-missing",
        where=str(candidates[0]),
        fix="apt install dataset-fashion-mnist, or torchvision.datasets.FashionMNIST(ROOT, download=True) and "
        "--set images.root=ROOT",
    )


def _folder_source(spec: ImagesSpec, root: Path) -> str:
    """SHA-256 over the stable names and contents of the files and over the policy that says which of them count.

    Raises StageError for files that do not begin as images do (empty ones, and web pages saved under an image's name) and
    broken links, when they are more than may be skipped. A damaged image behind a sound beginning shows when it is decoded.
    """
    files = image_files(spec, root)
    named = files.named()
    digest = hashlib.sha256(f"reader {READER}\n".encode())
    if spec.on_corrupt == "skip":
        digest.update(f"skip at most {spec.max_corrupt}\n".encode())
    bad: set[str] = set()
    for (name, path), content in zip(named, _contents([path for _, path in named]), strict=True):
        if not _is_image(content):
            bad.add(path)
        digest.update(os.fsencode(f"{name}\0{content.sha256 if content else 'broken link'}\n"))
    _refuse_bad(spec, root, [path for _, path in named if path in bad], len(named))
    for name, paths in files.train.items():
        _refuse_small(spec, root, name, paths, bad)
    return f"sha256:{digest.hexdigest()}"


def _is_image(content: Content | None) -> bool:
    """Whether a file begins as images do. Its name does not tell: ImageNet-1k holds a PNG under the name .JPEG."""
    return content is not None and content.beginning.startswith(IMAGE_BEGINNINGS)


def _contents(paths: list[str]) -> Iterator[Content | None]:
    """The content of each file; None for a broken link."""
    is_there = [not os.path.islink(path) or os.path.exists(path) for path in paths]
    found = contents([path for path, here in zip(paths, is_there, strict=True) if here])
    return (next(found) if here else None for here in is_there)


def _refuse_bad(spec: ImagesSpec, root: Path, bad: list[str], num_files: int) -> None:
    most = spec.max_corrupt if spec.on_corrupt == "skip" else 0
    if len(bad) <= most:
        return
    allowed = f", images.max_corrupt allows {most}" if spec.on_corrupt == "skip" else ""
    lines = [f"    {path}{'' if os.path.exists(path) else ': a broken link'}" for path in bad[:20]]
    raise StageError(
        f"{len(bad)} of {num_files} files are no images{allowed}:\n" + "\n".join(lines),
        code="corrupt-image",
        where=str(root),
        fix="replace or remove these files, or " + ("raise images.max_corrupt" if allowed else "set images.on_corrupt: skip"),
    )


def _refuse_small(spec: ImagesSpec, root: Path, name: str, paths: list[str], bad: set[str]) -> None:
    """Raises StageError when a class leaves nothing to distill beside its validation images, corrupt files not counted."""
    left = len(paths) - spec.validation_per_class
    if left > 0 and not all(path in bad for path in paths[:left]):
        return
    num_bad = sum(path in bad for path in paths)
    raise StageError(
        f"class {name} has {len(paths)} training images{f', {num_bad} of them corrupt' if num_bad else ''}, needs more than "
        f"validation_per_class = {spec.validation_per_class}",
        code="data-missing",
        where=str(root),
        fix="lower images.validation_per_class or add images",
    )


def index_classes(classes: tuple[str, ...]) -> list[int]:
    """ImageNet-1k index of each WordNet id, from timm's table (read without importing timm). Raises SpecError."""
    table = {wnid: index for index, wnid in enumerate(_imagenet_synsets())}
    unknown = [name for name in classes if name not in table]
    if unknown:
        raise SpecError(
            f"not an ImageNet-1k WordNet id: {', '.join(unknown[:10])}",
            where="images.classes",
            fix="use ids such as n02096294, or images.labels: position",
        )
    return [table[name] for name in classes]


def synset_name(wnid: str) -> str | None:
    """WordNet's words for an id, such as "Border terrier" for n02093754, from timm's table; None for what is no known id."""
    return _synset_names().get(wnid)


@functools.cache
def _synset_names() -> dict[str, str]:
    lines = (_timm_info() / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    return {wnid: words for wnid, _, words in (line.partition("\t") for line in lines)}


@functools.cache
def _imagenet_synsets() -> list[str]:
    return (_timm_info() / "imagenet_synsets.txt").read_text().split()


def _timm_info() -> Path:
    """The folder of timm's ImageNet tables, found without importing timm."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None, "timm is a dependency"
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "_info"
