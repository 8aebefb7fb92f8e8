"""Inputs that a preset takes from outside: images, each decoded, and weights, opened so that nothing in them runs."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ddgd_ray.doctor.finding import Finding, from_error, passed
from ddgd_ray.errors import DdgdError, StageError
from ddgd_ray.inputs.fingerprints import images_source, resolve, set_source
from ddgd_ray.inputs.imagefolder import ImageFiles, image_files
from ddgd_ray.inputs.notes import image_notes, set_notes
from ddgd_ray.inputs.weights import PATTERNS, weights_source
from ddgd_ray.spec.base import Values
from ddgd_ray.spec.preset import Preset, WeightsSpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages.parts.pictures import CorruptImage, open_picture
from ddgd_ray.stages.parts.readers import list_source

MAX_SHOWN = 20
WEIGHTS_S = 300.0
# torch.load in a process of its own: seconds of import, and a file of gigabytes stays out of our memory
READ_TENSORS = """
import sys
from pathlib import Path
from ddgd_ray.errors import DdgdError
from ddgd_ray.stages.parts.tensor_files import read_tensors
try:
    print(len(read_tensors(Path(sys.argv[1]))))
except DdgdError as err:
    print(f"{err.what}\\n{err.fix}", file=sys.stderr)
    sys.exit(1)
"""


def check_images(spec: ImagesSpec, *, decodes: bool = True) -> list[Finding]:
    if spec.source == "digits":
        if importlib.util.find_spec("sklearn") is None:
            return [
                Finding(
                    "images", "FAIL", "digits come with scikit-learn, which is not installed", "pip install 'ddgd-ray[digits]'"
                )
            ]
        return [passed("images", "digits, of scikit-learn")]
    try:
        if spec.source == "imagefolder" and spec.root:
            return _folder(spec, resolve(spec.root, "images.root"), decodes)
        _, root = images_source(spec)
        if decodes:
            train, test = list_source(spec, root)
            return [passed("images", f"{spec.source}: {len(train)} for training, {len(test)} for testing")]
    except DdgdError as err:
        return [from_error("images", err)]
    return [passed("images", f"{spec.source} in {root}")]


def _folder(spec: ImagesSpec, root: Path, decodes: bool) -> list[Finding]:
    """Findings of an image folder. Raises StageError for classes without images and layouts that are none."""
    files = image_files(spec, root)
    counts = [sum(map(len, split.values())) for split in (files.train, files.val)]
    found = f"{len(spec.classes)} classes, {counts[0]} images for training, {counts[1]} for testing in {root}"
    few = {name: len(paths) for name, paths in files.train.items() if len(paths) <= spec.validation_per_class}
    if few:
        shown = ", ".join(f"{name} {count}" for name, count in list(few.items())[:10])
        what = (
            f"{found}; {len(few)} classes have no more than images.validation_per_class = {spec.validation_per_class}: {shown}"
        )
        return [Finding("images", "FAIL", what, "lower images.validation_per_class or add images")]
    notes = [Finding("images", "WARN", note.what, note.fix) for note in image_notes(spec, files)]
    if files.left_out and not files.left_out.num_pictures:
        found += f"; in the class folders {files.left_out}"
    if not decodes:
        return [passed("images", f"{found}; not decoded"), *notes]
    bad = list(undecodable(files, spec.channels))
    if not bad:
        return [passed("images", f"{found}; every one can be decoded"), *notes]
    most = spec.max_corrupt if spec.on_corrupt == "skip" else 0
    lines = [f"        {path}: {reason}" for path, reason in bad[:MAX_SHOWN]]
    more = [f"        and {len(bad) - MAX_SHOWN} more"] if len(bad) > MAX_SHOWN else []
    allowed = f", images.max_corrupt allows {most}" if most else ""
    what = f"{len(bad)} of {sum(counts)} images in {root} cannot be decoded{allowed}:\n" + "\n".join([*lines, *more])
    if len(bad) <= most:
        return [Finding("images", "WARN", what, "replace them; the sweep leaves them out and records them"), *notes]
    fix = "replace or remove these files, or " + ("raise images.max_corrupt" if most else "set images.on_corrupt: skip")
    return [Finding("images", "FAIL", what, fix), *notes]


def check_sets(sets: Mapping[str, Values], spec: ImagesSpec) -> list[Finding]:
    """Findings of the ready-made sets that a sweep judges, {name: folder or folders}; their images are not decoded."""
    findings = []
    for name, folders in sets.items():
        for folder in folders if isinstance(folders, tuple) else (folders,):
            try:
                root = resolve(str(folder), f"sets.{name}")
                source = set_source(root, spec.classes)
                findings += [Finding("sets", "WARN", note.what, note.fix) for note in set_notes(root, spec.classes)]
                findings.append(passed("sets", f"{name}: at least {source.smallest} images a class in {root}"))
            except DdgdError as err:
                findings.append(from_error("sets", err))
    return findings


def undecodable(files: ImageFiles, channels: int) -> Iterator[tuple[str, str]]:
    """(path, reason) of each image that cannot be decoded in full, in order."""
    paths = [path for _, path in files.named()]

    def reason(path: str) -> str:
        try:
            open_picture(path, channels)
        except CorruptImage as err:
            return err.what
        except StageError as err:  # the storage, not the file
            return err.what
        return ""

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of odd but readable metadata
        for path, why in zip(paths, pool.map(reason, paths), strict=True):
            if why:
                yield path, why


def check_weights(preset: Preset) -> list[Finding]:
    """Findings of the weights of each part that is not trained here."""
    findings = []
    for part, weights in (("autoencoder", preset.autoencoder), ("backbone", preset.backbone)):
        if not isinstance(weights, WeightsSpec):
            findings.append(passed("weights", f"the {part} is trained here or shipped"))
            continue
        try:
            source = weights_source(weights)
            for file in _files(source.path):
                _refuse_unreadable(file)
        except StageError as err:
            findings.append(from_error("weights", err))
        else:
            findings.append(passed("weights", f"the {part}'s in {source.path}"))
    return findings


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return next(files for pattern in PATTERNS if (files := sorted(path.glob(pattern))))


def _refuse_unreadable(file: Path) -> None:
    """Raises StageError for a file that is cut off or holds pickled objects."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="numpy") as opened:  # header and size; nothing is loaded
                list(opened.keys())
        except (SafetensorError, OSError) as err:
            what = f"the weights cannot be read: {err}"
            raise StageError(what, code="weights-damaged", where=str(file), fix="fetch it again") from err
        return
    command = [sys.executable, "-c", READ_TENSORS, str(file)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=WEIGHTS_S, check=False)
    except subprocess.TimeoutExpired as err:
        what = f"the weights cannot be read within {WEIGHTS_S:.0f} s"
        raise StageError(what, where=str(file), fix="copy them to a faster disk") from err
    if ran.returncode:
        what, _, fix = ran.stderr.strip().rpartition("\n") if ran.returncode == 1 else (ran.stderr.strip()[-300:], "", "")
        raise StageError(what or ran.stderr.strip(), code="weights-damaged", where=str(file), fix=fix or "fetch it again")
