"""The root of all specs."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen and strict: unknown keys, NaN, and `yes` or "64" for a number are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    def canonical(self) -> dict[str, Any]:
        """Everything that determines the result, defaults resolved. Fields with `exclude=True` say where, not what."""
        return self.model_dump(mode="json")


def canonical_json(value: object) -> str:
    """One text for one value: keys sorted, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
