"""Errors of our own that parallel processes of one job leave for the process that waits for them.

What Ray makes of an error on its way from a worker keeps its text alone; an error of ours also has a class, a code and advice.
"""

import json

from ddgd_ray import errors
from ddgd_ray.cluster import key_values
from ddgd_ray.errors import DdgdError, EngineError


def leave_verdict(name: str, rank: int, err: DdgdError) -> None:
    """Leave the error of one rank of the work `name`."""
    content = {"class": type(err).__name__, "what": err.what, "code": err.code, "where": err.where, "fix": err.fix}
    key_values.put(f"{name}/verdict/{rank}", json.dumps(content))


def num_verdicts(name: str) -> int:
    return len(key_values.keys(f"{name}/verdict/"))


def verdict_of(name: str) -> DdgdError | None:
    """The error that a rank of the work `name` has left, that of the lowest rank among several; None without one."""
    for key in sorted(key_values.keys(f"{name}/verdict/")):
        content = json.loads(key_values.get(key) or "{}")
        cls = getattr(errors, content.pop("class"), EngineError)
        return cls(content.pop("what"), **content)
    return None
