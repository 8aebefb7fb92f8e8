"""The door to Optuna's samplers and distributions."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from ddgd_ray.spec.points import Point, compose
from ddgd_ray.spec.search_spec import SearchSpec
from ddgd_ray.spec.space import AnyDistribution, Choice, FloatRange, Space

# these samplers keep notes in the study on the trials that they proposed: a study is rebuilt by asking them again
KEEPS_NOTES = ("qmc", "cmaes", "nsga2", "nsga3")
Sampler = optuna.samplers.BaseSampler


def quiet() -> None:
    """Silence what Optuna says of each trial and of its experimental parts."""
    logging.getLogger("optuna").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def sampler_for(spec: SearchSpec, number: int) -> Sampler:
    """A fresh sampler for proposal `number`: what it draws depends on (seed, number) and the study, not on earlier draws."""
    seed = (spec.seed * 1_000_003 + number) % 2**32
    samplers = optuna.samplers
    match spec.algorithm:
        case "tpe":
            return samplers.TPESampler(
                seed=seed, n_startup_trials=spec.startup, multivariate=True, group=True, constant_liar=True
            )
        case "gp":
            return samplers.GPSampler(
                seed=seed, n_startup_trials=spec.startup, deterministic_objective=False, warn_independent_sampling=False
            )
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "qmc":  # one sequence: its place in it is noted in the study
            return samplers.QMCSampler(seed=spec.seed, scramble=True, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=spec.population)
        case "nsga3":
            return samplers.NSGAIIISampler(seed=seed, population_size=spec.population)
        case _:
            return samplers.RandomSampler(seed=seed)


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """The point that the sampler chooses, field by field, those that are not searched there left out."""
    return compose(space, lambda name, distribution: _suggest(trial, name, distribution))


def _suggest(trial: optuna.Trial, name: str, distribution: AnyDistribution) -> Any:
    if isinstance(distribution, Choice):
        return trial.suggest_categorical(name, distribution.values)
    if isinstance(distribution, FloatRange):
        step = distribution.step or None
        value = trial.suggest_float(name, distribution.low, distribution.high, step=step, log=distribution.log)
        return float(f"{value:.12g}") if step else value
    return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step or 1, log=distribution.log)


def distributions(point: Mapping[str, Any], space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """{field: Optuna's distribution} of the fields of a point."""
    return {name: _distribution(space[name]) for name in point}


def _distribution(value: AnyDistribution) -> optuna.distributions.BaseDistribution:
    if isinstance(value, Choice):
        return optuna.distributions.CategoricalDistribution(value.values)
    if isinstance(value, FloatRange):
        return optuna.distributions.FloatDistribution(value.low, value.high, log=value.log, step=value.step or None)
    return optuna.distributions.IntDistribution(value.low, value.high, log=value.log, step=value.step or 1)
