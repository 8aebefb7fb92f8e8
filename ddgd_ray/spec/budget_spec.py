"""What a run may spend, over all its starts."""

from pydantic import Field

from ddgd_ray.spec.base import Spec


class BudgetSpec(Spec):
    """Limits; 0 is none. A spent budget starts nothing more, lets running jobs end, and leaves the run to be continued."""

    gpu_hours: float = Field(0, ge=0)
    core_hours: float = Field(0, ge=0)
    hours: float = Field(0, ge=0)
    """Of wall clock, the starts added up."""
    trials: int = Field(0, ge=0)
    """Sets of configurations at one distillation seed; controls do not count."""
