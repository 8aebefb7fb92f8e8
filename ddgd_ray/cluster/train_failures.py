"""The errors of Ray Train, in one line, and the errors of our own inside them."""

from ddgd_ray.cluster.deaths import words_of
from ddgd_ray.errors import DdgdError, EngineError, NoRoom


def told_of(err: Exception, retries: int, where: str) -> Exception:
    """The error that says in one line what became of a run of Train's. An EngineError is final."""
    failures = getattr(err, "worker_failures", None)
    if type(getattr(err, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        return NoRoom(
            "no room for its workers in several minutes: somebody else on this cluster holds what they need", where=where
        )
    if not failures:  # of Train itself, as when the port that it chose was taken meanwhile: it does not try again
        return RuntimeError(f"Ray Train gave up: {_last_line(err)}")
    rank, last = min(failures.items())
    last_words = words_of(str(last)) if "worker process has died" in str(last) else _last_line(last)
    cause = f"rank {rank} by {type(last).__name__}: {last_words}"
    if not retries:
        return RuntimeError(f"its workers were lost, {cause}")
    return EngineError(
        f"its workers were lost {retries + 1} times, the last time {cause}",
        code="workers",
        where=where,
        fix="see the run's log; run the same command again to go on from its last checkpoint",
    )


def _last_line(err: BaseException) -> str:
    return (str(err).strip().splitlines() or [""])[-1][:300]


def error_of_ours(err: BaseException) -> DdgdError | None:
    """The DdgdError behind an error of Train's, which wraps those of workers; None when there is none."""
    if isinstance(err, DdgdError):
        return err
    behind = [*getattr(err, "worker_failures", {}).values(), err.__cause__, err.__context__, getattr(err, "cause", None)]
    found = (error_of_ours(inner) for inner in behind if isinstance(inner, BaseException))
    return next((inner for inner in found if inner is not None), None)
