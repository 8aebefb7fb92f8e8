"""The image files of one class folder, as torchvision's ImageFolder finds them, and what else lies there."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ddgd_ray.errors import StageError
from ddgd_ray.plain_files import is_folder, what_else

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision.datasets.folder.IMG_EXTENSIONS."""
PICTURES_NOT_READ = (".gif", ".jfif", ".jpe", ".heic", ".heif", ".avif", ".jp2", ".svg", ".pbm", ".tga", ".psd", ".raw")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information")
"""Folders that archives and systems leave beside one's own."""
MAX_SHOWN = 5


@dataclass
class LeftOut:
    """Entries of class folders that are not read. counts: {kind: number}, a kind such as `.gif` or `is a named pipe`."""

    counts: Counter[str] = field(default_factory=Counter)
    pictures: list[str] = field(default_factory=list)
    """Paths of the first few that look like pictures."""
    num_pictures: int = 0

    def add(self, path: str) -> None:
        name = os.path.basename(path)
        suffix = os.path.splitext(name)[1].lower()
        kind = _kind(path)
        is_picture = not name.startswith(".") and (suffix in PICTURES_NOT_READ or suffix in IMAGE_SUFFIXES)
        self.counts[kind or ("hidden" if name.startswith(".") else suffix or "without a suffix")] += 1
        self.num_pictures += is_picture
        if is_picture and len(self.pictures) < MAX_SHOWN:
            self.pictures.append(path)

    def merge(self, other: "LeftOut") -> None:
        self.counts.update(other.counts)
        self.pictures = [*self.pictures, *other.pictures][:MAX_SHOWN]
        self.num_pictures += other.num_pictures

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """Such as `18 files are left out (12 .gif, 6 hidden), e.g. cats/a.gif`."""
        num = self.counts.total()
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common(MAX_SHOWN))
        more = ", ..." if len(self.counts) > MAX_SHOWN else ""
        shown = f", e.g. {self.pictures[0]}" if self.pictures else ""
        return f"{num} file{'s are' if num > 1 else ' is'} left out ({kinds}{more}){shown}"


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle
        return False


def _kind(path: str) -> str:
    """What an entry is when it is no regular file, "" when it is one."""
    try:
        return what_else(os.stat(path).st_mode)
    except OSError:
        return "is a broken link"


def images_below(folder: Path | str, left_out: LeftOut) -> list[str]:
    """Absolute paths of the images below a class folder, [] when there is no such folder.

    The order is that of ImageFolder: the folder's own files by name, then those of the folders in it. A link whose target is
    gone counts as an image, since somebody meant one. Hidden entries and folders that systems leave are not read, which
    ImageFolder would do. What is not read goes to `left_out`.
    """
    per_folder: dict[str, list[str]] = {}
    _look(str(folder), per_folder, left_out, ())
    return [path for place in sorted(per_folder) for path in sorted(per_folder[place])]


def own_images(folder: Path | str) -> list[str]:
    """Absolute paths of the images that lie in a folder itself, by name."""
    per_folder: dict[str, list[str]] = {}
    _look(str(folder), per_folder, LeftOut(), (), is_deep=False)
    return sorted(path for paths in per_folder.values() for path in paths)


def _look(
    folder: str, found: dict[str, list[str]], left_out: LeftOut, above: tuple[tuple[int, int], ...], is_deep: bool = True
) -> None:
    """above: the identities of the folders on the way here; a link that leads back to one of them is not followed."""
    try:
        state = os.stat(folder)
        identity = (state.st_dev, state.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as scanned:
            entries = list(scanned)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as err:
        fix = "check its permissions"
        raise StageError(f"this folder cannot be read: {err.strerror}", code="data-missing", where=folder, fix=fix) from err
    for entry in entries:
        if is_folder(entry):
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                if any(os.scandir(entry.path)):
                    left_out.counts[f"folder {entry.name}"] += 1
            elif is_deep:
                _look(entry.path, found, left_out, (*above, identity))
            continue
        is_named_so = not entry.name.startswith(".") and entry.name.lower().endswith(IMAGE_SUFFIXES)
        if is_named_so and (_is_file(entry) or (entry.is_symlink() and not os.path.exists(entry.path))):
            found.setdefault(folder, []).append(entry.path)
        else:
            left_out.add(entry.path)
