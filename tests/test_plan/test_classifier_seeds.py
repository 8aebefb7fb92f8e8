"""Seeds of classifiers: drawn from both seeds, the same for every arm, and never crossed with the distillation seeds."""

from collections.abc import Callable, Iterable
from typing import Any

from ddgd_ray.conduct.sweep import planned_trials
from ddgd_ray.plan.plan import Trial, classifier_seed
from ddgd_ray.run.folder import TrialProgress
from ddgd_ray.spec.evaluation import EvaluateSpec
from ddgd_ray.spec.sweep import Sweep

TWO = {"seeds.distill": (0, 1, 2), "seeds.evaluate": (0, 1), "controls": ("random_real", "plain")}


def seeds_of(trials: Iterable[Trial]) -> dict[tuple[int, int], set[int]]:
    """{(distillation seed, evaluator's seed): seeds that classifiers at this place are trained with}."""
    found: dict[tuple[int, int], set[int]] = {}
    for trial in trials:
        for item in trial.evaluators:
            assert isinstance(item.call.spec, EvaluateSpec)
            found.setdefault((trial.seed, item.seed), set()).add(item.call.spec.seed)
    return found


def test_no_two_distillation_seeds_share_a_classifiers_luck(tiny: Callable[..., Sweep]) -> None:
    found = seeds_of(planned_trials(tiny(TWO)))
    assert len(found) == 6
    assert len(set.union(*found.values())) == 6


def test_arms_are_paired_at_equal_seeds_controls_too(tiny: Callable[..., Sweep]) -> None:
    found = seeds_of(planned_trials(tiny(TWO)))
    assert {place: len(seeds) for place, seeds in found.items()} == dict.fromkeys(found, 1)


def test_records_keep_the_seed_that_the_sweep_file_lists(tiny: Callable[..., Sweep]) -> None:
    trial = planned_trials(tiny(TWO))[-1]
    record: Any = TrialProgress(trial).record
    assert [one.seed for one in record.evaluators] == [0, 1]


def test_a_seed_is_a_number_that_a_spec_may_hold() -> None:
    found = {classifier_seed(distill, evaluate) for distill in (0, 1, 2**31 - 1) for evaluate in range(50)}
    assert len(found) == 150
    assert all(0 <= seed < 2**31 for seed in found)
    assert classifier_seed(0, 0) == 1550495496
