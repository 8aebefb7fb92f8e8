"""A stage's curves on disk: the points that the stage reports, and when its attempts began and stopped. Torch-free."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ddgd_ray.errors import Stopped
from ddgd_ray.stages.base import RESUMABLE, Context, StageCall
from ddgd_ray.storage.store import Artifact

CURVES = "curves.jsonl"
ATTEMPTS = "attempts.jsonl"


def reporter(curves: TextIO, call: StageCall, ctx: Context) -> Callable[[int, Mapping[str, float]], None]:
    """A function that appends a point to `curves`, hands the point on to ctx.report, and obeys an order to stop.

    With several ranks the order is not obeyed here: the other ranks would wait for this one. An order that is not urgent stops
    the stages in RESUMABLE alone; a fine-tuning obeys it in its own loop, where it can write a checkpoint first.
    """

    def report(step: int, metrics: Mapping[str, float]) -> None:
        point = {name: float(value) for name, value in metrics.items()}
        curves.write(json.dumps({"step": step, "time": time.time()} | point) + "\n")
        ctx.report(step, point)
        if ctx.num_ranks == 1 and (ctx.is_told_to_stop_now or (call.stage in RESUMABLE and ctx.is_told_to_stop)):
            raise Stopped(f"told to stop at step {step}", where=f"{call.stage} {call.key[:8]}")

    return report


def whole_lines(content: bytes) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that is appended to; a line that a crash has cut is passed over."""
    found = []
    for text in content.splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


def write_curves(kept: Path, target: Path) -> None:
    """Writes the points of all attempts to `target`, one line a step: of a step reported twice the later line stands."""
    sound = {point["step"]: json.dumps(point) for point in whole_lines(kept.read_bytes())}
    target.write_text("".join(f"{sound[step]}\n" for step in sorted(sound)))


def read_newest_point(kept: Path) -> dict[str, float]:
    """The last point that a stage in the making has reported, {} before the first. kept: the stage's folder in the store."""
    try:
        point = json.loads((kept / CURVES).read_bytes()[-4000:].splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return {}
    return point if isinstance(point, dict) else {}


def read_curves(artifact: Artifact) -> list[dict[str, float]]:
    """The points that the stage reported, in order; each has `step` and `time` (seconds since 1970)."""
    path = artifact.path / CURVES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@contextmanager
def attempt(kept: Path) -> Iterator[None]:
    """Notes in `kept` when an attempt begins and, if it is told to stop, when it ends.

    An attempt that is killed notes no end: its last point tells it.
    """
    curves = kept / CURVES
    offset = curves.stat().st_size if curves.is_file() else 0
    with (kept / ATTEMPTS).open("a", buffering=1) as file:
        file.write(json.dumps({"began": time.time(), "offset": offset}) + "\n")
        try:
            yield
        except Stopped:
            file.write(json.dumps({"stopped": time.time()}) + "\n")
            raise


def seconds_before(kept: Path, stage: str) -> float:
    """Seconds of the attempts before the last one, without work that a later attempt did again.

    Work was done again where a fine-tuning reported the same steps twice: it went back to a checkpoint.
    """
    curves = (kept / CURVES).read_bytes()
    attempts: list[dict[str, float]] = []
    for line in whole_lines((kept / ATTEMPTS).read_bytes()):
        if "began" in line:
            attempts.append(line)
        elif attempts:
            attempts[-1] |= line
    total, again_from, end = 0.0, math.inf, len(curves)
    for one in reversed(attempts):
        points = whole_lines(curves[int(one["offset"]) : end])
        if one is not attempts[-1]:
            stand = [point["time"] for point in points if point["step"] < again_from]
            until = max(stand, default=one["began"])
            if len(stand) == len(points):
                until = one.get("stopped", until)
            total += max(0.0, until - one["began"])
        if stage not in RESUMABLE:
            again_from = min([again_from, *(point["step"] for point in points)])
        end = int(one["offset"])
    return total
