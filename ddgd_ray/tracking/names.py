"""What tracked runs are called, and how much of a curve they get. Pure; the limits are those of MLflow's version 3."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

MAX_POINTS = 200
MAX_KEY = 250
RESERVED = ("arm", "distill_seed", "evaluate_seed", "network", "ipc", "protocol")
"""Parameters that every trial or evaluator has."""

T = TypeVar("T")


def cleaned(name: str, limit: int = MAX_KEY) -> str:
    """`name` when MLflow takes it as a key on any system; otherwise the nearest that it takes, and digits of a hash."""
    plain = re.sub(r"[^A-Za-z0-9_./ -]", "_", name)
    parts = [part.strip() for part in plain.split("/")]
    plain = "/".join(part for part in parts if part.strip("."))
    if plain == name and 0 < len(plain) <= limit:
        return name
    return f"{plain[: limit - 7].rstrip('/')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """{dotted path: its last words, as few as tell it from the other paths and from the reserved names}."""
    words = {path: path.split(".") for path in paths}

    def short(path: str) -> str:
        for num in range(1, len(words[path])):
            end = words[path][-num:]
            is_shared = any(other[-num:] == end for name, other in words.items() if name != path)
            if not is_shared and ".".join(end) not in RESERVED:
                return ".".join(end)
        return path

    return {path: short(path) for path in words}


def thinned(points: Sequence[T], limit: int = MAX_POINTS) -> list[T]:
    """At most `limit` points, evenly spread; the first and the last are kept."""
    if len(points) <= limit:
        return list(points)
    return [points[round(place * (len(points) - 1) / (limit - 1))] for place in range(limit)]


def step_of(stem: str) -> tuple[str, int]:
    """(name, step) of a picture's file name: the last number in it is its step, `real-00050` is ("real", 50)."""
    found = re.fullmatch(r"(.*?)[-_.]?(?:step)?[-_.]?(\d+)", stem)
    return (found[1] or "picture", int(found[2])) if found else (stem, 0)
