"""The self-adaptive memory: one set of latents per class, all classes side by side in one tensor.

Shapes: K classes, S slots (capacity + the largest batch), D flat latent, B batch, P classes of the batch.

Each class owns S slots; `born` holds the class's insertion counter of the row in a slot, -1 when the slot is free. Cosines are
kept in a Gram matrix, rounded to multiples of 2^-24, so that row sums in float64 are exact whatever the order of pushes and
pops: they are updated, never rebuilt. How many rows a class holds follows from labels that live on the host, so no step waits
for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FREE = -1
_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Rows:
    """What a pop strategy may look at, for the P classes that must shrink; free slots hold garbage.

    gram_PSS: cosines. sums_PS: summed cosine to all rows of the class. born_PS: insertion number. chance_PS: uniform in
    [0, 1), drawn anew each pop. fate_PS: uniform in [0, 1), drawn once when the row came. valid_PS: which slots hold a row.
    """

    gram_PSS: Tensor
    sums_PS: Tensor
    born_PS: Tensor
    chance_PS: Tensor
    fate_PS: Tensor
    valid_PS: Tensor


def _fifo(rows: Rows) -> Tensor:
    """Minimax Diffusion: the oldest leaves."""
    return -rows.born_PS.double()


def _max_similarity(rows: Rows) -> Tensor:
    """Paper Eq. 7-8: the row most similar to all others leaves; a row's cosine to itself adds 1 to all and decides nothing."""
    return rows.sums_PS


def _min_similarity(rows: Rows) -> Tensor:
    """The "min" of the paper's Table 3: the outlier leaves."""
    return -rows.sums_PS


def _random(rows: Rows) -> Tensor:
    return rows.chance_PS


def _reservoir(rows: Rows) -> Tensor:
    """Keeping the N smallest of i.i.d. uniforms keeps a uniform sample of the whole stream (bottom-k sampling)."""
    return rows.fate_PS


def _kcenter(rows: Rows) -> Tensor:
    """One of the closest pair leaves: the older, by the rule for ties (greedy k-center)."""
    pairs = rows.valid_PS[:, :, None] & rows.valid_PS[:, None, :]
    pairs = pairs & ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
    return rows.gram_PSS.masked_fill(~pairs, -torch.inf).amax(dim=2).double()


# the row with the greatest score leaves; on a tie, the oldest
POP_SCORES: dict[str, Callable[[Rows], Tensor]] = {
    "fifo": _fifo,
    "max_similarity": _max_similarity,
    "min_similarity": _min_similarity,
    "random": _random,
    "reservoir": _reservoir,
    "kcenter": _kcenter,
}


class LatentMemory:
    """Memory of all classes; `push` is the only thing that changes it."""

    def __init__(
        self,
        num_classes: int,
        capacity: int,
        latent_dim: int,
        *,
        pop: str = "max_similarity",
        max_age: int = 0,
        max_batch: int = 64,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """capacity: N rows a class. max_age: insertions after which a row leaves first, 0 for never. max_batch: rows a push."""
        self.capacity, self.max_age, self.pop = capacity, max_age, pop
        self._scores = POP_SCORES[pop]
        slots = capacity + max_batch
        self.unit_KSD = torch.zeros(num_classes, slots, latent_dim, device=device)
        self.norm_KS = torch.zeros(num_classes, slots, device=device)
        self.gram_KSS = torch.zeros(num_classes, slots, slots, device=device)
        self.sums_KS = torch.zeros(num_classes, slots, dtype=torch.float64, device=device)
        self.born_KS = torch.full((num_classes, slots), FREE, dtype=torch.int64, device=device)
        self.fate_KS = torch.zeros(num_classes, slots, dtype=torch.float64, device=device)
        self.num_seen_K = torch.zeros(num_classes, dtype=torch.int64)  # on the host, like the sizes
        self.size_K = torch.zeros(num_classes, dtype=torch.int64)
        self.num_evicted_K = torch.zeros(num_classes, dtype=torch.int64)
        self.num_bounced_K = torch.zeros(num_classes, dtype=torch.int64, device=device)  # rows that left in their own push
        self._generator = torch.Generator().manual_seed(seed)

    def cosines(self, z_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine of each latent to every row of its class, (B, S), and which slots hold a row, (B, S) bool. Differentiable."""
        device = self.unit_KSD.device
        classes_P, group_B = labels_B.cpu().unique(return_inverse=True)
        cosine_BS = self._own_cosines(F.normalize(z_BD, dim=1), classes_P.to(device), group_B.to(device))
        return cosine_BS, self.born_KS[labels_B.to(device)] != FREE

    def _own_cosines(self, unit_BD: Tensor, classes_P: Tensor, group_B: Tensor) -> Tensor:
        """(B, S): products with the slots of the own class. One copy per class, not per sample, and one matrix product."""
        cosine_BPS = torch.einsum("bd,psd->bps", unit_BD, self.unit_KSD[classes_P])
        return cosine_BPS[torch.arange(len(unit_BD), device=unit_BD.device), group_B]

    @torch.no_grad()
    def push(self, z_BD: Tensor, labels_B: Tensor) -> None:
        """Insert all latents, then let rows leave until each class has at most `capacity`.

        z_BD: (B, D), detached here. labels_B: (B,) int64 on the host. A batch row counts as younger than those before it.
        """
        device = self.unit_KSD.device
        labels = labels_B.cpu()
        if len(labels) == 0:
            return
        classes_P, group_B = labels.unique(return_inverse=True)
        same_BB = labels[:, None] == labels[None, :]
        place_B = same_BB.tril(-1).sum(1)  # how many rows of its class stand before it in the batch
        counts_P = torch.bincount(group_B)
        births_B = self.num_seen_K[labels] + place_B
        started_P = self.num_seen_K[classes_P]
        self.num_seen_K[classes_P] += counts_P
        sizes_P = self.size_K[classes_P] + counts_P
        fate_B = torch.rand(len(labels), dtype=torch.float64, generator=self._generator)

        labels_d, classes_d, group_d = (
            labels.to(device, non_blocking=True),
            classes_P.to(device, non_blocking=True),
            group_B.to(device, non_blocking=True),
        )
        assert int(sizes_P.max()) <= self.born_KS.shape[1], "a class got more rows in one push than max_batch"
        free_PS = (self.born_KS[classes_d] != FREE).to(torch.int8).argsort(dim=1, stable=True)
        slot_B = free_PS[group_d, place_B.to(device, non_blocking=True)]

        norm_B = z_BD.detach().float().norm(dim=1)
        unit_BD = F.normalize(z_BD.detach().float(), dim=1)
        self.unit_KSD[labels_d, slot_B] = unit_BD
        self.norm_KS[labels_d, slot_B] = norm_B
        self.born_KS[labels_d, slot_B] = births_B.to(device, non_blocking=True)
        self.fate_KS[labels_d, slot_B] = fate_B.to(device, non_blocking=True)

        valid_PS = self.born_KS[classes_d] != FREE
        cosine_BS = _to_grid(self._own_cosines(unit_BD, classes_d, group_d)) * valid_PS[group_d]
        self.gram_KSS[labels_d, slot_B] = cosine_BS
        self.gram_KSS[labels_d, :, slot_B] = cosine_BS
        is_new_PS = valid_PS & (self.born_KS[classes_d] >= started_P.to(device, non_blocking=True)[:, None])
        # old rows gain their cosine to each new row; new rows take the sum of theirs
        gained_PS = torch.zeros_like(self.sums_KS[classes_d]).index_add_(0, group_d, cosine_BS.double())
        self.sums_KS[classes_d] = torch.where(is_new_PS, 0.0, self.sums_KS[classes_d] + gained_PS) * valid_PS
        self.sums_KS[labels_d, slot_B] = cosine_BS.double().sum(dim=1)

        self._pop_down(classes_P, sizes_P, started_P)
        self.num_evicted_K[classes_P] += (sizes_P - self.capacity).clamp(min=0)
        self.size_K[classes_P] = sizes_P.clamp(max=self.capacity)

    def _pop_down(self, classes_P: Tensor, sizes_P: Tensor, started_P: Tensor) -> None:
        device = self.unit_KSD.device
        surplus_P = (sizes_P - self.capacity).clamp(min=0)
        for turn in range(int(surplus_P.max())):
            shrinking = surplus_P > turn
            classes_d = classes_P[shrinking].to(device, non_blocking=True)
            started = started_P[shrinking].to(device, non_blocking=True)
            victim_P = self._victims(classes_d, self.num_seen_K[classes_P[shrinking]].to(device, non_blocking=True))
            born_P = self.born_KS[classes_d, victim_P]
            self.num_bounced_K.index_add_(0, classes_d, (born_P >= started).long())
            column_PS = self.gram_KSS[classes_d, victim_P]
            self.sums_KS[classes_d] -= column_PS.double()
            self.sums_KS[classes_d, victim_P] = 0.0
            self.gram_KSS[classes_d, victim_P] = 0.0
            self.gram_KSS[classes_d, :, victim_P] = 0.0
            self.unit_KSD[classes_d, victim_P] = 0.0
            self.born_KS[classes_d, victim_P] = FREE

    def _victims(self, classes_d: Tensor, num_seen_P: Tensor) -> Tensor:
        """One slot for each class: the greatest score; on a tie, the oldest row."""
        born_PS = self.born_KS[classes_d]
        valid_PS = born_PS != FREE
        chance_PS = torch.rand(born_PS.shape, dtype=torch.float64, generator=self._generator).to(born_PS.device)
        # the Gram matrix is looked at by one strategy only; indexing copies it
        gram = self.gram_KSS[classes_d] if self.pop == "kcenter" else self.gram_KSS[:0]
        scores_PS = self._scores(Rows(gram, self.sums_KS[classes_d], born_PS, chance_PS, self.fate_KS[classes_d], valid_PS))
        if self.max_age:
            is_stale_PS = num_seen_P[:, None] - 1 - born_PS > self.max_age
            scores_PS = torch.where(is_stale_PS, torch.inf, scores_PS)
        scores_PS = scores_PS.masked_fill(~valid_PS, -torch.inf)
        is_best_PS = (scores_PS == scores_PS.amax(dim=1, keepdim=True)) & valid_PS
        return born_PS.masked_fill(~is_best_PS, _NEVER).argmin(dim=1)

    def rows(self, label: int) -> Tensor:
        """The latents of one class, (size, D), oldest first."""
        born = self.born_KS[label]
        slots = born.masked_fill(born == FREE, _NEVER).argsort()[: int(self.size_K[label])]
        return self.unit_KSD[label, slots] * self.norm_KS[label, slots, None]

    def ages(self, label: int) -> Tensor:
        """Insertions into the class since each row came, (size,), oldest first; the newest row has age 0."""
        born = self.born_KS[label]
        return self.num_seen_K[label].item() - 1 - born[born != FREE].sort().values

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Means over the classes that hold rows: size, mean_cosine, effective_rank, mean_age, max_age, churn, bounced.

        mean_cosine: over pairs of different rows. effective_rank: exp of the entropy of the Gram matrix's eigenvalues
        (Roy & Vetterli 2007). churn: rows that left per row that came. bounced: share of pushes that left in their own step.
        """
        totals: dict[str, list[float]] = {}
        for label in torch.nonzero(self.size_K > 0).flatten().tolist():
            rows = F.normalize(self.rows(label), dim=1)
            size, seen = len(rows), float(self.num_seen_K[label])
            gram = (rows @ rows.T).double()
            eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
            share = eigenvalues / eigenvalues.sum().clamp(min=1e-30)
            ages = self.ages(label).double()
            values = {
                "size": float(size),
                "mean_cosine": float((gram.sum() - gram.trace()) / (size * (size - 1))) if size > 1 else 0.0,
                "effective_rank": float(torch.special.entr(share).sum().exp()),
                "mean_age": float(ages.mean()),
                "max_age": float(ages.max()),
                "churn": float(self.num_evicted_K[label]) / seen,
                "bounced": float(self.num_bounced_K[label]) / seen,
            }
            for name, value in values.items():
                totals.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in totals.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, and the generator's state; `load_state_dict` continues exactly."""
        tensors = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {**tensors, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        for name, value in state.items():
            if name != "generator":
                getattr(self, name).copy_(value)


def _to_grid(cosine: Tensor) -> Tensor:
    """Rounded to multiples of 2^-24: float64 sums of up to 2^28 such numbers are exact."""
    return (cosine * 2.0**24).round() * 2.0**-24
