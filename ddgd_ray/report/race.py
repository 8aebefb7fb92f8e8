"""The table of a race or of rungs: who was dropped when and why, what it cost against the full grid, who won."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.run.decisions import PlannedRecord, RaceRecord, RungsRecord, VerdictsRecord
from ddgd_ray.run.objective import sign_of
from ddgd_ray.run.reading import Run, read_seed_policy, read_trial_records
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.spec.base import Values
from ddgd_ray.spec.search_spec import ACCURACIES
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Store


@dataclass(frozen=True)
class Saving:
    """The work spent and that of the full grid: seconds times what a job holds of `unit`, equal calls once.

    num_estimated: calls of the full grid, of `num_calls`, that nobody made; their stage's mean stands for them.
    """

    spent: float
    full: float
    unit: str
    num_calls: int
    num_estimated: int

    @property
    def share(self) -> float:
        """The share of the full grid that was saved; negative where the cheaper settings cost more than they saved."""
        return 1 - self.spent / self.full if self.full else 0.0


def seed_policy_tables(run: Run) -> list[Table]:
    """One table of a run whose sweep has `race` or `rungs`, none of another. Raises ArtifactError for a damaged record."""
    decisions = read_seed_policy(run.path)
    if decisions is None:
        return []
    arms = list(dict.fromkeys(planned.arm for planned in decisions.full))
    known = read_trial_records(run.path, with_lower_rungs=True)
    trials = [trial for trial in known if trial.arm in arms and not trial.is_control]
    cost = _cost_note(saving_of(decisions.full, trials, run.spec.resources, run.store))
    if isinstance(decisions, VerdictsRecord):
        return [_verdicts_table(decisions, arms, trials, cost)]
    facts = [cost, _winner_note(run, decisions)]
    if isinstance(decisions, RaceRecord):
        return [_race_table(decisions, arms, trials, facts)]
    return [_rungs_table(decisions, facts, _num_readers(trials, run.store))]


def saving_of(full: Sequence[PlannedRecord], trials: Iterable[TrialRecord], resources: ResourcesSpec, store: Store) -> Saving:
    """The work that the arms that compete took, and would have taken in full, with what they share.

    full: the trials of the full grid. trials: those that ran, at lower rungs too. Controls and finalists' tests are aside.
    """
    of_trials = {ref for trial in trials for ref in (*trial.prepare, *trial.own_refs())}
    of_full = {ref for planned in full for ref in planned.calls}
    seconds = {ref: artifact.seconds for ref in of_trials | of_full if (artifact := store.get(*ref)) is not None}
    stages = {ref.stage for ref in of_full}
    known: dict[str, list[float]] = {}
    for ref, value in seconds.items():
        if ref in of_full or ref.stage not in stages:  # a lower rung's are cheaper
            known.setdefault(ref.stage, []).append(value)
    mean = {stage: statistics.fmean(values) for stage, values in known.items()}
    has_gpu = any(resources.of(stage).gpus for stage in stages)

    def weight(stage: str) -> float:
        return resources.of(stage).held["gpus" if has_gpu else "cpus"]

    return Saving(
        spent=sum(seconds[ref] * weight(ref.stage) for ref in sorted(of_trials) if ref in seconds),
        full=sum(seconds.get(ref, mean.get(ref.stage, 0.0)) * weight(ref.stage) for ref in sorted(of_full)),
        unit="GPU-seconds" if has_gpu else "core-seconds",
        num_calls=len(of_full),
        num_estimated=len(of_full - seconds.keys()),
    )


def _cost_note(saving: Saving) -> str:
    estimated = f", {saving.num_estimated} of its {saving.num_calls} calls estimated by the mean of their stage"
    return (
        f"Spent on these arms: {saving.spent:.0f} {saving.unit}; the full grid: {saving.full:.0f}"
        f"{estimated if saving.num_estimated else ''}; saved: {saving.share:.0%}."
    )


def _winner_note(run: Run, decisions: RaceRecord | RungsRecord) -> str:
    """The arm that the objective prefers, and whether it is the best of the full grid too, where all of that is published."""
    metric, winner = decisions.metric, run.ranking.best
    if not winner:
        return "No winner yet."
    said = f"Winner by {metric}: {winner}, {_digits(run.ranking.worths[winner].values[0], metric)}."
    if metric not in ACCURACIES:
        return f"{said} Whether the full grid has the same winner is not known: no classifier measures {metric}."
    full = _full_means(decisions.full, metric, run.store)
    missing = {planned.arm for planned in decisions.full} - full.keys()
    if missing:
        return f"{said} Whether the full grid has the same winner is not known: it is not in the store for {len(missing)} arms."
    best = max(full, key=lambda arm: sign_of(decisions.direction) * full[arm])
    if best == winner:
        return f"{said} The full grid, all of which is in the store, has the same winner ({full[best]:.4f})."
    return (
        f"{said} The winner CHANGED: the full grid, all of which is in the store, has {best} ({full[best]:.4f}); "
        f"{winner} has {full[winner]:.4f} there."
    )


def _digits(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric in ACCURACIES else f"{value:.4g}"


def _full_means(full: Iterable[PlannedRecord], metric: str, store: Store) -> dict[str, float]:
    """{arm: mean over its seeds of the mean over evaluators} of the arms whose every evaluator is published."""
    values: dict[str, list[float]] = {}
    lacking = set()
    for planned in full:
        found = [artifact.metrics.get(metric) for ref in planned.evaluators if (artifact := store.get(*ref)) is not None]
        measured = [value for value in found if value is not None]
        if not measured or len(measured) < len(planned.evaluators):
            lacking.add(planned.arm)
        else:
            values.setdefault(planned.arm, []).append(statistics.fmean(measured))
    return {arm: statistics.fmean(found) for arm, found in values.items() if arm not in lacking}


def _race_table(race: RaceRecord, arms: Sequence[str], trials: Sequence[TrialRecord], facts: Sequence[str]) -> Table:
    drops = {drop.arm: drop for drop in race.drops}
    settings = race.settings
    lines = []
    for arm in arms:
        num_seeds = sum(trial.arm == arm and trial.state == "done" for trial in trials)
        drop = drops.get(arm)
        if drop is not None:
            cells = [f"dropped after {drop.num_seeds} seeds", drop.against, f"{drop.difference:+.4f}"]
            cells += [f"{drop.statistic:.2f}", f"{-drop.critical:.2f}"]
        else:
            outcome = "failed" if arm in race.failed else "kept" if race.is_over else "running"
            cells = [outcome, *["-"] * 4]
        lines.append((arm, [Cell(str(num_seeds)), *map(Cell, cells)]))
    of = "one variance of all arms" if settings.pool_variance else "the arm's own variance"
    what = f"as good as the best up to {settings.min_effect:g}" if settings.min_effect else "the best"
    note = (
        f"An arm is dropped when t < -t critical against the incumbent (one-sided, differences paired by seed, {of}) at a "
        f"level of {race.alpha:.2g}: {1 - settings.confidence:.2g} over {race.num_arms - 1} opponents and "
        f"{race.num_looks} looks. An arm {what} is kept with probability {settings.confidence:g} or more, if "
        f"differences are normal."
    )
    heads = ["arm", "seeds", "outcome", "against", f"difference of {race.metric}", "t", "-t critical"]
    return Table("Race", [Column(head) for head in heads], lines, " ".join([note, *facts]))


def _verdicts_table(decisions: VerdictsRecord, arms: Sequence[str], trials: Sequence[TrialRecord], cost: str) -> Table:
    found = {verdict.arm: verdict for verdict in decisions.verdicts}
    claims, lines = decisions.claims, []
    for arm in arms:
        num_seeds = sum(trial.arm == arm and trial.state == "done" for trial in trials)
        verdict = found.get(arm)
        if verdict is None or arm in decisions.failed:
            word = "failed" if arm in decisions.failed else "reference" if arm == decisions.reference else "-"
            cells = [word, "-", "-"]
        else:
            ends = f"[{verdict.low:+.4f}, {verdict.high:+.4f}]" if verdict.low is not None else "-"
            is_open = verdict.word == "undecided" and not decisions.is_over
            cells = ["running" if is_open else verdict.word, f"{verdict.difference:+.4f}", ends]
        lines.append((arm, [Cell(str(num_seeds)), *map(Cell, cells)]))
    note = (
        f"Seeds were given until an arm was better or worse than {decisions.reference}, or equivalent within "
        f"{claims.smallest_effect:g}, up to {decisions.limit}. All verdicts are right together with probability "
        f"{claims.confidence:g} or more, over arms and over looks after every seed, if differences are normal: each at "
        f"{decisions.alpha:.2g}. Intervals hold together in the same way. {cost}"
    )
    heads = ["arm", "seeds", "verdict", f"difference of {decisions.metric}", "interval"]
    return Table("Race for verdicts", [Column(head) for head in heads], lines, note)


def _rungs_table(rungs: RungsRecord, facts: Sequence[str], num_readers: int) -> Table:
    lines = []
    for line in sorted(rungs.decisions, key=lambda line: (line.rung, line.place or len(rungs.full))):
        value = "-" if line.value is None else _digits(line.value, rungs.metric)
        place = f"{line.place} of {line.of}" if line.place else "-"
        lines.append((line.arm, [Cell(text) for text in (str(line.rung), value, place, line.outcome)]))
    said = [f"rung {rung}: {_setting(setting)}" for rung, setting in enumerate(rungs.settings.settings)]
    note = f"The best 1/{rungs.settings.eta} of a rung go on. {'; '.join(said)}. Values of two rungs are not comparable."
    if num_readers:
        note += f" Test images were read by {num_readers} classifiers of rungs before the last, beside those counted below."
    heads = ["arm", "rung", rungs.metric, "place", "outcome"]
    return Table("Rungs", [Column(head) for head in heads], lines, " ".join([note, *facts]))


def _setting(setting: Mapping[str, Values]) -> str:
    if not setting:
        return "the full setting"
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in setting.items())


def _num_readers(trials: Iterable[TrialRecord], store: Store) -> int:
    """The number of classifiers of lower rungs alone that looked at the test images."""
    of_full: set[Ref] = set()
    of_lower: set[Ref] = set()
    for trial in trials:
        (of_full if trial.rung is None else of_lower).update(evaluator.ref for evaluator in trial.evaluators)
    found = [store.get(*ref) for ref in of_lower - of_full]
    return sum(artifact is not None and "top1_last" in artifact.metrics for artifact in found)
