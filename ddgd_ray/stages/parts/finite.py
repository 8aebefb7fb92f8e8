"""A watch over losses: one that is not finite is noticed before the optimizer steps, without waiting for the device."""

import torch
from torch import Tensor

from ddgd_ray.errors import StageError


class FiniteWatch:
    """A watch that stops a run whose loss is not finite before its weights are touched.

    Where the watch is deferred, for a GPU, the optimizer is told on the device to leave the weights alone from the first bad
    step on. The host learns of that step when it looks at the losses anyway; no step waits.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, is_deferred: bool) -> None:
        self.optimizer, self.is_deferred = optimizer, is_deferred
        self._seen: list[tuple[int, Tensor, Tensor]] = []  # step, ids of the rows, terms
        self._names: list[str] = []
        self._found = torch.zeros(())

    def see(self, step: int, terms: dict[str, Tensor], ids: Tensor) -> None:
        """Takes note of a step. Raises StageError when a term is not finite: at once, or where the watch is deferred, later."""
        values = torch.stack(list(terms.values()))
        self._names = list(terms)
        self._seen.append((step, ids, values))
        if not self.is_deferred:
            self.check()
            return
        is_bad = 1 - torch.isfinite(values).all().float()
        self._found = torch.maximum(self._found.to(values.device), is_bad)
        self.optimizer.found_inf = self._found  # type: ignore[attr-defined]  # what GradScaler sets: fused AdamW skips its step

    def check(self) -> list[float]:
        """The newest terms. Raises StageError for the first step with a term that is not finite."""
        rows = torch.stack([values for _, _, values in self._seen]).tolist()
        for (step, ids, _), row in zip(self._seen, rows, strict=True):
            bad = [name for name, value in zip(self._names, row, strict=True) if not abs(value) < float("inf")]
            if bad:
                raise StageError(
                    f"{', '.join(bad)} is not finite at step {step}; rows of the batch: {ids.tolist()[:16]}",
                    code="non-finite",
                    where="finetune",
                    fix="lower finetune.learning_rate or the lambdas",
                )
        del self._seen[:-1]
        return rows[-1]

    def newest_terms(self) -> dict[str, float]:
        return dict(zip(self._names, self.check(), strict=True))
