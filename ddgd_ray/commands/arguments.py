"""Words of a command line: numbers within their bounds, and messages on wrong words that repeat no secret."""

import argparse
import difflib
import math
import re
from typing import NoReturn

from ddgd_ray.redact import redact

_UNKNOWN = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose messages hide passwords and tokens: what follows an unknown option may be one."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix(_UNKNOWN)
        super().error(redact(message) if unknown == message else _UNKNOWN + self._without_values(unknown))

    def _without_values(self, words: str) -> str:
        """The unknown words up to the first option, then the options alone, with the nearest known one."""
        before, option, after = words.partition("--") if words.startswith("--") else words.partition(" --")
        names = [word.partition("=")[0] for word in f"{option}{after}".split() if word.startswith("-")]
        known = {name for action in _actions(self) for name in action.option_strings}
        near = difflib.get_close_matches(names[0], sorted(known), n=1) if names else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        return " ".join(filter(None, [redact(before), *names])) + hint


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The actions of a parser and of its commands."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found += _actions(inner)
    return found


class Count:
    """The type of a whole number from `low` to `high`."""

    def __init__(self, low: int, high: int = 10**9) -> None:
        self.low, self.high = low, high

    def __call__(self, text: str) -> int:
        if not re.fullmatch(r"[-+]?\d{1,20}", text) or not self.low <= int(text) <= self.high:
            bound = f"{self.low} to {self.high}" if self.high < 10**9 else f"{self.low} or more"
            raise argparse.ArgumentTypeError(f"expected a whole number, {bound}, got {text[:40]!r}")
        return int(text)


def amount(text: str) -> float:
    """The type of a number of cores or GPUs, which may be a fraction; 0 for the default."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10**6:
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text[:40]!r}")
    return value
