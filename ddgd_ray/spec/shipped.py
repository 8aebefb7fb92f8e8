"""Sweep files and search spaces that come with the package: `ablations/NAME.yaml`, `search_spaces/NAME.yaml`."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS = ("ablations", "search_spaces")
"""In a clone they are links to the folders beside the package, in a wheel folders of it."""


def shipped_files(folder: str) -> list[Path]:
    """The files of one of FOLDERS that come with the package, by name."""
    return sorted((PACKAGE / folder).glob("*.yaml"))


def find_file(path: Path) -> Path:
    """The file itself where it is there, otherwise the one of the package under the same name, if there is one."""
    is_shipped = not path.is_absolute() and len(path.parts) == 2 and path.parts[0] in FOLDERS
    return PACKAGE / path if is_shipped and not path.exists() and (PACKAGE / path).is_file() else path
