"""Outside inputs: where images lie, and the fingerprint of their content. Torch-free and quick."""

import functools
import hashlib
import importlib.util
import os
from importlib import resources
from pathlib import Path

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.spec.stages import TRAIN_PER_CLASS, ImagesSpec
from ddgd_ray.store import file_sha256

FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# SHA-256 over the four decompressed files in the order above; the same from Debian and from torchvision's download
FASHION_FINGERPRINT = "sha256:14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214"
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
LAYOUT = "expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"


def embedded_fashion() -> Path:
    """The Fashion-MNIST subset inside the package: npz with train/test images (N, 28, 28) uint8 and labels."""
    return Path(str(resources.files("ddgd_ray") / "data" / "fashion.npz"))


def resolve(root: str, where: str) -> Path:
    """`~` and $VARIABLES filled in. Raises StageError for a variable that is not set. where: the field that holds it."""
    path = os.path.expandvars(os.path.expanduser(root))
    if "$" in path:
        variable = root.partition("$")[2].partition("/")[0].strip("{}")
        raise StageError(
            f"the variable in this path is not set: {root}{f'; {LAYOUT}' if where == 'images.root' else ''}",
            code="data-missing" if where == "images.root" else "weights-missing",
            where=where,
            fix=f"export {variable}=/path/to/folder, or --set {where}=/path/to/folder",
        )
    return Path(path).absolute()


def images_source(spec: ImagesSpec) -> tuple[str, Path]:
    """Fingerprint and folder of the images. Raises StageError when they are not there: what, where, how to get them."""
    if spec.source == "fashion":
        return f"sha256:{known_sha256(embedded_fashion())}", embedded_fashion().parent
    if spec.source == "digits":
        return "scikit-learn:digits", Path()
    if spec.source == "fashion-full":
        return FASHION_FINGERPRINT, _fashion_root(spec)
    if not spec.root:
        raise StageError(
            f"the images' folder is not given; {LAYOUT}",
            code="data-missing",
            where="images.root",
            fix="add --set images.root=/path/to/folder",
        )
    root = resolve(spec.root, "images.root")
    files = image_files(spec.classes, root)
    for name, paths in files["train"].items():
        if len(paths) <= spec.validation_per_class:
            raise StageError(
                f"class {name} has {len(paths)} training images, needs more than validation_per_class = "
                f"{spec.validation_per_class}",
                code="data-missing",
                where=str(root / "train"),
                fix="lower images.validation_per_class or add images",
            )
    return _folder_fingerprint(root, files), root


def training_images_per_class(spec: ImagesSpec, root: Path) -> int:
    """Images of the smallest class that may be distilled: without the validation slice."""
    if spec.source in TRAIN_PER_CLASS:
        smallest = TRAIN_PER_CLASS[spec.source]
    else:
        smallest = min(len(paths) for paths in image_files(spec.classes, root)["train"].values())
    return smallest - spec.validation_per_class


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


def image_files(classes: tuple[str, ...], root: Path) -> dict[str, dict[str, list[Path]]]:
    """Image files as {split: {class: sorted paths}} of an ImageFolder with train/ and val/ (or test/).

    Raises StageError when a folder is missing, a class has no images, or images lie flat without class folders.
    """
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        what = f"the images' folder {kind}; {LAYOUT}"
        raise StageError(what, code="data-missing", where=str(root), fix="--set images.root=/path/to/folder")
    folders = {"train": root / "train", "val": root / "val" if (root / "val").is_dir() else root / "test"}
    found: dict[str, dict[str, list[Path]]] = {}
    for split, folder in folders.items():
        if not folder.is_dir():
            what = f"there is no {split} folder; {LAYOUT}"
            raise StageError(what, code="data-missing", where=str(root), fix="--set images.root=/path/to/folder")
        per_class = {name: _images_in(folder / name) for name in classes}
        empty = [name for name, paths in per_class.items() if not paths]
        if empty:
            present = sorted(path.name for path in folder.iterdir() if path.is_dir())
            flat = "images lie there without class folders; " if _images_in(folder) else ""
            raise StageError(
                f"{flat}{len(empty)} of {len(classes)} classes have no images: {', '.join(empty[:10])}; "
                f"class folders found: {', '.join(present[:10]) or 'none'}; {LAYOUT}",
                code="data-missing",
                where=str(folder),
                fix="name the folders as in images.classes, or set images.classes",
            )
        found[split] = per_class
    return found


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _folder_fingerprint(root: Path, files: dict[str, dict[str, list[Path]]]) -> str:
    """SHA-256 over the names and contents of the files; contents by a cache keyed by size and time of change.

    Raises StageError for files that do not begin as images do: empty ones, and web pages saved under an image's name.
    A damaged image behind a sound beginning shows when it is decoded.
    """
    every = [path for per_class in files.values() for paths in per_class.values() for path in paths]
    bad = [path for path in every if not _begins_as_image(path)]
    if bad:
        raise StageError(
            f"{len(bad)} of {len(every)} files are no images:\n" + "\n".join(f"    {path}" for path in bad[:20]),
            code="corrupt-image",
            where=str(root),
            fix="replace or remove these files",
        )
    digest = hashlib.sha256()
    for split, per_class in files.items():
        for name, paths in per_class.items():
            for path in paths:
                digest.update(f"{split}/{name}/{path.name}\0{known_sha256(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _begins_as_image(path: Path) -> bool:
    """By content: ImageNet-1k itself holds a PNG and CMYK JPEGs under the name .JPEG."""
    with path.open("rb") as file:
        return file.read(12).startswith(IMAGE_BEGINNINGS)


def known_sha256(path: Path) -> str:
    stat = path.stat()
    return _cached_sha256(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _cached_sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    return file_sha256(Path(path))


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
