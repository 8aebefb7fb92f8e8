"""Optuna proposes; results are told back; timing decides nothing."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from ddgd_ray.run.objective import Worth
from ddgd_ray.search.ask_tell import Known, Proposal, Proposals
from ddgd_ray.search.optuna import OptunaSearch
from ddgd_ray.spec.points import identity, why_not
from ddgd_ray.spec.sweep import Sweep, read_sweep

SPACE = """\
finetune.memory_real.pop: {type: choice, values: [max_similarity, fifo]}
finetune.memory_real.size: {type: int, low: 8, high: 256, log: true}
finetune.lambda_g: {type: float, low: 1e-4, high: 1e-1, log: true}
"""
RANGES = "finetune.memory_real.size: {type: int, low: 8, high: 256}\nfinetune.lambda_g: {type: float, low: 0, high: 1}\n"
CONDITIONAL = SPACE + (
    "finetune.memory_real.max_age: {type: int, low: 10, high: 100, when: {finetune.memory_real.pop: [max_similarity]}}\n"
)
FINITE = (
    "finetune.memory_real.pop: {type: choice, values: [max_similarity, fifo]}\n"
    "finetune.memory_real.size: {type: int, low: 8, high: 10}\n"
    "finetune.memory_real.max_age: {type: int, low: 0, high: 20, step: 10, when: {finetune.memory_real.pop: [fifo]}}\n"
)  # 3 of max_similarity, 9 of fifo
POP, SIZE, LAMBDA = "finetune.memory_real.pop", "finetune.memory_real.size", "finetune.lambda_g"
State = optuna.trial.TrialState
Values = Callable[[Any], Worth | None]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Sweep]:
    """A sweep that searches a space, with overrides by dotted path."""

    def read(space: str = SPACE, **search: Any) -> Sweep:
        (tmp_path / "space.yaml").write_text(space)
        (tmp_path / "sweep.yaml").write_text(
            "name: s\npreset: digits\nsearch: {space: space.yaml, trials: 12, parallel: 3, seed: 4}\ncontrols: []\n"
        )
        objective = search.pop("objective", {})
        overrides = {f"search.{name}": value for name, value in search.items()}
        return read_sweep(
            tmp_path / "sweep.yaml", overrides | {f"objective.{name}": value for name, value in objective.items()}
        )

    return read


@pytest.fixture
def sweep(make: Callable[..., Sweep]) -> Sweep:
    return make()


def objective(params: Any) -> Worth | None:
    """None (failed) for one corner, otherwise best at a large memory."""
    if params.get(POP) == "fifo" and params[SIZE] < 12:
        return None
    return Worth((float(params[SIZE]) / 256,))


def run(search: OptunaSearch, order: random.Random, values: Values = objective, most: int = 10**6) -> list[Proposal]:
    """Answers come in a random order; after `most` of them the search is left as it is."""
    proposed: list[Proposal] = []
    out: list[Proposal] = []
    while (not search.exhausted or out) and most:
        while (proposal := search.ask()) is not None:
            proposed.append(proposal)
            out.append(proposal)
        answered = out.pop(order.randrange(len(out)))
        search.tell(answered, values(answered.params))
        most -= 1
    return proposed


def trials_of(search: OptunaSearch) -> list[Any]:
    """Everything of the study that a sampler looks at but for a sampler's own notes."""
    return [(t.params, t.distributions, t.state, t.values, t.constraints) for t in search.study.get_trials(deepcopy=False)]


def assert_no_zombie(search: OptunaSearch) -> None:
    assert {trial.state for trial in search.study.get_trials(deepcopy=False)} <= {State.COMPLETE, State.FAIL}


def test_proposals_do_not_depend_on_the_order_of_answers(sweep: Sweep) -> None:
    runs = [run(OptunaSearch(sweep), random.Random(seed)) for seed in range(3)]
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 12


def test_every_proposal_makes_a_valid_preset(sweep: Sweep) -> None:
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
        search.tell(proposal, Worth((0.5,)))
    assert search.ask() is not None


def test_no_configuration_is_proposed_twice(sweep: Sweep) -> None:
    proposed = run(OptunaSearch(sweep), random.Random(0))
    assert len({identity(proposal.params) for proposal in proposed}) == len(proposed)


def test_another_seed_proposes_other_points(sweep: Sweep, make: Callable[..., Sweep]) -> None:
    other = make(seed=5)
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
            search.tell(proposal, Worth((1000 - value,), rung=rung) if went_out else Worth((value,)))
        proposals.append(made)
    assert all(len(made) == 12 for made in proposals)
    assert proposals[0][:3] == proposals[1][:3]
    assert proposals[0] != proposals[1]


@pytest.mark.parametrize(
    ("algorithm", "space"),
    [
        ("tpe", CONDITIONAL),
        ("random", CONDITIONAL),
        ("grid", FINITE),
        ("qmc", RANGES),
        ("cmaes", CONDITIONAL),
        ("gp", CONDITIONAL),
        ("nsga2", CONDITIONAL),
        ("nsga3", CONDITIONAL),
    ],
)
def test_every_algorithm_stays_inside_the_space_ends_and_can_be_continued(
    algorithm: str, space: str, make: Callable[..., Sweep], tmp_path: Path
) -> None:
    trials = 7 if algorithm == "gp" else 12  # a second each
    sweep = make(space, algorithm=algorithm, startup=4, population=4, trials=trials)
    calm = OptunaSearch(sweep)
    proposed = run(calm, random.Random(0))
    assert len(proposed) == trials
    assert all(why_not(proposal.params, sweep.space) == "" for proposal in proposed)
    assert_no_zombie(calm)

    first = run(OptunaSearch(sweep, Proposals(tmp_path / "p.jsonl")), random.Random(1), most=4)
    assert len(first) < trials
    rebuilt = OptunaSearch(sweep, Proposals(tmp_path / "p.jsonl"))
    assert run(rebuilt, random.Random(2)) == proposed
    assert trials_of(rebuilt) == trials_of(calm)


def test_a_torn_line_of_the_file_is_proposed_again(sweep: Sweep, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    proposed = run(OptunaSearch(sweep, Proposals(file)), random.Random(0))
    whole = file.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 40, len(whole) // 2, 3):
        file.write_bytes(whole[:cut])
        assert run(OptunaSearch(sweep, Proposals(file)), random.Random(1)) == proposed
        assert file.read_bytes() == whole


def test_more_trials_continue_a_search(make: Callable[..., Sweep], tmp_path: Path) -> None:
    few = run(OptunaSearch(make(trials=7), Proposals(tmp_path / "p.jsonl")), random.Random(0))
    more = run(OptunaSearch(make(trials=12), Proposals(tmp_path / "p.jsonl")), random.Random(0))
    assert more[:7] == few
    assert more == run(OptunaSearch(make(trials=12)), random.Random(3))


def test_what_was_proposed_stays_when_the_settings_of_the_search_change(make: Callable[..., Sweep], tmp_path: Path) -> None:
    before = run(OptunaSearch(make(trials=6), Proposals(tmp_path / "p.jsonl")), random.Random(0))
    changed = make(trials=10, seed=9, parallel=2, algorithm="nsga2")
    after = OptunaSearch(changed, Proposals(tmp_path / "p.jsonl"))
    assert run(after, random.Random(0))[:6] == before
    assert_no_zombie(after)


def test_fixed_points_come_first(make: Callable[..., Sweep]) -> None:
    first = [{POP: "fifo", SIZE: 200, LAMBDA: 0.01}, {POP: "max_similarity", SIZE: 8, LAMBDA: 0.1}]
    search = OptunaSearch(make(first=tuple(first)))
    proposed = run(search, random.Random(0))
    assert [dict(proposal.params) for proposal in proposed[:2]] == first
    assert [trial.params for trial in search.study.trials[:2]] == first
    assert_no_zombie(search)


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
def test_fixed_points_that_are_added_later_come_next(algorithm: str, make: Callable[..., Sweep], tmp_path: Path) -> None:
    def search(trials: int, *first: dict[str, Any]) -> OptunaSearch:
        sweep = make(algorithm=algorithm, population=4, trials=trials, first=first)
        return OptunaSearch(sweep, Proposals(tmp_path / "p.jsonl"))

    before = [dict(one.params) for one in run(search(6), random.Random(0))]
    added = {POP: "fifo", SIZE: 200, LAMBDA: 0.01}
    after = [dict(one.params) for one in run(search(9, added), random.Random(0))]
    assert after[:6] == before
    assert after[6] == added
    assert added not in after[7:]


def test_a_whole_number_is_the_same_point_of_a_float_range(make: Callable[..., Sweep]) -> None:
    space = "finetune.lambda_g: {type: float, low: 0, high: 1, step: 0.5}\n"
    search = OptunaSearch(make(space, algorithm="grid", first=({LAMBDA: 0},)))
    proposed = run(search, random.Random(0), lambda params: Worth((params[LAMBDA],)))
    assert [one.params[LAMBDA] for one in proposed] == [0, 0.5, 1.0]


@pytest.mark.parametrize("algorithm", ["tpe", "random", "nsga2", "grid"])
@pytest.mark.parametrize("mode", ["deterministic", "asynchronous"])
def test_a_finite_space_is_used_up_once_and_the_search_says_so(algorithm: str, mode: str, make: Callable[..., Sweep]) -> None:
    search = OptunaSearch(make(FINITE, algorithm=algorithm, mode=mode, trials=50, population=4))
    proposed = run(search, random.Random(0))
    assert len({identity(proposal.params) for proposal in proposed}) == len(proposed) == 12
    assert search.exhausted
    assert "12 configurations" in search.note
    assert_no_zombie(search)


def test_a_repeated_proposal_is_answered_from_the_first_and_replaced(make: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep = make(FINITE, trials=12)
    calm = OptunaSearch(sweep, Proposals(tmp_path / "p.jsonl"))
    run(calm, random.Random(0))
    assert len(calm.study.trials) > 12, "the sampler repeated nothing: this test shows nothing"
    values: dict[str, Any] = {}
    for trial in calm.study.trials:
        assert values.setdefault(identity(trial.params), trial.values) == trial.values
    again = OptunaSearch(sweep, Proposals(tmp_path / "p.jsonl"))
    run(again, random.Random(1))
    assert trials_of(again) == trials_of(calm)


@pytest.mark.parametrize("mode", ["deterministic", "asynchronous"])
@pytest.mark.parametrize("bad", [None, Worth((math.nan,)), Worth((math.inf,)), Worth((0.5,), (math.nan,))])
def test_failed_and_non_finite_results_are_failures_and_never_best(
    bad: Worth | None, mode: str, make: Callable[..., Sweep]
) -> None:
    search = OptunaSearch(make(mode=mode))
    run(search, random.Random(0), lambda params: bad if params[SIZE] > 40 else Worth((params[SIZE] / 256,)))
    assert_no_zombie(search)
    for trial in search.study.trials:
        assert (trial.state is State.FAIL) == (trial.params[SIZE] > 40)
    assert search.study.best_value <= 40 / 256


@pytest.mark.parametrize(("algorithm", "trials", "gain"), [("tpe", 60, 0.3), ("nsga2", 200, 0.15)])
def test_samplers_keep_away_from_what_breaks_a_constraint(
    algorithm: str, trials: int, gain: float, make: Callable[..., Sweep]
) -> None:
    """The best size is the largest, and sizes above 100 are not allowed: without the bound the search would go there."""

    def share_allowed(excess: Callable[[Any], tuple[float, ...]]) -> float:
        objectives = {"constraints": ({"metric": "seconds", "max": 100.0},)}
        sweep = make(RANGES, algorithm=algorithm, trials=trials, startup=10, population=10, objective=objectives)
        late = run(OptunaSearch(sweep), random.Random(0), lambda p: Worth((p[SIZE] / 256,), excess(p)))[-30:]
        return sum(proposal.params[SIZE] <= 100 for proposal in late) / len(late)

    assert share_allowed(lambda params: (params[SIZE] - 100.0,)) > share_allowed(lambda params: ()) + gain


def test_several_objectives_end_in_a_front(make: Callable[..., Sweep]) -> None:
    also = ({"metric": "seconds", "direction": "minimize"},)
    search = OptunaSearch(make(algorithm="nsga2", population=6, trials=20, objective={"also": also}))
    run(search, random.Random(0), lambda params: Worth((params[SIZE] / 256, float(params[SIZE]))))
    front = {identity(trial.params) for trial in search.study.best_trials}
    assert len(front) == 20  # size alone decides both, one the other's reverse
    assert_no_zombie(search)


def test_an_asynchronous_search_never_waits_while_fewer_than_parallel_are_out(make: Callable[..., Sweep]) -> None:
    search, rng = OptunaSearch(make(mode="asynchronous", trials=20)), random.Random(0)
    out: list[Proposal] = []
    while not search.exhausted or out:
        while (proposal := search.ask()) is not None:
            out.append(proposal)
        assert len(out) == 3 or search.exhausted
        answered = out.pop(rng.randrange(len(out)))
        search.tell(answered, objective(answered.params))
    assert_no_zombie(search)


def test_an_asynchronous_search_goes_on_with_what_it_proposed(make: Callable[..., Sweep], tmp_path: Path) -> None:
    sweep, file = make(mode="asynchronous"), tmp_path / "p.jsonl"
    before = run(OptunaSearch(sweep, Proposals(file)), random.Random(0), most=6)
    search = OptunaSearch(sweep, Proposals(file))
    after = run(search, random.Random(1))
    assert after[: len(before)] == before
    assert len(after) == 12
    assert_no_zombie(search)


def test_a_search_learns_from_known_configurations(make: Callable[..., Sweep]) -> None:
    """With ten known results, tpe needs no random start and goes where they are good."""
    known = [
        Known("other", f"arm{size}", {SIZE: size, LAMBDA: size / 256}, Worth((size / 256,))) for size in range(16, 256, 12)
    ]
    search = OptunaSearch(make(RANGES, trials=6), known=known)
    sizes = [proposal.params[SIZE] for proposal in run(search, random.Random(0))]
    cold = [proposal.params[SIZE] for proposal in run(OptunaSearch(make(RANGES, trials=6)), random.Random(0))]
    assert sum(sizes) > sum(cold)
    assert len(search.study.trials) == len(known) + 6
