"""Optuna proposes; results are told back; timing decides nothing."""

import random
from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.engine.optuna_search import OptunaSearch
from ddgd_ray.engine.search import Proposal, Score
from ddgd_ray.spec.sweep import Sweep, read_sweep

SPACE = """\
finetune.memory_real.pop: {type: choice, values: [max_similarity, fifo]}
finetune.memory_real.size: {type: int, low: 8, high: 256, log: true}
finetune.lambda_g: {type: float, low: 1e-4, high: 1e-1, log: true}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "sweep.yaml").write_text(
        "name: s\npreset: digits\nsearch: {space: space.yaml, trials: 12, parallel: 3, seed: 4}\ncontrols: []\n"
    )
    return read_sweep(tmp_path / "sweep.yaml", {})


def objective(params: Any) -> float | None:
    """None (failed) for one corner, otherwise best at a large memory."""
    if params["finetune.memory_real.pop"] == "fifo" and params["finetune.memory_real.size"] < 12:
        return None
    return float(params["finetune.memory_real.size"]) / 256


def run(search: OptunaSearch, order: random.Random) -> list[Proposal]:
    """Answers come in a random order."""
    proposed: list[Proposal] = []
    out: list[Proposal] = []
    while not search.exhausted or out:
        while (proposal := search.ask()) is not None:
            proposed.append(proposal)
            out.append(proposal)
        answered = out.pop(order.randrange(len(out)))
        value = objective(answered.params)
        search.tell(answered, None if value is None else Score((value,)))
    return proposed


def test_proposals_do_not_depend_on_the_order_of_answers(sweep: Sweep) -> None:
    runs = [run(OptunaSearch(sweep), random.Random(seed)) for seed in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 12


def test_every_proposal_lies_in_the_space_and_makes_a_valid_preset(sweep: Sweep) -> None:
    for proposal in run(OptunaSearch(sweep), random.Random(0)):
        finetune = sweep.preset_with(proposal.params).finetune
        assert 8 <= finetune.memory_real.size <= 256
        assert 1e-4 <= finetune.lambda_g <= 1e-1


def test_a_batch_waits_for_the_one_before(sweep: Sweep) -> None:
    search = OptunaSearch(sweep)
    batch = [search.ask() for _ in range(3)]
    assert None not in batch
    assert search.ask() is None
    for proposal in batch:
        assert proposal is not None
        search.tell(proposal, Score((0.5,)))
    assert search.ask() is not None


def test_batches_do_not_repeat_the_first_points(sweep: Sweep) -> None:
    proposed = run(OptunaSearch(sweep), random.Random(0))
    assert len({tuple(proposal.params.items()) for proposal in proposed}) == len(proposed)


def test_another_seed_proposes_other_points(sweep: Sweep, tmp_path: Path) -> None:
    other = read_sweep(tmp_path / "sweep.yaml", {"search.seed": 5})
    assert run(OptunaSearch(sweep), random.Random(0)) != run(OptunaSearch(other), random.Random(0))


def test_what_went_out_at_a_rung_is_no_complete_trial_and_guides_the_search_all_the_same(sweep: Sweep) -> None:
    """Values of a cheaper setting may be higher than all of the full one: they must not pass for the best."""
    searches = [OptunaSearch(sweep) for _ in range(3)]
    proposals: list[list[Proposal]] = []
    for search, rung in zip(searches, (None, 0, 1), strict=True):
        made: list[Proposal] = []
        while (proposal := search.ask()) is not None:
            made.append(proposal)
            went_out = rung is not None and len(made) % 3 != 1
            value = float(proposal.params["finetune.memory_real.size"])
            search.tell(proposal, Score((1000 - value,), rung) if went_out else Score((value,)))
        proposals.append(made)
    assert all(len(made) == 12 for made in proposals)
    assert proposals[0][:3] == proposals[1][:3]
    assert proposals[0] != proposals[1]
