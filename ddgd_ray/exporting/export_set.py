"""Write a set for others: whole or not at all, and twice the same bytes."""

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.exporting.card import set_card
from ddgd_ray.exporting.choose import Choice
from ddgd_ray.exporting.images import LABELS, ImageSet, read_images
from ddgd_ray.exporting.layouts import LAYOUTS, pack
from ddgd_ray.exporting.licences import notes, notice_files
from ddgd_ray.exporting.sections import PROVENANCE, as_text, provenance
from ddgd_ray.run.lineage import Lineage, lineage
from ddgd_ray.spec.load import nearest
from ddgd_ray.storage.store import file_sha256

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Exported:
    """An exported set. path: its folder or archive. sha256: of the archive's bytes, or of the folder's SHA256SUMS."""

    path: Path
    num_images: int
    num_classes: int
    sha256: str


def export_set(choice: Choice, layout: str, target: Path | None = None, *, ipc: int = 0, is_archive: bool = False) -> Exported:
    """Fill the new folder `target`, or a tar of it; default: RUN/export/NAME. ipc: images a class, 0: all.

    Raises SpecError for a layout or ipc that is none, StageError when `target` is taken or cannot be written, ArtifactError
    when the set in the store is damaged.
    """
    if layout not in LAYOUTS:
        what = f"there is no layout {layout!r}; known: {', '.join(LAYOUTS)}"
        raise SpecError(what, code="unknown-layout", where="--format", fix=f"did you mean {nearest(layout, LAYOUTS)}?")
    images = read_images(choice, ipc)
    made_from = lineage(choice.run.store, images.artifact) if images.artifact else None
    count = ipc or images.per_class
    name = f"{choice.run.spec.name}-{choice.name}-ipc{count}"
    if target is None:
        target = choice.run.path / "export" / f"{name}-{layout}{'.tar' if is_archive else ''}"
    words = f"--format {layout} --arm {choice.arm} --seed {choice.seed} --ipc {count}"
    command = f"ddgd-ray export runs/{choice.run.spec.name} {words}"

    def fill(out: Path) -> None:
        _fill(out, choice, images, made_from, layout, command)

    if is_archive:
        place(target, lambda path: _fill_archive(path, fill, name), is_file=True)
    else:
        place(target, fill)
    sha256 = file_sha256(target if is_archive else target / SUMS)
    return Exported(target, len(images.images), len(images.classes), sha256)


def place(target: Path, make: Callable[[Path], None], *, is_file: bool = False) -> None:
    """Have `make` fill a new sibling, then rename it to `target`: nothing is overwritten, and a part is never seen.

    make: gets an empty folder, or with is_file the path of a file to write. Raises StageError.
    """
    if os.path.lexists(target) and (is_file or not target.is_dir() or target.is_symlink() or any(target.iterdir())):
        kind = "a link" if target.is_symlink() else "a file" if target.is_file() else "a folder that is not empty"
        what = f"{kind} is there already, and nothing is overwritten"
        raise StageError(what, code="exists", where=str(target), fix="remove it, or name another place: --to PATH")
    unfinished = target.with_name(f".{target.name[:200]}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_file:
            unfinished.mkdir()
        make(unfinished)
        os.rename(unfinished, target)  # a folder goes onto an empty one or none
    except OSError as err:
        what = f"cannot be written: {err.strerror or err}"
        raise StageError(what, code="not-writable", where=str(target), fix="name another place: --to PATH") from err
    finally:
        if is_file:
            unfinished.unlink(missing_ok=True)
        else:
            shutil.rmtree(unfinished, ignore_errors=True)


def _fill(out: Path, choice: Choice, images: ImageSet, made_from: Lineage | None, layout: str, command: str) -> None:
    LAYOUTS[layout](images, out)
    (out / LABELS).write_text(as_text(_label_map(images)), encoding="utf-8")
    (out / PROVENANCE).write_text(as_text(provenance(choice, images.spec, made_from)), encoding="utf-8")
    (out / "README.md").write_text(set_card(choice, images, made_from, layout, command), encoding="utf-8")
    for name, text in notice_files(notes(images.spec, made_from)).items():
        (out / name).write_text(text, encoding="utf-8")
    files = sorted((path.relative_to(out).as_posix(), path) for path in out.rglob("*") if path.is_file())
    (out / SUMS).write_text("".join(f"{file_sha256(path)}  {name}\n" for name, path in files), encoding="utf-8")


def _fill_archive(path: Path, fill: Callable[[Path], None], top: str) -> None:
    folder = path.with_name(f"{path.name}.d")
    folder.mkdir()
    try:
        fill(folder)
        pack(folder, path, top)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _label_map(images: ImageSet) -> dict[str, Any]:
    """{class folder: its label here, the one that torchvision's ImageFolder gives it, the class's name, what else is known}."""
    alphabetical = sorted(images.folders)
    return {
        folder: {"label": label, "imagefolder_label": alphabetical.index(folder), "class": name}
        | {key: value for key, value in about.items() if key != "label"}
        for label, (folder, name, about) in enumerate(zip(images.folders, images.classes, images.about, strict=True))
    }
