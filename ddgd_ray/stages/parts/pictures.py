"""One picture file to one uint8 array: what is converted and how, and what counts as corrupt.

16-bit grey is scaled to 8 bits. Transparency is laid on white. Palettes and CMYK become RGB. Of several frames the first is
read. EXIF rotation is ignored, as torchvision's ImageFolder and with it the published numbers do. Float and 32-bit pixels,
whose range nobody knows, decompression bombs and whatever the decoder refuses are corrupt.

Shapes: S side in pixels, C channels.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ddgd_ray.errors import StageError
from ddgd_ray.plain_files import NoPlainFile, read_bytes
from ddgd_ray.spec.stages import ImagesSpec

Uint8 = NDArray[np.uint8]

MAX_PIXELS = 1 << 27  # 400 MB as RGB; the largest picture of ImageNet-1k has 0.2 of it
MAX_FILE_BYTES = 1 << 30
# what decoders raise on bytes that they do not understand; MemoryError is not among them, it says nothing of the file
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class CorruptImage(StageError):
    """One file that cannot be decoded; `what` is the reason."""

    default_code = "corrupt-image"
    default_fix = "replace or remove this file"


def open_picture(path: str, channels: int) -> Image.Image:
    """The whole picture, as RGB or 8-bit grey.

    Raises CorruptImage for a damaged file, and StageError when the storage fails: such a file is never skipped.
    """
    data = _contents(path)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise CorruptImage(f"has {opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read", where=path)
            return _eight_bits(opened, path).convert("RGB" if channels == 3 else "L")
    except UnidentifiedImageError as err:  # its message holds an address in memory
        raise CorruptImage(f"is no image: begins with {data[:12]!r}" if data else "is empty", where=path) from err
    except DECODER_ERRORS as err:
        raise CorruptImage(str(err) or type(err).__name__, where=path) from err


def for_generator(image: Image.Image, spec: ImagesSpec, path: str) -> Uint8:
    """The picture (S, S, C), its shorter side resized to spec.size, centre-cropped (ADM's crop). Raises CorruptImage."""
    while min(image.size) >= 2 * spec.size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = spec.size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise CorruptImage(f"has {image.width} x {image.height} pixels, too thin for {spec.size} a side", where=path)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    cropped = image.crop((left, top, left + spec.size, top + spec.size))
    return np.asarray(cropped, dtype=np.uint8).reshape(spec.size, spec.size, spec.channels)


def for_classifier(image: Image.Image, resize: int, size: int, path: str) -> Uint8:
    """The picture (S, S, C) as torchvision's Resize(resize) and CenterCrop(size) give it, bilinear with antialiasing."""
    short, long = sorted(image.size)
    if short != resize:
        other = int(resize * long / short)
        if resize * other > MAX_PIXELS:
            raise CorruptImage(f"has {image.width} x {image.height} pixels, too thin for {resize} a side", where=path)
        image = image.resize((resize, other) if image.width <= image.height else (other, resize), Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in image.size)
    cropped = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)
    return cropped.reshape(size, size, -1)


def _contents(path: str) -> bytes:
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except OSError as err:
        if Path(path).is_symlink() and not Path(path).exists():
            raise CorruptImage("is a broken link", where=path) from err
        if isinstance(err, NoPlainFile):
            raise CorruptImage(str(err.strerror), where=path) from err
        raise StageError(f"cannot be read: {err.strerror}", where=path, fix="check the storage, then run it again") from err


def _eight_bits(image: Image.Image, path: str) -> Image.Image:
    """The picture in a mode of 8 bits a channel without transparency, or one that `convert` makes into such."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise CorruptImage(f"has 32-bit pixels from {values.min()} to {values.max()}", where=path)
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise CorruptImage("has floating-point pixels, whose range is not known", where=path)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image
