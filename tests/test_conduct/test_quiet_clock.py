"""The clock of a machine that does nothing else."""

import subprocess
import sys
import time

from ddgd_ray.conduct.quiet_clock import QuietClock

BUSY = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


def work() -> float:
    """CPU seconds of some hundred million steps, whoever else runs."""
    before = time.thread_time()
    sum(number * number for number in range(3_000_000))
    return time.thread_time() - before


def test_what_neighbours_take_is_not_counted() -> None:
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(6)]
    try:
        time.sleep(0.5)
        with QuietClock(1) as clock:
            own_s = work()
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert clock.seconds < 1.5 * own_s + 0.1
    assert clock.wall_s >= clock.seconds


def test_what_is_waited_for_otherwise_counts() -> None:
    with QuietClock(1) as clock:
        time.sleep(0.3)
    assert clock.seconds > 0.25
