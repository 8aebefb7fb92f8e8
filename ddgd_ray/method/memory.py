"""The self-adaptive memory: one set of latents per class, all classes side by side in one tensor.

Shapes: K classes, S slots (capacity + the largest batch), D flat latent, B batch, P classes of the batch.

Each class owns S slots; `born` holds the class's insertion counter of the row in a slot, FREE when there is none, and what
else stands in a free slot means nothing. Cosines are kept in a Gram matrix, rounded to multiples of 2^-24, so that row sums in
float64 are exact whatever the order of pushes and pops: they are updated, never rebuilt. How many rows a class holds follows
from labels that live on the host, so no step waits for the device.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from ddgd_ray.method.arrivals import Arrivals, arrivals, members_of, sent, staged
from ddgd_ray.method.cosines import OwnCosines, own_cosines

FREE = -1
_NEVER = torch.iinfo(torch.int64).max
_NO_PAIR = -2.0  # below any cosine


@dataclass(frozen=True)
class Rows:
    """The rows of the P classes that must shrink, as a pop strategy sees them; free slots hold garbage.

    sums_PS: summed cosine to all rows of the class. nearest_PS: greatest cosine to another row. born_PS: insertion number.
    chance_PS: uniform in [0, 1), drawn anew each pop. fate_PS: uniform in [0, 1), drawn once when the row came.
    Each strategy names in `_USES` which of sums, nearest and chance it looks at; the others are empty.
    """

    sums_PS: Tensor
    nearest_PS: Tensor
    born_PS: Tensor
    chance_PS: Tensor
    fate_PS: Tensor


def _fifo(rows: Rows) -> Tensor:
    """Scores by age: the oldest row leaves (Minimax Diffusion)."""
    return -rows.born_PS.double()


def _max_similarity(rows: Rows) -> Tensor:
    """Scores by summed cosine: the row most similar to all others leaves (paper Eq. 7-8).

    The sum holds a row's cosine to itself, which is 1 for all rows and decides nothing.
    """
    return rows.sums_PS


def _min_similarity(rows: Rows) -> Tensor:
    """Scores against the summed cosine: the outlier leaves, the "min" of the paper's Table 3."""
    return -rows.sums_PS


def _random(rows: Rows) -> Tensor:
    return rows.chance_PS


def _reservoir(rows: Rows) -> Tensor:
    """Scores drawn once a row: the N smallest of such uniforms are a uniform sample of the whole stream (bottom-k sampling)."""
    return rows.fate_PS


def _kcenter(rows: Rows) -> Tensor:
    """Scores by nearest row: of the closest pair the older leaves, by the rule for ties (greedy k-center)."""
    return rows.nearest_PS.double()


# the row with the greatest score leaves; on a tie, the oldest
POP_SCORES: dict[str, Callable[[Rows], Tensor]] = {
    "fifo": _fifo,
    "max_similarity": _max_similarity,
    "min_similarity": _min_similarity,
    "random": _random,
    "reservoir": _reservoir,
    "kcenter": _kcenter,
}
# reservoir looks at no chance, but its fates come from the same generator: without these draws they would be others
_USES = {
    "max_similarity": "sums",
    "min_similarity": "sums",
    "kcenter": "nearest",
    "random": "chance",
    "reservoir": "chance",
}


class LatentMemory:
    """The memory of all classes; `push` is the only thing that changes it."""

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
        self._scores, self._uses = POP_SCORES[pop], _USES.get(pop, "")
        slots = capacity + max_batch
        gram_slots = slots if self._uses in ("sums", "nearest") else 0  # others look at no cosine
        self._no_cosine = _NO_PAIR if self._uses == "nearest" else 0.0  # stands in gram where a slot was free
        self.unit_KSD = torch.zeros(num_classes, slots, latent_dim, device=device)
        self.norm_KS = torch.zeros(num_classes, slots, device=device)
        self.gram_KSS = torch.zeros(num_classes, gram_slots, gram_slots, device=device)
        if self._no_cosine:
            self.gram_KSS.fill_(self._no_cosine)
        self.sums_KS = torch.zeros(num_classes, slots, dtype=torch.float64, device=device)  # stays zero unless used
        self.born_KS = torch.full((num_classes, slots), FREE, dtype=torch.int64, device=device)
        self.fate_KS = torch.zeros(num_classes, slots, dtype=torch.float64, device=device)
        self.num_seen_K = torch.zeros(num_classes, dtype=torch.int64)  # on the host, like the sizes
        self.size_K = torch.zeros(num_classes, dtype=torch.int64)
        self.num_evicted_K = torch.zeros(num_classes, dtype=torch.int64)
        self.num_bounced_K = torch.zeros(num_classes, dtype=torch.int64, device=device)  # rows that left in their own push
        self._generator = torch.Generator().manual_seed(seed)
        self.num_pushes = 0

    def cosines(self, z_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine of each latent to every slot of its class, (B, S), and which slots hold a row, (B, S) bool. Differentiable.

        labels_B: (B,) int64 on the host. Without a row, a slot's cosine means nothing. Backward must come before the second
        push from here: rows are not copied, and the first push only fills slots that are free now.
        """
        labels = labels_B.tolist()
        members = members_of(labels)
        order = [row for rows in members.values() for row in rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        order_B, back_B, label_B = sent(self.unit_KSD.device, order, back, labels)
        cosine_BS = OwnCosines.apply(F.normalize(z_BD, dim=1)[order_B], self, members)[back_B]
        return cosine_BS, self.born_KS[label_B] != FREE

    @torch.no_grad()
    def push(self, z_BD: Tensor, labels_B: Tensor) -> None:
        """Inserts all latents, then lets rows leave until each class has at most `capacity`.

        z_BD: (B, D), detached here. labels_B: (B,) int64 on the host. A batch row counts as younger than those before it.
        """
        if len(labels_B) == 0:
            return
        self.num_pushes += 1
        new = self._arrivals(labels_B.tolist())
        born_PS = self.born_KS[new.classes_P]
        slot_B = _lowest_free(born_PS[new.group_B], new.nth_B)
        born_PS[new.group_B, slot_B] = new.birth_B
        unit_BD = z_BD.detach().float()[new.order_B]  # a copy, so it may be divided in place
        norm_B = unit_BD.norm(dim=1)
        unit_BD.div_(norm_B.clamp_min(1e-12)[:, None])
        fate_B = torch.rand(len(z_BD), dtype=torch.float64, generator=self._generator)
        self.unit_KSD[new.label_B, slot_B] = unit_BD
        self.norm_KS[new.label_B, slot_B] = norm_B
        self.fate_KS[new.label_B, slot_B] = staged(fate_B, norm_B.device)[new.order_B]
        sums_PS = self.sums_KS[new.classes_P]
        if self._uses in ("sums", "nearest"):
            self._insert_cosines(new, unit_BD, slot_B, born_PS, sums_PS)
        self._pop_down(new, born_PS, sums_PS)
        self.born_KS[new.classes_P] = born_PS
        if self._uses == "sums":
            self.sums_KS[new.classes_P] = sums_PS.masked_fill_(born_PS == FREE, 0.0)

    def _arrivals(self, labels: list[int]) -> Arrivals:
        """The batch by class; its rows are counted as seen, evicted and held, all of which is known on the host."""
        rows = Counter(labels)
        held = {label: int(self.size_K[label]) + number for label, number in rows.items()}
        assert max(held.values()) <= self.born_KS.shape[1], "a class got more rows in one push than max_batch"
        surplus = {label: max(0, number - self.capacity) for label, number in held.items()}
        seen = {label: int(self.num_seen_K[label]) for label in rows}
        for label, number in rows.items():
            self.num_seen_K[label] += number
            self.num_evicted_K[label] += surplus[label]
            self.size_K[label] = held[label] - surplus[label]
        return arrivals(labels, surplus, seen, self.unit_KSD.device)

    def _insert_cosines(self, new: Arrivals, unit_BD: Tensor, slot_B: Tensor, born_PS: Tensor, sums_PS: Tensor) -> None:
        """Enters the new rows into the Gram matrix.

        An old row's sum gains its cosine to each new row, a new row gets the sum of its own.
        """
        is_free_BS = (born_PS == FREE)[new.group_B]
        cosine_BS = _to_grid(own_cosines(unit_BD, self.unit_KSD, new.members)).masked_fill_(is_free_BS, self._no_cosine)
        if self._uses == "nearest":
            self._make_symmetric(cosine_BS, new, slot_B)
        self.gram_KSS[new.label_B, slot_B] = cosine_BS
        self.gram_KSS[new.label_B, :, slot_B] = cosine_BS
        if self._uses == "sums":
            exact_BS = cosine_BS.double()
            sums_PS.index_add_(0, new.group_B, exact_BS)
            sums_PS[new.group_B, slot_B] = exact_BS.sum(dim=1)

    def _make_symmetric(self, cosine_BS: Tensor, new: Arrivals, slot_B: Tensor) -> None:
        """Gives two new rows of a class one cosine, so that each is the other's nearest to the last bit, and none its own."""
        cosine_BS.scatter_(1, slot_B[:, None], _NO_PAIR)
        stops = accumulate(len(rows) for rows in new.members.values())
        places = (range(stop - len(rows), stop) for rows, stop in zip(new.members.values(), stops, strict=True))
        pairs = [pair for own in places for pair in combinations(own, 2)]
        early, late = sent(slot_B.device, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        cosine_BS[late, slot_B[early]] = cosine_BS[early, slot_B[late]]

    def _pop_down(self, new: Arrivals, born_PS: Tensor, sums_PS: Tensor) -> None:
        """Lets one row leave in each turn from every class that is still too large."""
        labels = list(new.members)
        for turn in range(new.surplus[0]):
            n = sum(surplus > turn for surplus in new.surplus)
            classes_P = new.classes_P[:n]
            victim_P = self._victims(self._rows_of(labels[:n], classes_P, born_PS[:n], sums_PS[:n]), new.after_P[:n])
            was_born_P = born_PS[:n].gather(1, victim_P[:, None])
            self.num_bounced_K.index_add_(0, classes_P, (was_born_P[:, 0] >= new.before_P[:n]).long())
            born_PS[:n].scatter_(1, victim_P[:, None], FREE)
            if self._uses == "sums":
                sums_PS[:n] -= self.gram_KSS[classes_P, victim_P]
            elif self._uses == "nearest":
                self.gram_KSS[classes_P, victim_P] = _NO_PAIR
                self.gram_KSS[classes_P, :, victim_P] = _NO_PAIR

    def _rows_of(self, labels: list[int], classes_P: Tensor, born_PS: Tensor, sums_PS: Tensor) -> Rows:
        nearest_PS = chance_PS = born_PS.new_empty(0, dtype=torch.float64)
        if self._uses == "nearest":
            nearest_PS = torch.stack([self.gram_KSS[label].amax(dim=1) for label in labels])
        elif self._uses == "chance":
            drawn_PS = torch.rand(born_PS.shape, dtype=torch.float64, generator=self._generator)  # in ascending order of labels
            chance_PS = staged(drawn_PS[torch.tensor(labels).argsort().argsort()], born_PS.device)
        return Rows(sums_PS, nearest_PS, born_PS, chance_PS, self.fate_KS[classes_P])

    def _victims(self, rows: Rows, after_P: Tensor) -> Tensor:
        """One slot for each class: the greatest score; on a tie, the oldest row."""
        scores_PS = self._scores(rows)
        if self.max_age:
            is_stale_PS = after_P[:, None] - 1 - rows.born_PS > self.max_age
            scores_PS = torch.where(is_stale_PS, torch.inf, scores_PS)
        scores_PS = scores_PS.masked_fill(rows.born_PS == FREE, -torch.inf)
        is_best_PS = scores_PS == scores_PS.amax(dim=1, keepdim=True)
        return rows.born_PS.masked_fill(~is_best_PS, _NEVER).argmin(dim=1)

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
    """The cosines, rounded to multiples of 2^-24: float64 sums of up to 2^28 such numbers are exact."""
    return (cosine * 2.0**24).round() * 2.0**-24


def _lowest_free(born_BS: Tensor, nth_B: Tensor) -> Tensor:
    """The free slot of each row of `born_BS` with `nth` free ones below it, (B,)."""
    num_free_BS = (born_BS == FREE).cumsum(dim=1)
    return torch.searchsorted(num_free_BS, nth_B[:, None] + 1)[:, 0]
