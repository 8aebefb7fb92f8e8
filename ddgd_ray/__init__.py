"""ddgd-ray: ablation and hyperparameter engine for diversity-driven generative dataset distillation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddgd_ray.api import Run as Run
    from ddgd_ray.api import open_run as open_run

__version__ = "0.1.0"
_OF_API = ("Run", "open_run")


def __getattr__(name: str) -> Any:
    """What notebooks use is imported when it is first asked for: `import ddgd_ray` alone loads nothing."""
    if name not in _OF_API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddgd_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OF_API])
