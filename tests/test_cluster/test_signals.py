"""Handlers outlive what libraries do to them."""

import signal
import threading
from typing import Any

import pytest

from ddgd_ray.cluster.connect import kept_signals


@pytest.fixture
def ours() -> Any:
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        pass

    signal.signal(signal.SIGTERM, handle)
    yield handle
    signal.signal(signal.SIGTERM, before)


def test_a_handler_is_back_after_a_library_replaced_it(ours: Any) -> None:
    with kept_signals():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is ours


def test_a_handler_is_back_after_an_error(ours: Any) -> None:
    with pytest.raises(ValueError, match="x"), kept_signals():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise ValueError("x")
    assert signal.getsignal(signal.SIGTERM) is ours


def test_other_threads_are_left_alone(ours: Any) -> None:
    done = []

    def work() -> None:
        with kept_signals():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
    assert signal.getsignal(signal.SIGTERM) is ours
