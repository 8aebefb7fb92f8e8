"""Eq. 4-6 against nested loops. Shapes: B batch, S slots, P classes of the batch, D flat latent."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddgd_ray.method.losses import class_weights, gen_loss, per_class, per_sample_extreme, real_loss
from ddgd_ray.method.memory import LatentMemory


class Losses(NamedTuple):
    real: Tensor
    gen: Tensor


def from_cosines(
    cosine_BS: Tensor, valid_BS: Tensor, labels_B: Tensor, *, largest: bool, reduction: str, aggregation: str
) -> Tensor:
    """One of the two losses of a batch, put together as the fine-tuning stage does."""
    extreme_B, has_row_B = per_sample_extreme(cosine_BS, valid_BS, largest=largest)
    classes_P = labels_B.unique()
    value_P, has_value_P = per_class(
        extreme_B, has_row_B, labels_B[None, :] == classes_P[:, None], largest=largest, reduction=reduction
    )
    weights_P = class_weights(len(classes_P), aggregation, cosine_BS)
    return (gen_loss if largest else real_loss)(value_P, has_value_P, weights_P)


def memory_losses(
    z_hat_BD: Tensor, labels_B: Tensor, real: LatentMemory, gen: LatentMemory, *, reduction: str, aggregation: str
) -> Losses:
    how = {"reduction": reduction, "aggregation": aggregation}
    return Losses(
        from_cosines(*real.cosines(z_hat_BD, labels_B), labels_B, largest=False, **how),
        from_cosines(*gen.cosines(z_hat_BD, labels_B), labels_B, largest=True, **how),
    )


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def slow_losses(
    z_hat: list[list[float]],
    labels: list[int],
    real_rows: list[list[list[float]]],
    gen_rows: list[list[list[float]]],
    *,
    reduction: str,
    aggregation: str,
) -> tuple[float, float]:
    """Eq. 4-6 as printed, class by class; the cumulative one as the public code adds its running sum in the loop."""
    classes = sorted(set(labels))
    running = {"real": 0.0, "gen": 0.0}
    total = {"real": 0.0, "gen": 0.0}
    for c in classes:
        own = [z for z, label in zip(z_hat, labels, strict=True) if label == c]
        if real_rows[c]:
            least = [min(cosine(z, row) for row in real_rows[c]) for z in own]
            running["real"] += 1 - (min(least) if reduction == "joint" else sum(least) / len(least))
        if gen_rows[c]:
            most = [max(cosine(z, row) for row in gen_rows[c]) for z in own]
            running["gen"] += max(most) if reduction == "joint" else sum(most) / len(most)
        for name in total:
            total[name] += running[name]
    chosen = running if aggregation == "mean" else total
    return chosen["real"] / len(classes), chosen["gen"] / len(classes)


def filled(num_classes: int, dim: int, generator: torch.Generator) -> LatentMemory:
    """A memory where some classes are empty, some part full, some full."""
    memory = LatentMemory(num_classes, 4, dim, max_batch=12)
    size = int(torch.randint(1, 13, (), generator=generator))
    memory.push(torch.randn(size, dim, generator=generator), torch.randint(num_classes, (size,), generator=generator))
    return memory


@pytest.mark.parametrize("aggregation", ["mean", "cumulative"])
@pytest.mark.parametrize("reduction", ["joint", "per_sample"])
def test_losses_equal_the_nested_loops_of_the_paper(reduction: str, aggregation: str) -> None:
    num_classes, dim = 6, 7
    generator = torch.Generator().manual_seed(21)
    num_empty = 0
    for _ in range(60):
        real, gen = filled(num_classes, dim, generator), filled(num_classes, dim, generator)
        size = int(torch.randint(1, 10, (), generator=generator))
        z_hat_BD = torch.randn(size, dim, generator=generator)
        labels_B = torch.randint(num_classes, (size,), generator=generator)
        got = memory_losses(z_hat_BD, labels_B, real, gen, reduction=reduction, aggregation=aggregation)
        real_rows, gen_rows = ([memory.rows(label).tolist() for label in range(num_classes)] for memory in (real, gen))
        expected = slow_losses(
            z_hat_BD.tolist(), labels_B.tolist(), real_rows, gen_rows, reduction=reduction, aggregation=aggregation
        )
        # up to 21 float32 cosines added
        assert (float(got.real), float(got.gen)) == pytest.approx(expected, abs=1e-5)
        num_empty += sum(not real_rows[label] for label in set(labels_B.tolist()))
    assert num_empty > 20


def test_classes_with_an_empty_memory_count_in_the_divisor() -> None:
    real = LatentMemory(4, 2, 3, max_batch=1)
    real.push(torch.tensor([[1.0, 0, 0]]), torch.tensor([1]))
    z_hat_BD = torch.tensor([[0.0, 1.0, 0]]).repeat(4, 1)  # orthogonal to the one row: 1 - cosine is 1
    empty = LatentMemory(4, 2, 3)
    got = memory_losses(z_hat_BD, torch.tensor([0, 1, 2, 3]), real, empty, reduction="joint", aggregation="mean")
    assert float(got.real) == 0.25
    assert float(got.gen) == 0.0


def test_empty_memories_give_zero_losses_with_zero_finite_gradients() -> None:
    z_hat_BD = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    empty = LatentMemory(3, 2, 3)
    got = memory_losses(z_hat_BD, torch.tensor([0, 1, 1, 2, 0]), empty, empty, reduction="joint", aggregation="mean")
    (got.real + got.gen).backward()
    assert (got.real.item(), got.gen.item()) == (0.0, 0.0)
    assert z_hat_BD.grad is not None
    assert z_hat_BD.grad.tolist() == [[0.0] * 3] * 5


def test_losses_do_not_depend_on_the_order_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(22)
    real, gen = filled(4, 5, generator), filled(4, 5, generator)
    z_hat_BD, labels_B = torch.randn(9, 5, generator=generator), torch.randint(4, (9,), generator=generator)
    order = torch.randperm(9, generator=generator)
    for reduction in ("joint", "per_sample"):
        for aggregation in ("mean", "cumulative"):
            how = {"reduction": reduction, "aggregation": aggregation}
            straight = memory_losses(z_hat_BD, labels_B, real, gen, **how)
            shuffled = memory_losses(z_hat_BD[order], labels_B[order], real, gen, **how)
            torch.testing.assert_close(straight, shuffled)


def test_cumulative_counts_the_class_of_lowest_label_most_often() -> None:
    like = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(class_weights(4, "cumulative", like) * 4, torch.tensor([4.0, 3, 2, 1], dtype=torch.float64))
    assert (class_weights(4, "mean", like) * 4).tolist() == [1, 1, 1, 1]


def test_cumulative_multiplies_by_3_35_on_average_with_8_samples_of_10_classes() -> None:
    # P(n different classes among 8 draws of 10) = C(10, n) * onto(8, n) / 10^8, by inclusion and exclusion
    def onto(draws: int, n: int) -> int:
        return sum((-1) ** k * math.comb(n, k) * (n - k) ** draws for k in range(n + 1))

    chance = {n: math.comb(10, n) * onto(8, n) / 10**8 for n in range(1, 9)}
    like = torch.zeros((), dtype=torch.float64)
    multiplier = {n: float((class_weights(n, "cumulative", like) / class_weights(n, "mean", like)).mean()) for n in chance}
    assert sum(chance.values()) == pytest.approx(1)
    assert sum(chance[n] * multiplier[n] for n in chance) == pytest.approx(3.35, abs=0.005)  # method.md prints two decimals


@pytest.mark.parametrize("largest", [False, True])
def test_joint_gradient_flows_to_one_sample_of_each_class_along_one_row(largest: bool) -> None:
    generator = torch.Generator().manual_seed(23)
    memory = LatentMemory(3, 4, 6, max_batch=12)
    memory.push(torch.randn(12, 6, generator=generator), torch.arange(12) % 3)
    z_hat_BD = torch.randn(9, 6, generator=generator).requires_grad_()
    labels_B = torch.tensor([0, 2, 1, 0, 2, 1, 2, 2, 0])
    loss = from_cosines(*memory.cosines(z_hat_BD, labels_B), labels_B, largest=largest, reduction="joint", aggregation="mean")
    loss.backward()

    expected_BD = torch.zeros(9, 6)
    for label in range(3):
        own = (labels_B == label).nonzero().flatten()
        rows_MD = memory.rows(label)
        pairs = F.normalize(z_hat_BD[own].detach(), dim=1) @ F.normalize(rows_MD, dim=1).T
        flat = int(pairs.argmax() if largest else pairs.argmin())
        sample, row = own[flat // len(rows_MD)], rows_MD[flat % len(rows_MD)]
        z = z_hat_BD[sample].detach().requires_grad_()
        (F.cosine_similarity(z, row, dim=0) * (1 if largest else -1) / 3).backward()
        expected_BD[sample] = z.grad
    torch.testing.assert_close(z_hat_BD.grad, expected_BD)
    assert int((z_hat_BD.grad.abs().sum(dim=1) > 0).sum()) == 3


def test_joint_gradient_goes_to_one_pair_even_when_two_samples_tie() -> None:
    memory = LatentMemory(1, 2, 3, max_batch=1)
    memory.push(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]))
    z_hat_BD = torch.tensor([[1.0, 2.0, 0], [1.0, 2.0, 0]], requires_grad=True)
    labels_B = torch.tensor([0, 0])
    from_cosines(*memory.cosines(z_hat_BD, labels_B), labels_B, largest=True, reduction="joint", aggregation="mean").backward()
    assert int((z_hat_BD.grad.abs().sum(dim=1) > 0).sum()) == 1


def test_per_sample_gradient_reaches_every_sample_whose_memory_holds_a_row() -> None:
    generator = torch.Generator().manual_seed(24)
    memory = LatentMemory(2, 4, 5, max_batch=4)
    memory.push(torch.randn(4, 5, generator=generator), torch.zeros(4, dtype=torch.int64))
    z_hat_BD = torch.randn(4, 5, generator=generator).requires_grad_()
    labels_B = torch.tensor([0, 1, 0, 0])
    loss = from_cosines(*memory.cosines(z_hat_BD, labels_B), labels_B, largest=True, reduction="per_sample", aggregation="mean")
    loss.backward()
    assert (z_hat_BD.grad.abs().sum(dim=1) > 0).tolist() == [True, False, True, True]


@pytest.mark.parametrize("aggregation", ["mean", "cumulative"])
@pytest.mark.parametrize("reduction", ["joint", "per_sample"])
@pytest.mark.parametrize("largest", [False, True])
def test_gradients_equal_finite_differences(largest: bool, reduction: str, aggregation: str) -> None:
    generator = torch.Generator().manual_seed(25)
    rows_SD = F.normalize(torch.randn(6, 4, dtype=torch.float64, generator=generator), dim=1)
    labels_B = torch.tensor([1, 0, 2, 1, 0])
    slot_label_S = torch.tensor([0, 1, 0, 1, 1, 0])  # class 2 has no row

    def loss(z_BD: Tensor) -> Tensor:
        return from_cosines(
            F.normalize(z_BD, dim=1) @ rows_SD.T,
            labels_B[:, None] == slot_label_S[None, :],
            labels_B,
            largest=largest,
            reduction=reduction,
            aggregation=aggregation,
        )

    z_BD = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(loss, (z_BD,))


def test_a_step_down_the_losses_raises_the_least_real_and_lowers_the_most_generated_cosine() -> None:
    generator = torch.Generator().manual_seed(26)
    real, gen = (LatentMemory(1, 8, 16, max_batch=8) for _ in range(2))
    for memory in (real, gen):
        memory.push(torch.randn(8, 16, generator=generator), torch.zeros(8, dtype=torch.int64))
    z_hat_BD = torch.randn(1, 16, generator=generator)
    labels_B = torch.tensor([0])
    for which, memory, better in (("real", real, max), ("gen", gen, min)):
        z = z_hat_BD.clone().requires_grad_()
        getattr(memory_losses(z, labels_B, real, gen, reduction="joint", aggregation="mean"), which).backward()
        stepped = (z - 0.01 * z.grad).detach()
        extreme = [
            (pair.min() if which == "real" else pair.max()).item()
            for pair in (F.cosine_similarity(each, memory.rows(0)) for each in (z_hat_BD, stepped))
        ]
        assert extreme[0] != extreme[1]
        assert better(extreme) == extreme[1]


def test_latents_without_rows_get_zero_and_say_so() -> None:
    cosine_BS = torch.tensor([[0.5, -0.5], [0.9, 0.1], [0.3, 0.2]])
    valid_BS = torch.tensor([[True, True], [False, False], [False, True]])
    for largest, expected in ((True, [0.5, 0.0, 0.2]), (False, [-0.5, 0.0, 0.2])):
        extreme_B, has_row_B = per_sample_extreme(cosine_BS, valid_BS, largest=largest)
        assert extreme_B.tolist() == pytest.approx(expected)
        assert has_row_B.tolist() == [True, False, True]


def test_a_sample_that_takes_no_part_changes_neither_extreme_nor_mean_of_its_class() -> None:
    # the stage clears a sample's `valid` outside the range of t; its class is then decided by the others
    cosine_BS = torch.tensor([[0.1], [0.4], [0.9]])
    valid_BS = torch.tensor([[True], [True], [False]])
    labels_B = torch.zeros(3, dtype=torch.int64)
    for reduction, expected in (("joint", 0.4), ("per_sample", 0.25)):
        got = from_cosines(cosine_BS, valid_BS, labels_B, largest=True, reduction=reduction, aggregation="mean")
        assert float(got) == pytest.approx(expected)


def test_a_class_without_a_value_adds_nothing_whatever_stands_in_its_place() -> None:
    value_P, has_value_P = torch.tensor([0.25, 9.0]), torch.tensor([True, False])
    weights_P = class_weights(2, "mean", value_P)
    assert real_loss(value_P, has_value_P, weights_P).item() == 0.375
    assert gen_loss(value_P, has_value_P, weights_P).item() == 0.125
