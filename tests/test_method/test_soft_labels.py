"""Stored labels number by number. Shapes: N images, Y classes, k kept."""

import math

import pytest
import torch

from ddgd_ray.method.soft_labels import divergence, kept, mixed, num_bytes, rest_of, softened, spread

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_softened_is_the_softmax_of_the_textbook(temperature: float) -> None:
    found = softened(LOGITS, temperature)
    for row, logits in zip(found.tolist(), LOGITS.tolist(), strict=True):
        powers = [math.exp(value / temperature) for value in logits]
        assert row == pytest.approx([power / sum(powers) for power in powers], rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_kept_labels_stand_for_the_same_probabilities_where_they_were_kept(k: int, temperature: float) -> None:
    values, classes = kept(LOGITS, k)
    again = spread(values, classes, rest_of(LOGITS, classes, temperature), 5)
    whole, found = softened(LOGITS, temperature), softened(again, temperature)
    torch.testing.assert_close(found.gather(1, classes), whole.gather(1, classes))
    for row in range(6):
        left = [y for y in range(5) if y not in classes[row].tolist()]
        expected = float(whole[row, left].sum()) / max(len(left), 1)
        assert found[row, left].tolist() == pytest.approx([expected] * len(left), rel=1e-4)


def test_all_kept_is_every_logit_to_the_bit() -> None:
    values, classes = kept(LOGITS, 5)
    assert torch.equal(spread(values, classes, rest_of(LOGITS, classes, 1.0), 5), LOGITS)


def test_equal_logits_keep_the_lower_classes() -> None:
    assert kept(torch.zeros(1, 4), 2)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("k", [0, 6])
def test_more_or_fewer_than_there_are_classes_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 5 kept"):
        kept(LOGITS, k)


def test_a_mixed_target_has_its_shares_of_both() -> None:
    own, other = softened(LOGITS, 1.0), softened(LOGITS.flip(0), 1.0)
    found = mixed(own, other, torch.tensor(0.3))
    assert float(found[2, 1]) == pytest.approx(0.3 * float(own[2, 1]) + 0.7 * float(other[2, 1]), rel=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(6))


def test_divergence_is_the_sum_of_p_log_p_over_q() -> None:
    target, logits = softened(LOGITS, 4.0), LOGITS.flip(0)
    found = divergence(logits, target, 4.0)
    for n in range(6):
        powers = [math.exp(value / 4) for value in logits[n].tolist()]
        q = [power / sum(powers) for power in powers]
        slow = sum(p * math.log(p / w) for p, w in zip(target[n].tolist(), q, strict=True))
        assert float(found[n]) == pytest.approx(slow, abs=1e-6)


def test_bytes_count_values_rest_and_class_numbers() -> None:
    assert num_bytes(100, 10, 10, 2) == 100 * 10 * 2
    assert num_bytes(100, 10, 3, 2) == 100 * (3 * 2 + 3 * 1 + 2)
    assert num_bytes(100, 1000, 5, 4) == 100 * (5 * 4 + 5 * 2 + 4)
