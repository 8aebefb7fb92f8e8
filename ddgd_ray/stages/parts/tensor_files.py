"""Tensors from files, read so that nothing in a file can run, and compared strictly with what a model holds."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ddgd_ray.errors import StageError

Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one of torch.save, by name; names inside nested dicts joined by dots.

    Raises StageError for files that are empty, cut off, or hold anything that only unpickling would bring back.
    """
    size = file.stat().st_size
    if size == 0:
        raise StageError("the file is empty (0 bytes)", code="weights-damaged", where=str(file), fix="fetch it again")
    if file.suffix != ".safetensors":
        return dict(_tensors_in(_torch_load(file, size), ""))
    try:
        return load_file(file)
    except (SafetensorError, OSError) as err:
        raise _damaged(file, size) from err


def _torch_load(file: Path, size: int) -> Any:
    try:
        # builds tensors and plain containers only; mmap leaves on disk what is not used, optimizer states say
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as err:  # torch answers damage with many classes: RuntimeError, EOFError, KeyError, UnpicklingError
        found = re.search(r"GLOBAL ([\w.]+)", str(err))
        if found is None:
            raise _damaged(file, size) from err
        raise StageError(
            f"the file holds a pickled object ({found.group(1)}) beside its tensors; reading it could run any code, so it is "
            "refused",
            code="weights-pickled",
            where=str(file),
            fix="let whoever made it save the tensors alone: torch.save(checkpoint['ema'], FILE)",
        ) from err


def _damaged(file: Path, size: int) -> StageError:
    what = f"the weights cannot be read: the file has {size} bytes and is cut off, or is no file of tensors"
    return StageError(what, code="weights-damaged", where=str(file), fix="compare its size with the source and fetch it again")


def _tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors_in(inner, f"{name}.{key}" if name else str(key))


def differences(found: Shapes, expected: Shapes) -> list[str]:
    """One sentence for each tensor that is missing, extra or of another shape."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is not part of it" for name in sorted(found.keys() - expected.keys())]
    both = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    return lines + [f"{name}: expected {expected[name]}, found {found[name]}" for name in both]


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def copy_into(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str, where: str) -> None:
    """Fills `targets` in place. Raises StageError when a tensor is missing, extra or misshapen, naming up to 8."""
    wrong = differences(shapes_of(tensors), shapes_of(targets))
    if wrong:
        raise StageError(
            f"{what}: {len(wrong)} tensors do not fit: {'; '.join(wrong[:8])}",
            code="weights-misfit",
            where=where,
            fix="use weights of this model",
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])
