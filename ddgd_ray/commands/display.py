"""A display that never ends or fails the work: stdout and stderr that may be closed, full, gone, or unable to show a sign."""

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

PLAIN = {
    "±": "+-",
    "×": "x",  # noqa: RUF001
    "–": "-",  # noqa: RUF001
    "—": "-",
    "−": "-",  # noqa: RUF001
    "…": "...",
    "→": "->",
    "↑": "^",
    "↓": "v",
    "≥": ">=",
    "≤": "<=",
    "≈": "~",
}
"""What a terminal without these signs shows."""
HANDLER = "ddgd-plain"


def _plain(err: UnicodeError) -> tuple[str, int]:
    assert isinstance(err, UnicodeEncodeError)
    return "".join(PLAIN.get(sign, "?") for sign in err.object[err.start : err.end]), err.end


class Display:
    """A text stream in place of stdout or stderr. What cannot be shown is dropped; `lost` says why the stream was given up."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors=HANDLER)  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self.lost is None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except ValueError as err:  # closed
            self.lost = OSError(errno.EPIPE, str(err))
        except OSError as err:
            self.lost = err
            with suppress(OSError, ValueError):  # so that what is still buffered fails nobody at the end
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextmanager
def safe_display() -> Iterator[Display]:
    """A block in which stdout and stderr are displays; stdout's is given."""
    codecs.register_error(HANDLER, _plain)
    before = sys.stdout, sys.stderr
    null = open(os.devnull, "w")  # noqa: SIM115  a process may be started without streams
    out = Display(sys.stdout or null)
    sys.stdout, sys.stderr = out, Display(sys.stderr or null)
    try:
        yield out
    finally:
        out.flush()
        sys.stdout, sys.stderr = before
        null.close()


def is_full(out: Display) -> bool:
    """Whether what was shown is lost for another reason than that nobody reads on."""
    return out.lost is not None and out.lost.errno not in (errno.EPIPE, errno.EIO)
