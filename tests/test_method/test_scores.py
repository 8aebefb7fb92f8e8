"""Scores by which images are picked, against loops. Shapes: N images, K trainings, E looks, Y classes."""

import math

import pytest
import torch

from ddgd_ray.method.scores import by_score, confidence, el2n, forgetting, is_right


def test_confidence_is_the_probability_of_the_true_class() -> None:
    logits, labels = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 1, 0])
    slow = [math.exp(1) / (math.exp(1) + 1), 0.5, 1 / (1 + math.exp(3))]
    assert confidence(logits, labels).tolist() == pytest.approx(slow)
    assert is_right(logits, labels).tolist() == [True, False, False]


def test_el2n_is_the_mean_distance_to_the_label() -> None:
    generator = torch.Generator().manual_seed(0)
    probability_KNY = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64).softmax(dim=2)
    labels = torch.tensor([0, 4, 2, 2])
    for n, found in enumerate(el2n(probability_KNY, labels).tolist()):
        truth = [1.0 if y == labels[n] else 0.0 for y in range(5)]
        assert found == pytest.approx(sum(math.dist(probability_KNY[k, n].tolist(), truth) for k in range(3)) / 3)


def test_forgetting_counts_falls_from_right_to_wrong_and_the_never_learned_most() -> None:
    looks_KEN = torch.tensor([[[1, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 1]]], dtype=torch.bool)
    assert forgetting(looks_KEN).tolist() == [2.0, 4.0, 1.0, 0.0]
    twice = torch.cat([looks_KEN, torch.ones_like(looks_KEN)])
    assert forgetting(twice).tolist() == [1.0, 2.0, 0.5, 0.0]


@pytest.mark.parametrize(("descending", "expected"), [(True, [1, 3, 0]), (False, [2, 0, 1])])
def test_rows_come_by_score_and_the_lowest_index_on_a_tie(descending: bool, expected: list[int]) -> None:
    assert by_score(torch.tensor([0.5, 0.9, 0.1, 0.9]), 3, descending=descending).tolist() == expected


def test_rows_that_come_first_do_so_in_either_direction() -> None:
    score, first = torch.tensor([0.9, 0.2, 0.6, 0.4]), torch.tensor([False, True, False, True])
    assert by_score(score, 4, descending=True, first_N=first).tolist() == [3, 1, 0, 2]
    assert by_score(score, 4, descending=False, first_N=first).tolist() == [1, 3, 2, 0]


def test_the_smaller_selection_is_a_prefix() -> None:
    score = torch.rand(20, generator=torch.Generator().manual_seed(1))
    assert by_score(score, 5, descending=True).tolist() == by_score(score, 20, descending=True).tolist()[:5]


@pytest.mark.parametrize("num", [0, 5])
def test_more_rows_than_there_are_are_refused(num: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 4"):
        by_score(torch.rand(4), num, descending=True)
