"""Who answers SIGINT and SIGTERM: still the same after a library has put its own handlers in place."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def kept_signals() -> Iterator[None]:
    """ray.init makes SIGTERM end the process at once (codes 1 and 15); ours lets a sweep drain."""
    if threading.current_thread() is not threading.main_thread():  # no handlers are set there, by nobody
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
