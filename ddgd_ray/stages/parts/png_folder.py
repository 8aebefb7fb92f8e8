"""PNG files written by threads while the next images are computed, each with its SHA-256.

Shapes: S side in pixels, C channels; an image is (S, S, C) uint8.
"""

import hashlib
import io
import os
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ddgd_ray.stages.parts.images import Uint8

LEDGER = "SHA256SUMS"
THREADS = 4  # a 256 px PNG takes one core about 15 ms


class PngFolder:
    """A folder of PNG files, and their SHA-256 in a ledger.

    Files that an earlier, broken-off process left whole are still here.

    sha256: of each file that is here, by name. A file counts once its ledger line is written, and only while its content
    agrees with it: half-written, damaged or missing files are as if they had never been.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.sha256 = _sound_files(folder)
        self._ledger = (folder / LEDGER).open("w")
        self._ledger.writelines(f"{digest}  {name}\n" for name, digest in self.sha256.items())
        self._ledger.flush()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="png")
        self._pending: list[Future[None]] = []

    def put(self, images: dict[str, Uint8]) -> None:
        """Starts to write `images`, once all earlier ones are on disk: at most two batches are held in memory."""
        earlier, self._pending = self._pending, [self._threads.submit(self._write, *item) for item in images.items()]
        for future in earlier:
            future.result()

    def _write(self, name: str, image: Uint8) -> None:
        content = encoded(image)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_bytes(content)
        os.replace(partial, path)
        digest = hashlib.sha256(content).hexdigest()
        with self._lock:
            self.sha256[name] = digest
            self._ledger.write(f"{digest}  {name}\n")
            self._ledger.flush()

    def finish(self, target: Path) -> dict[str, str]:
        """The SHA-256 of each file, after all files are written and linked into `target`."""
        self.put({})
        for name in self.sha256:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.folder / name, target / name)  # still kept here if the process dies before it publishes
            except OSError:  # no hard links on this file system
                shutil.copyfile(self.folder / name, target / name)
        return dict(self.sha256)

    def __enter__(self) -> "PngFolder":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all writing: a second attempt in this process may begin."""
        self._threads.shutdown()
        self._ledger.close()


def encoded(image: Uint8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _sound_files(folder: Path) -> dict[str, str]:
    ledger = folder / LEDGER
    sound = {}
    for line in ledger.read_text().splitlines() if ledger.is_file() else []:
        digest, _, name = line.partition("  ")
        path = folder / name
        if name and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            sound[name] = digest
    return sound
