"""DD-Ranking: the formulas of arXiv 2505.13300, per seed, and nothing where the run lacks a control."""

import math
from collections.abc import Callable

import pytest

from ddgd_ray.report.dd_ranking import augmentation_robust_score, dd_ranking_table, label_robust_score, scores
from ddgd_ray.run.results import Row

Rows = Callable[..., Row]


def run(row: Rows, *, protocol: str = "quick", gain: float = 0.1) -> list[Row]:
    """Two seeds of one arm, random images `gain` below it, and one run on all data at 0.9."""
    rows = [row("full_data", is_control=True, ipc=0, protocol=protocol, top1_last=0.9)]
    for seed in range(2):
        accuracy = 0.6 + 0.02 * seed
        rows.append(row("arm", seed, protocol=protocol, top1_last=accuracy))
        rows.append(row("random_real", seed, is_control=True, protocol=protocol, top1_last=accuracy - gain))
    return rows


def test_scores_run_from_zero_to_one() -> None:
    assert label_robust_score(-1, 1) == pytest.approx(0)
    assert label_robust_score(1, -1) == pytest.approx(1)
    assert augmentation_robust_score(0, 0) == pytest.approx(1 / (math.e + 1))  # (1 - 1/e) / (e - 1/e)


def test_lrs_is_the_papers_formula() -> None:
    # alpha = (0.18 - 0.1763) / 2, from accuracies 0.8789 (all), 0.7026 (set), 0.5226 (random)
    alpha = 0.5 * 0.18 - 0.5 * 0.1763
    expected = (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
    assert label_robust_score(0.7026 - 0.5226, 0.8789 - 0.7026) == pytest.approx(expected)


def test_recovery_and_improvement_are_taken_seed_by_seed(row: Rows) -> None:
    found = scores(run(row), [], "top1_last")["arm"]
    assert found.hlr is not None
    assert found.ior is not None
    assert (found.hlr.mean, found.hlr.n) == (pytest.approx(0.29), 2)
    assert (found.ior.mean, found.ior.std) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))
    assert found.ars is None


def test_ars_joins_the_protocol_without_augmentation(row: Rows) -> None:
    found = scores(run(row), run(row, protocol="quick-noaug", gain=0.2), "top1_last")["arm"]
    assert found.ars is not None
    assert found.ars.mean == pytest.approx(augmentation_robust_score(0.1, 0.2))


def test_controls_get_no_scores(row: Rows) -> None:
    assert list(scores(run(row), [], "top1_last")) == ["arm"]


def test_without_random_images_or_a_ceiling_there_is_no_table(row: Rows) -> None:
    rows = run(row)
    assert dd_ranking_table(rows, "quick", 20) is not None
    assert dd_ranking_table([row for row in rows if row.arm != "random_real"], "quick", 20) is None
    assert dd_ranking_table([row for row in rows if row.arm != "full_data"], "quick", 20) is None


def test_ars_alone_needs_no_ceiling(row: Rows) -> None:
    rows = [*run(row), *run(row, protocol="quick-noaug")]
    table = dd_ranking_table([row for row in rows if row.arm != "full_data"], "quick", 20)
    assert table is not None
    assert [cell.text for cell in table.rows[0][1]][::2] == ["-", "-"]  # HLR and LRS
    assert table.rows[0][1][3].text.startswith("0.3")
