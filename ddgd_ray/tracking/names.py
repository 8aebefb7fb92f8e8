"""What tracked runs are called, and how much of a curve they get. Pure; the limits are those of MLflow's version 3."""

import hashlib
import re
from collections.abc import Sequence
from typing import TypeVar

MAX_POINTS = 200
MAX_KEY = 250
T = TypeVar("T")


def cleaned(name: str, limit: int = MAX_KEY) -> str:
    """`name` when MLflow takes it as a key on any system; otherwise the nearest that it takes, and digits of a hash."""
    plain = re.sub(r"[^A-Za-z0-9_./ -]", "_", name)
    parts = [part.strip() for part in plain.split("/")]
    plain = "/".join(part for part in parts if part.strip("."))
    if plain == name and 0 < len(plain) <= limit:
        return name
    return f"{plain[: limit - 7].rstrip('/')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")


def thinned(points: Sequence[T], limit: int = MAX_POINTS) -> list[T]:
    """At most `limit` points, evenly spread; the first and the last are kept."""
    if len(points) <= limit:
        return list(points)
    return [points[round(place * (len(points) - 1) / (limit - 1))] for place in range(limit)]


def step_of(stem: str) -> tuple[str, int]:
    """(name, step) of a picture's file name: the last number in it is its step, `real-00050` is ("real", 50)."""
    found = re.fullmatch(r"(.*?)[-_.]?(?:step)?[-_.]?(\d+)", stem)
    return (found[1] or "picture", int(found[2])) if found else (stem, 0)
