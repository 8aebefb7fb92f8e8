"""Files of the latent cache: posterior-00000.npy and so on, of bounded size, each finished with a record of its hash.

Shapes: n images of a shard, 2 image and mirror image, 2c posterior mean then log-variance, s side of the latent.
"""

import json
import logging
import math
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgd_ray.errors import StageError
from ddgd_ray.stages.parts.images import Skipped
from ddgd_ray.stages.parts.readers import Int64
from ddgd_ray.storage.store import crash_point, file_sha256, write_atomically

log = logging.getLogger(__name__)

Float16 = NDArray[np.float16]
MAX_ROWS = 4096
MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Shard:
    """The rows `start` to `stop` of the listing; rows that are skipped are absent from the file. latent: (2c, s, s)."""

    index: int
    start: int
    stop: int
    latent: tuple[int, int, int]

    @property
    def name(self) -> str:
        return f"posterior-{self.index:05d}.npy"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.stop - self.start, 2, *self.latent)

    def blocks(self, num_images: int) -> list[Int64]:
        """The shard's rows, num_images at a time. No block crosses a shard: a shard made alone has the bytes of a calm run."""
        return np.split(np.arange(self.start, self.stop), range(num_images, self.stop - self.start, num_images))


def plan_shards(num_images: int, latent: tuple[int, int, int]) -> list[Shard]:
    rows = max(1, min(MAX_ROWS, MAX_BYTES // (2 * 2 * math.prod(latent))))
    starts = range(0, num_images, rows)
    return [Shard(index, start, min(start + rows, num_images), latent) for index, start in enumerate(starts)]


def save_shard(folder: Path, shard: Shard, posterior: Float16, skipped: list[Skipped]) -> None:
    """Writes the shard's file by one rename, then its record: a shard with a record is finished.

    posterior: (n, 2, 2c, s, s).
    """
    temporary = folder / f".{shard.name}.{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("wb") as file:
            np.save(file, posterior)
            file.flush()
            os.fsync(file.fileno())
        sha256 = file_sha256(temporary)
        os.replace(temporary, folder / shard.name)
    finally:
        temporary.unlink(missing_ok=True)
    crash_point("after-shard")
    record = {"shard": asdict(shard), "sha256": sha256, "skipped": [asdict(one) for one in skipped]}
    write_atomically(_record(folder, shard), json.dumps(record))


def is_kept(folder: Path, shard: Shard) -> bool:
    """Whether a finished, undamaged file of this shard is there. Warns when the file is damaged and has to be made again."""
    path = folder / shard.name
    try:
        record = json.loads(_record(folder, shard).read_text())
        if record["shard"] == asdict(shard) | {"latent": list(shard.latent)} and file_sha256(path) == record["sha256"]:
            return True
        problem = "has another content than when it was kept"
    except FileNotFoundError:
        if not _record(folder, shard).exists():
            return False  # never finished
        problem = "is missing"
    except (OSError, ValueError, KeyError, TypeError) as err:
        problem = f"has a record that cannot be read ({err})"
    log.warning("%s %s; it is made again", path, problem)
    return False


def read_skipped(folder: Path, shard: Shard) -> list[Skipped]:
    """The files skipped in a finished shard. Raises StageError when no rank finished it."""
    try:
        return [Skipped(**one) for one in json.loads(_record(folder, shard).read_text())["skipped"]]
    except FileNotFoundError as err:
        raise StageError(
            "this shard of the latent cache is missing",
            where=str(folder / shard.name),
            fix="give all ranks one folder to keep shards in, on storage that they share, and run the same command again",
        ) from err


def publish_shards(shards: list[Shard], folder: Path, out: Path) -> None:
    """Links the shards' files into `out`; the files stay in `folder`, for an attempt after a later failure."""
    for shard in shards:
        try:
            os.link(folder / shard.name, out / shard.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(folder / shard.name, out / shard.name)


def _record(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.name}.json"
