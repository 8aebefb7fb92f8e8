"""Errors for users: where, what was expected, what came, what to do. Exit codes: README, "Exit codes"."""

import re

_LONG = re.compile(r"\S{400,}")  # nobody reads a word of such length; real paths are shorter


class DdgdError(Exception):
    """Root of all errors that a user can act on.

    what: one sentence with what was expected and what came. code: short stable name, shown as error[code].
    where: `file:line field`, a folder, or "". fix: one action.
    """

    exit_code = 1
    default_code = "internal"
    default_fix = ""

    def __init__(self, what: str, *, code: str = "", where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix or self.default_fix
        self.code = code or self.default_code

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        action = f"\n  help: {self.fix}" if self.fix else ""
        return _LONG.sub(_shortened, f"error[{self.code}]: {place}{self.what}{action}")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments get lost in the default pickle
        return (_rebuild, (type(self), self.what, self.code, self.where, self.fix))


def _shortened(match: re.Match[str]) -> str:
    word = match[0]
    return f"{word[:120]}... ({len(word)} characters) ...{word[-40:]}"


def _rebuild(cls: type[DdgdError], what: str, code: str, where: str, fix: str) -> DdgdError:
    return cls(what, code=code, where=where, fix=fix)


class SpecError(DdgdError):
    """Wrong usage or configuration."""

    exit_code = 2
    default_code = "spec"


class SpecErrors(SpecError):
    """All errors of one configuration at once."""

    def __init__(self, errors: list[SpecError]) -> None:
        super().__init__(f"{len(errors)} configuration errors")
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class StageError(DdgdError):
    """Data, weights or storage that a stage needs are missing or unusable."""

    exit_code = 5
    default_code = "preflight"


class ArtifactError(DdgdError):
    """A stored artifact is damaged, locked or of another version."""

    exit_code = 6
    default_code = "store"


class Stopped(DdgdError):
    """A stage was told to stop before its end; what it can go on from is kept."""

    exit_code = 75
    default_code = "interrupted"


class NoRoom(Stopped):
    """Somebody else holds what the stage needs; it goes on when there is room."""


class EngineError(DdgdError):
    """The sweep could not be carried out: too many failures, or the cluster cannot serve it."""

    exit_code = 4
    default_code = "engine"


class DamagedArtifact(ArtifactError):
    """An artifact is not what was published; a job that needs it may be repeated once it is made again."""

    default_code = "damaged"


class ClusterError(EngineError):
    """Ray cannot serve the sweep: it does not start or answer, has no room for a stage, or its nodes share no storage."""

    exit_code = 5
    default_code = "cluster"
