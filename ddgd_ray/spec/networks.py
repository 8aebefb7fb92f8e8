"""Names of timm's networks, read from its files: importing timm takes seconds and torch."""

import functools
import importlib.util
import re
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model\s+def\s+(\w+)", re.MULTILINE)
_RENAMED = re.compile(r"^\s+'(\w+)':", re.MULTILINE)  # old names, in calls of register_model_deprecations


@functools.cache
def timm_networks() -> frozenset[str]:
    """The names that timm.create_model takes, old ones too; empty where timm is not installed."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return frozenset()
    names: set[str] = set()
    for file in (Path(found.origin).parent / "models").glob("*.py"):
        text = file.read_text()
        names.update(_REGISTERED.findall(text))
        _, _, renamed = text.partition("register_model_deprecations(__name__")
        names.update(_RENAMED.findall(renamed))
    return frozenset(names)
