"""The parts of a method: one arm for the whole, one that lacks each; keys are those of the same settings asked otherwise."""

from collections.abc import Callable
from typing import Any

import pytest

from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.errors import SpecErrors
from ddgd_ray.plan.plan import Trial
from ddgd_ray.run.identity import changes, identity_of
from ddgd_ray.spec.sweep import Sweep

Tiny = Callable[..., Sweep]
PARTS: dict[str, Any] = {
    "vary": {},
    "parts": {
        "L.gen": {"finetune.lambda_g": 0.0},
        "memories": {"finetune.memory_real.pop": "fifo", "finetune.memory_gen.pop": "fifo"},
    },
    "controls": (),
}


def by_name(trials: list[Trial]) -> dict[str, Trial]:
    return {trial.name: trial for trial in trials}


def test_parts_give_one_arm_for_the_whole_and_one_that_lacks_each(tiny: Tiny) -> None:
    trials = planned_trials(tiny(PARTS))
    assert list(dict.fromkeys(trial.arm for trial in trials)) == ["full", "no-L.gen", "no-memories"]
    assert len(trials) == 3 * 2


def test_the_whole_and_the_part_have_the_keys_of_the_same_settings_in_a_grid(tiny: Tiny) -> None:
    parts = by_name(planned_trials(tiny(PARTS)))
    pops = ("max_similarity", "fifo")
    grid = {"vary": {"finetune.memory_real.pop": pops, "finetune.memory_gen.pop": pops}, "controls": ()}
    cells = by_name(planned_trials(tiny(grid)))
    assert [call.key for call in parts["full-s1"].calls()] == [call.key for call in cells["max_max-s1"].calls()]
    assert [call.key for call in parts["no-memories-s1"].calls()] == [call.key for call in cells["fifo_fifo-s1"].calls()]
    assert parts["no-L.gen-s0"].build[0].spec.lambda_g == 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": {"x": {"finetune.lambda_gen": 0.0}}}, "lambda_gen"),
        ({"parts": {"x": {}}}, "x says nothing"),
        ({"parts": {"a/b": {"finetune.lambda_g": 0.0}}}, "cannot name a part"),
        ({"parts": {"x": {"finetune.seed": 1}}}, "the sweep itself sets finetune.seed"),
        ({"parts": {"x": {"finetune.memory_real.pop": "max_similarity"}}}, "x switches nothing off"),
        ({"vary": {"finetune.lambda_g": (0.0, 0.1)}}, "give one of `vary`"),
    ],
)
def test_parts_that_cannot_be_meant_are_refused(tiny: Tiny, given: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecErrors, match="(?s).*") as caught:
        tiny({**PARTS, **given})
    assert said in str(caught.value)


def test_one_more_part_keeps_what_a_run_has_and_another_meaning_does_not(tiny: Tiny) -> None:
    before = identity_of(tiny(PARTS))
    more = {**PARTS["parts"], "vb": {"finetune.vb": False}}
    other = {**PARTS["parts"], "memories": {"finetune.memory_real.pop": "fifo"}}
    assert all(change.keeps for change in changes(before, identity_of(tiny({**PARTS, "parts": more}))))
    assert not all(change.keeps for change in changes(before, identity_of(tiny({**PARTS, "parts": other}))))


def test_claims_enter_no_key_and_may_change_at_any_time(tiny: Tiny) -> None:
    plain, claimed = tiny({}), tiny({"claims": {"smallest_effect": 0.01}})
    assert [call.key for trial in planned_trials(plain) for call in trial.calls()] == [
        call.key for trial in planned_trials(claimed) for call in trial.calls()
    ]
    assert changes(identity_of(plain), identity_of(claimed)) == []


@pytest.mark.parametrize("claims", [{}, {"smallest_effect": 0}, {"smallest_effect": 0.01, "confidence": 1.0}])
def test_claims_need_a_size_that_matters_and_a_confidence_below_one(tiny: Tiny, claims: dict[str, Any]) -> None:
    with pytest.raises(SpecErrors, match="claims"):
        tiny({"claims": claims})


def test_a_race_for_verdicts_needs_claims_and_refuses_what_it_would_ignore(tiny: Tiny) -> None:
    race = {"seeds.distill": tuple(range(6)), "race": {"goal": "verdicts", "min_effect": 0.01}}
    with pytest.raises(SpecErrors) as caught:
        tiny({"images.validation_per_class": 20, **race})
    assert "`claims` is missing" in str(caught.value)
    assert "race.min_effect is for the goal `best`" in str(caught.value)
