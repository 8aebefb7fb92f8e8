"""The section `claims` of a sweep file: what size of a difference matters, and how sure a verdict has to be."""

from pydantic import Field

from ddgd_ray.spec.base import Spec


class ClaimsSpec(Spec):
    """Each arm, and each level of a varied field, is better, worse, equivalent or undecided. Enters no key."""

    smallest_effect: float = Field(gt=0)
    """In units of the metric: a smaller difference does not matter, and arms that differ by less are equivalent."""
    confidence: float = Field(0.95, ge=0.5, lt=1)
    """Least probability that no verdict of a table is false, over all its pairs and over all looks at it together."""
    reference: str = ""
    """The arm that every other one is compared with. "": plain where it ran, else random_real, else the first arm."""
