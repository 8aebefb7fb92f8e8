"""The memories against plain Python lists. Shapes: K classes, B batch, D flat latent."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddgd_ray.method.memory import POP_SCORES, LatentMemory

STRATEGIES = [(pop, 0) for pop in POP_SCORES] + [("max_similarity", 9), ("kcenter", 15)]


@dataclass
class Row:
    vector: list[float]
    born: int
    fate: float
    slot: int


def cosine(a: Row, b: Row) -> float:
    norms = math.hypot(*a.vector) * math.hypot(*b.vector)
    return sum(x * y for x, y in zip(a.vector, b.vector, strict=True)) / norms if norms else 0.0


class ListMemory:
    """The slow twin: a list of rows per class, everything recomputed for each victim.

    Random numbers are drawn as the memory draws them: one per row of a push, then one per slot of each class that must
    shrink, turn by turn. A new row takes the lowest free slot.
    """

    def __init__(self, num_classes: int, capacity: int, *, pop: str, max_age: int, max_batch: int, seed: int) -> None:
        self.capacity, self.pop, self.max_age, self.num_slots = capacity, pop, max_age, capacity + max_batch
        self.classes: list[list[Row]] = [[] for _ in range(num_classes)]
        self.num_seen, self.num_evicted, self.num_bounced = [0] * num_classes, [0] * num_classes, [0] * num_classes
        self.generator = torch.Generator().manual_seed(seed)

    def push(self, vectors: list[list[float]], labels: list[int]) -> None:
        fates = torch.rand(len(labels), dtype=torch.float64, generator=self.generator).tolist()
        started = list(self.num_seen)
        for vector, label, fate in zip(vectors, labels, fates, strict=True):
            taken = {row.slot for row in self.classes[label]}
            slot = next(slot for slot in range(self.num_slots) if slot not in taken)
            self.classes[label].append(Row(vector, self.num_seen[label], fate, slot))
            self.num_seen[label] += 1
        while over := [label for label, rows in enumerate(self.classes) if len(rows) > self.capacity]:
            chances = torch.rand((len(over), self.num_slots), dtype=torch.float64, generator=self.generator).tolist()
            for label, chance in zip(over, chances, strict=True):
                victim = self.victim(label, chance)
                self.classes[label].remove(victim)
                self.num_evicted[label] += 1
                self.num_bounced[label] += victim.born >= started[label]

    def victim(self, label: int, chance: list[float]) -> Row:
        rows = sorted(self.classes[label], key=lambda row: row.born)  # max() keeps the first of equals: the oldest
        too_old = [row for row in rows if self.num_seen[label] - 1 - row.born > self.max_age]
        if self.max_age and too_old:
            return too_old[0]
        if self.pop == "fifo":
            return rows[0]
        if self.pop == "random":
            return max(rows, key=lambda row: chance[row.slot])
        if self.pop == "reservoir":
            return max(rows, key=lambda row: row.fate)
        if self.pop == "kcenter":
            return max(rows, key=lambda row: max(cosine(row, other) for other in rows if other is not row))
        sign = {"max_similarity": 1, "min_similarity": -1}[self.pop]
        return max(rows, key=lambda row: sign * sum(cosine(row, other) for other in rows))

    def rows(self, label: int) -> list[list[float]]:
        return [row.vector for row in sorted(self.classes[label], key=lambda row: row.born)]


def exact_vectors(num: int, dim: int, generator: torch.Generator) -> Tensor:
    """Signs on 1, 4 or 16 places times a power of two: float32 cosines of these carry no rounding, so ties are true ties."""
    vectors_BD = torch.zeros(num, dim)
    for row in vectors_BD:
        places = torch.randperm(dim, generator=generator)[: 4 ** int(torch.randint(3, (), generator=generator))]
        signs = 2.0 * torch.randint(2, (len(places),), generator=generator) - 1
        row[places] = signs * 2.0 ** int(torch.randint(-3, 4, (), generator=generator))
    return vectors_BD


def assert_equal_to_twin(memory: LatentMemory, twin: ListMemory, when: str) -> None:
    assert memory.num_seen_K.tolist() == twin.num_seen, when
    assert memory.size_K.tolist() == [len(rows) for rows in twin.classes], when
    for label in range(len(twin.classes)):
        assert memory.rows(label).tolist() == twin.rows(label), f"{when}, class {label}"


@pytest.mark.parametrize(("pop", "max_age"), STRATEGIES)
def test_memory_holds_what_a_plain_list_holds_after_every_push(pop: str, max_age: int) -> None:
    num_classes, capacity, max_batch, dim = 4, 5, 9, 16
    generator = torch.Generator().manual_seed(11)
    # few different vectors, so that most rows have twins and most sums tie; one of them is zero
    known_VD = torch.cat([torch.zeros(1, dim), exact_vectors(14, dim, generator)])
    memory = LatentMemory(num_classes, capacity, dim, pop=pop, max_age=max_age, max_batch=max_batch, seed=3)
    twin = ListMemory(num_classes, capacity, pop=pop, max_age=max_age, max_batch=max_batch, seed=3)
    num_rows = 0
    for step in range(500):
        size = int(torch.randint(0, max_batch + 1, (), generator=generator))
        z_BD = known_VD[torch.randint(len(known_VD), (size,), generator=generator)]
        # class 0 is common, class 3 rare: their memories fill at different times
        labels_B = torch.randint(num_classes**2, (size,), generator=generator).float().sqrt().long().neg() + num_classes - 1
        memory.push(z_BD, labels_B)
        if size:
            twin.push(z_BD.tolist(), labels_B.tolist())
        num_rows += size
        assert_equal_to_twin(memory, twin, f"push {step}")
    assert num_rows > 2000
    assert memory.num_evicted_K.tolist() == twin.num_evicted
    assert memory.num_bounced_K.tolist() == twin.num_bounced


@pytest.mark.parametrize(("pop", "max_age"), STRATEGIES)
def test_memory_holds_what_a_plain_list_holds_for_latents_without_ties(pop: str, max_age: int) -> None:
    # Gaussian latents: score gaps of about 1e-2 stand far above float32's 1e-7, so rounding decides no victim
    generator = torch.Generator().manual_seed(5)
    memory = LatentMemory(2, 4, 6, pop=pop, max_age=max_age, max_batch=5, seed=8)
    twin = ListMemory(2, 4, pop=pop, max_age=max_age, max_batch=5, seed=8)
    for step in range(120):
        z_BD = torch.randn(5, 6, generator=generator)
        labels_B = torch.randint(2, (5,), generator=generator)
        memory.push(z_BD, labels_B)
        twin.push(z_BD.tolist(), labels_B.tolist())
        for label in range(2):
            # a row is stored as direction and length: their product is off by rounding
            torch.testing.assert_close(memory.rows(label), torch.tensor(twin.rows(label)).view(-1, 6), msg=f"push {step}")


@pytest.mark.parametrize("pop", POP_SCORES)
def test_one_batch_larger_than_the_memory_leaves_exactly_capacity_rows_of_it(pop: str) -> None:
    z_BD = exact_vectors(40, 16, torch.Generator().manual_seed(2))
    memory = LatentMemory(1, 3, 16, pop=pop, max_batch=40, seed=1)
    twin = ListMemory(1, 3, pop=pop, max_age=0, max_batch=40, seed=1)
    memory.push(z_BD, torch.zeros(40, dtype=torch.int64))
    twin.push(z_BD.tolist(), [0] * 40)
    assert memory.rows(0).tolist() == twin.rows(0)
    assert len(memory.rows(0)) == 3
    assert memory.num_bounced_K.tolist() == [37]


@pytest.mark.parametrize("pop", ["fifo", "max_similarity", "min_similarity", "kcenter"])
def test_among_equal_latents_the_oldest_leaves(pop: str) -> None:
    # the same direction at growing lengths: all cosines are 1, only the length tells rows apart
    memory = LatentMemory(1, 4, 2, pop=pop, max_batch=1)
    for power in range(10):
        memory.push(torch.tensor([[2.0**power, 0.0]]), torch.tensor([0]))
    assert memory.rows(0)[:, 0].tolist() == [64.0, 128.0, 256.0, 512.0]


def test_max_similarity_drops_the_crowd_and_min_similarity_the_outlier() -> None:
    crowd_then_outlier = torch.tensor([[1.0, 0.0], [1.0, 0.25], [0.0, 1.0]])
    labels_B = torch.zeros(3, dtype=torch.int64)
    kept = {}
    for pop in ("max_similarity", "min_similarity"):
        memory = LatentMemory(1, 2, 2, pop=pop, max_batch=3)
        memory.push(crowd_then_outlier, labels_B)
        kept[pop] = memory.rows(0)
    torch.testing.assert_close(kept["max_similarity"], crowd_then_outlier[[0, 2]])  # row 1 leans to both others
    torch.testing.assert_close(kept["min_similarity"], crowd_then_outlier[[0, 1]])


def test_scores_are_recomputed_after_each_pop() -> None:
    # summed cosines 2, 2, 1.6, 1.6, 1: on these alone both twins would go, but once one has gone the other sums to 1
    z_BD = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 3.0, 4.0, 0], [0, 0, 0, 1.0]])
    memory = LatentMemory(1, 3, 4, pop="max_similarity", max_batch=5)
    memory.push(z_BD, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(memory.rows(0), z_BD[[1, 3, 4]])


def test_a_push_to_one_class_leaves_the_others_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    memory = LatentMemory(3, 4, 8, max_batch=6)
    memory.push(torch.randn(6, 8, generator=generator), torch.tensor([0, 2, 0, 2, 2, 0]))
    before = [memory.rows(label).clone() for label in range(3)]
    memory.push(torch.randn(5, 8, generator=generator), torch.ones(5, dtype=torch.int64))
    assert torch.equal(memory.rows(0), before[0])
    assert torch.equal(memory.rows(2), before[2])
    assert len(before[1]) == 0
    assert len(memory.rows(1)) == 4


def test_classes_share_no_influence_on_each_others_victims() -> None:
    # deterministic strategy, three classes at once: each ends as if it had been alone
    generator = torch.Generator().manual_seed(14)
    together = LatentMemory(3, 4, 8, pop="max_similarity", max_batch=6)
    alone = [LatentMemory(1, 4, 8, pop="max_similarity", max_batch=6) for _ in range(3)]
    for _ in range(40):
        z_BD = torch.randn(6, 8, generator=generator)
        labels_B = torch.randint(3, (6,), generator=generator)
        together.push(z_BD, labels_B)
        for label in range(3):
            own_BD = z_BD[labels_B == label]
            alone[label].push(own_BD, torch.zeros(len(own_BD), dtype=torch.int64))
    for label in range(3):
        assert torch.equal(together.rows(label), alone[label].rows(0))


@pytest.mark.parametrize(("pop", "max_age"), [("max_similarity", 0), ("max_similarity", 9), ("min_similarity", 0)])
def test_row_sums_equal_sums_rebuilt_from_the_rows_after_many_pushes(pop: str, max_age: int) -> None:
    generator = torch.Generator().manual_seed(6)
    memory = LatentMemory(3, 7, 12, pop=pop, max_age=max_age, max_batch=8)
    for step in range(300):
        z_BD = torch.randn(8, 12, generator=generator) * (torch.rand(8, 1, generator=generator) > 0.1)  # a tenth are zero
        memory.push(z_BD, torch.randint(3, (8,), generator=generator))
        if step % 20:
            continue
        for label in range(3):
            is_held_S = memory.born_KS[label] >= 0
            # exact: sums of multiples of 2^-24 in float64 never round, so nothing drifts
            gram_SS = memory.gram_KSS[label].double() * is_held_S * is_held_S[:, None]
            assert torch.equal(gram_SS * 2**24, (gram_SS * 2**24).round())
            assert torch.equal(memory.sums_KS[label], gram_SS.sum(dim=0))
            # seven float32 cosines, each off by its own rounding (1e-7) and by half a grid step (3e-8)
            unit_MD = F.normalize(memory.rows(label).double(), dim=1)
            order = memory.born_KS[label][is_held_S].argsort()
            torch.testing.assert_close(memory.sums_KS[label][is_held_S][order], (unit_MD @ unit_MD.T).sum(1), atol=5e-6, rtol=0)


def test_kcenter_knows_the_nearest_other_row_of_each_row() -> None:
    generator = torch.Generator().manual_seed(16)
    memory = LatentMemory(2, 6, 8, pop="kcenter", max_batch=9)
    for _ in range(60):
        memory.push(torch.randn(9, 8, generator=generator), torch.randint(2, (9,), generator=generator))
        for label in range(2):
            is_held_S = memory.born_KS[label] >= 0
            gram_SS = memory.gram_KSS[label]
            assert torch.equal(gram_SS, gram_SS.T)  # to the last bit, or one of a closest pair would seem closer than the other
            assert (gram_SS[~is_held_S] < -1).all()
            unit_MD = F.normalize(memory.unit_KSD[label, is_held_S], dim=1)
            others_MM = (unit_MD @ unit_MD.T).fill_diagonal_(-2)
            torch.testing.assert_close(gram_SS.amax(1)[is_held_S], others_MM.amax(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pop", ["fifo", "random", "reservoir"])
def test_strategies_that_look_at_no_cosine_spend_no_room_on_a_gram_matrix(pop: str) -> None:
    assert LatentMemory(1000, 1024, 1, pop=pop, max_batch=8, device="meta").gram_KSS.numel() == 0


def push_and_look(memory: LatentMemory, device: str) -> None:
    z_BD = torch.randn(9, 8, device=device)
    for labels in ([0, 1, 1, 3, 1, 0, 2, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1]):
        labels_B = torch.tensor(labels)
        memory.cosines(z_BD, labels_B)
        memory.push(z_BD, labels_B)


@pytest.mark.parametrize(("pop", "max_age"), STRATEGIES)
def test_a_step_asks_the_device_for_no_value(pop: str, max_age: int) -> None:
    # tensors on `meta` hold no values: whatever would make the host wait for one raises
    push_and_look(LatentMemory(4, 3, 8, pop=pop, max_age=max_age, max_batch=9, device="meta"), "meta")


@pytest.mark.gpu
@pytest.mark.parametrize(("pop", "max_age"), STRATEGIES)
def test_a_step_never_waits_for_the_gpu(pop: str, max_age: int) -> None:
    memory = LatentMemory(4, 3, 8, pop=pop, max_age=max_age, max_batch=9, device="cuda")
    push_and_look(memory, "cuda")  # first calls may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        push_and_look(memory, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cosines_are_those_of_the_own_class_and_differentiable() -> None:
    generator = torch.Generator().manual_seed(7)
    memory = LatentMemory(3, 4, 10, max_batch=6)
    for _ in range(3):
        memory.push(torch.randn(6, 10, generator=generator), torch.tensor([2, 0, 0, 2, 0, 2]))
    z_BD = torch.randn(5, 10, generator=generator).requires_grad_()
    labels_B = torch.tensor([2, 0, 1, 2, 0])
    cosine_BS, valid_BS = memory.cosines(z_BD, labels_B)
    for place, label in enumerate(labels_B.tolist()):
        expected = F.cosine_similarity(z_BD[place][None], memory.rows(label)) if label != 1 else torch.zeros(0)
        got = cosine_BS[place][valid_BS[place]]
        torch.testing.assert_close(got.sort().values, expected.sort().values)
    cosine_BS[0][valid_BS[0]].sum().backward()
    assert z_BD.grad is not None
    assert (z_BD.grad.abs().sum(dim=1) > 0).tolist() == [True, False, False, False, False]


def test_a_push_between_a_look_and_its_backward_does_not_touch_the_gradient() -> None:
    generator = torch.Generator().manual_seed(17)
    memory = LatentMemory(2, 4, 6, max_batch=5)
    labels_B = torch.tensor([1, 0, 1, 1, 0])
    for _ in range(20):
        memory.push(torch.randn(5, 6, generator=generator), labels_B)
    z_BD = torch.randn(5, 6, generator=generator)
    gradients = []
    for num_pushes in (0, 1):
        leaf_BD = z_BD.clone().requires_grad_()
        cosine_BS, valid_BS = memory.cosines(leaf_BD, labels_B)
        for _ in range(num_pushes):
            memory.push(torch.randn(5, 6, generator=generator), labels_B)
        torch.where(valid_BS, cosine_BS, 0.0).pow(2).sum().backward()
        gradients.append(leaf_BD.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
    cosine_BS, _ = memory.cosines(leaf_BD, labels_B)
    for _ in range(2):
        memory.push(z_BD, labels_B)
    with pytest.raises(AssertionError, match="second push"):
        cosine_BS.sum().backward()


def test_pushed_latents_are_detached_and_later_edits_do_not_reach_the_memory() -> None:
    z_BD = torch.ones(2, 4, requires_grad=True)
    memory = LatentMemory(1, 2, 4, max_batch=2)
    memory.push(z_BD, torch.tensor([0, 0]))
    with torch.no_grad():
        z_BD.mul_(-3)
    assert not memory.rows(0).requires_grad
    assert memory.rows(0).tolist() == [[1.0] * 4] * 2


def included(pop: str, *, num_classes: int, capacity: int, stream: int, push_size: int, seed: int) -> Tensor:
    """Share of the classes that still hold row 1, 2, ... of the stream at its end. D = 1: a row's value is its number."""
    memory = LatentMemory(num_classes, capacity, 1, pop=pop, max_batch=push_size * num_classes, seed=seed)
    labels_B = torch.arange(num_classes).repeat(push_size)
    for first in range(0, stream, push_size):
        numbers = torch.arange(first + 1, first + push_size + 1).repeat_interleave(num_classes)
        memory.push(numbers[:, None].float(), labels_B)
    held = torch.cat([memory.rows(label)[:, 0] for label in range(num_classes)]).round().long()
    return torch.bincount(held, minlength=stream + 1)[1:] / num_classes


@pytest.mark.parametrize("push_size", [1, 4])
def test_reservoir_holds_every_row_of_the_stream_equally_often(push_size: int) -> None:
    num_classes, capacity, stream = 150, 5, 20
    share = included("reservoir", num_classes=num_classes, capacity=capacity, stream=stream, push_size=push_size, seed=0)
    expected = capacity / stream
    sigma = math.sqrt(expected * (1 - expected) / num_classes)
    assert (share - expected).abs().max() < 4 * sigma  # 20 shares, each beyond 4 sigma once in 16,000
    assert (share[:10].mean() - expected).abs() < 4 * sigma / math.sqrt(10)  # neither old nor new rows are favoured


def test_random_forgets_geometrically() -> None:
    num_classes, capacity, stream = 150, 5, 20
    share = included("random", num_classes=num_classes, capacity=capacity, stream=stream, push_size=1, seed=0)
    # a row survives its own and each later pop with N / (N + 1); the first N rows are spared until the memory is full
    num_pops = (stream - torch.arange(stream)).clamp(max=stream - capacity)
    expected = (capacity / (capacity + 1)) ** num_pops
    sigma = (expected * (1 - expected) / num_classes).sqrt()
    assert ((share - expected).abs() < 4 * sigma).all()


def test_seed_alone_decides_what_random_keeps() -> None:
    z_BD = torch.arange(1.0, 41.0)[:, None]
    held = []
    for seed in (1, 1, 2):
        memory = LatentMemory(1, 5, 1, pop="random", max_batch=40, seed=seed)
        memory.push(z_BD, torch.zeros(40, dtype=torch.int64))
        held.append(memory.rows(0).flatten().tolist())
    assert held[0] == held[1] != held[2]


def test_no_row_outlives_max_age_once_the_memory_is_full() -> None:
    generator = torch.Generator().manual_seed(9)
    bounded = LatentMemory(1, 8, 16, pop="max_similarity", max_age=20, max_batch=1)
    unbounded = LatentMemory(1, 8, 16, pop="max_similarity", max_batch=1)
    oldest = 0
    for _ in range(400):
        z_BD = torch.randn(1, 16, generator=generator) + 1
        for memory in (bounded, unbounded):
            memory.push(z_BD, torch.tensor([0]))
        # a stale row goes at the next push, one stale row per push
        oldest = max(oldest, int(bounded.ages(0).max()))
    assert oldest <= 20
    assert int(unbounded.ages(0).max()) > 20


@pytest.mark.parametrize(("pop", "max_age"), STRATEGIES)
def test_a_restored_memory_continues_exactly(pop: str, max_age: int) -> None:
    def fresh(seed: int) -> LatentMemory:
        return LatentMemory(3, 4, 8, pop=pop, max_age=max_age, max_batch=6, seed=seed)

    generator = torch.Generator().manual_seed(12)
    pushes = [(torch.randn(6, 8, generator=generator), torch.randint(3, (6,), generator=generator)) for _ in range(60)]
    memory, restored = fresh(1), fresh(2)
    for z_BD, labels_B in pushes[:30]:
        memory.push(z_BD, labels_B)
    restored.load_state_dict(copy.deepcopy(memory.state_dict()))
    for z_BD, labels_B in pushes[30:]:
        memory.push(z_BD, labels_B)
        restored.push(z_BD, labels_B)
    state, restored_state = memory.state_dict(), restored.state_dict()
    assert state.keys() == restored_state.keys()
    assert [name for name in state if not torch.equal(state[name], restored_state[name])] == []
    assert memory.diagnostics() == restored.diagnostics()


def test_a_restored_memory_shares_no_tensor_with_the_state_it_came_from() -> None:
    memory, restored = LatentMemory(1, 2, 3, max_batch=1), LatentMemory(1, 2, 3, max_batch=1)
    memory.push(torch.ones(1, 3), torch.tensor([0]))
    restored.load_state_dict(memory.state_dict())
    memory.push(-torch.ones(1, 3), torch.tensor([0]))
    assert restored.rows(0).shape == (1, 3)


def test_ages_count_insertions_into_the_own_class() -> None:
    memory = LatentMemory(2, 3, 2, pop="fifo", max_batch=2)
    for _ in range(2):
        memory.push(torch.ones(2, 2), torch.tensor([0, 1]))
    memory.push(torch.ones(2, 2), torch.tensor([1, 1]))
    assert memory.ages(0).tolist() == [1, 0]
    assert memory.ages(1).tolist() == [2, 1, 0]


def test_diagnostics_equal_their_definitions() -> None:
    generator = torch.Generator().manual_seed(13)
    memory = LatentMemory(4, 5, 9, pop="random", max_batch=7, seed=4)
    twin = ListMemory(4, 5, pop="random", max_age=0, max_batch=7, seed=4)
    for _ in range(12):
        z_BD = torch.randn(7, 9, generator=generator)
        labels_B = torch.randint(1, 4, (7,), generator=generator)  # class 0 stays empty and does not count
        memory.push(z_BD, labels_B)
        twin.push(z_BD.tolist(), labels_B.tolist())
    expected: dict[str, list[float]] = {}
    for label in (1, 2, 3):
        rows = sorted(twin.classes[label], key=lambda row: row.born)
        pairs = [cosine(a, b) for a in rows for b in rows if a is not b]
        ages = [twin.num_seen[label] - 1 - row.born for row in rows]
        singular = torch.linalg.svdvals(F.normalize(torch.tensor([row.vector for row in rows], dtype=torch.float64), dim=1))
        shares = [float(s) ** 2 / len(rows) for s in singular]  # squared singular values are the Gram matrix's eigenvalues
        for name, value in {
            "size": len(rows),
            "mean_cosine": sum(pairs) / len(pairs),
            "effective_rank": math.exp(-sum(share * math.log(share) for share in shares)),
            "mean_age": sum(ages) / len(ages),
            "max_age": max(ages),
            "churn": twin.num_evicted[label] / twin.num_seen[label],
            "bounced": twin.num_bounced[label] / twin.num_seen[label],
        }.items():
            expected.setdefault(name, []).append(value)
    # float32 rows against float64: five digits
    assert memory.diagnostics() == pytest.approx({name: sum(values) / 3 for name, values in expected.items()}, rel=1e-5)


def test_effective_rank_runs_from_one_to_the_number_of_rows() -> None:
    labels_B = torch.zeros(4, dtype=torch.int64)
    alike, unlike = LatentMemory(1, 4, 4, max_batch=4), LatentMemory(1, 4, 4, max_batch=4)
    alike.push(torch.ones(4, 4), labels_B)
    unlike.push(torch.eye(4), labels_B)
    assert alike.diagnostics()["effective_rank"] == pytest.approx(1.0)
    assert unlike.diagnostics()["effective_rank"] == pytest.approx(4.0)


def test_diagnostics_of_an_empty_memory_or_of_zero_rows_are_finite() -> None:
    memory = LatentMemory(2, 2, 3, max_batch=2)
    assert memory.diagnostics() == {}
    memory.push(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert all(math.isfinite(value) for value in memory.diagnostics().values())


def test_max_similarity_keeps_the_rare_mode_fifo_its_share_and_min_similarity_loses_it() -> None:
    """method.md section 2, smaller: 16 slots, 64-d, a 5 % rare mode. There: 43.8, 7.8 and 0 %; mean age 5,280 against 32."""
    capacity, dim, num_pushes = 16, 64, 1500
    memories = {
        pop: LatentMemory(1, capacity, dim, pop=pop, max_batch=1) for pop in ("max_similarity", "fifo", "min_similarity")
    }
    generator = torch.Generator().manual_seed(0)
    modes_2D = F.normalize(torch.randn(2, dim, generator=generator), dim=1)
    rare_share = dict.fromkeys(memories, 0.0)
    for step in range(num_pushes):
        is_rare = int(torch.rand((), generator=generator) < 0.05)
        z_BD = modes_2D[is_rare] + 0.1 * torch.randn(1, dim, generator=generator)
        for pop, memory in memories.items():
            memory.push(z_BD, torch.tensor([0]))
            if step >= num_pushes // 2 and step % 50 == 0:  # 15 looks after the start is forgotten
                rows_MD = memory.rows(0)
                rare_share[pop] += float((rows_MD @ modes_2D[1] > rows_MD @ modes_2D[0]).double().mean()) / 15
    assert 0.01 < rare_share["fifo"] < 0.12
    assert rare_share["max_similarity"] > 0.3
    assert rare_share["min_similarity"] == 0
    assert memories["fifo"].diagnostics()["mean_age"] == (capacity - 1) / 2
    assert memories["max_similarity"].diagnostics()["mean_age"] > 10 * capacity  # nearly static
