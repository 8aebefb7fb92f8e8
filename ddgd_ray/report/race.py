"""What a race or rungs saved: who was dropped when and why, what it cost against the full grid, whether the winner changed."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

Ref = tuple[str, str]


@dataclass(frozen=True)
class Saving:
    """spent, full: seconds times what a job holds of `unit`, equal calls once; full is estimated for `num_estimated` calls."""

    spent: float
    full: float
    unit: str
    num_calls: int
    num_estimated: int

    @property
    def share(self) -> float:
        """Saved, of the full grid; negative where the cheaper settings cost more than they saved."""
        return 1 - self.spent / self.full if self.full else 0.0


def allotment_tables(path: Path, spec: Mapping[str, Any], store: Store) -> list[Table]:
    """One table of a run folder whose sweep has `race` or `rungs`, none of another."""
    try:
        ledger = json.loads((path / "allotment.json").read_text())
    except (OSError, ValueError):
        return []
    records = [json.loads(file.read_text()) for file in sorted((path / "trials").glob("*.json"))]
    arms = dict.fromkeys(entry["arm"] for entry in ledger["full"])
    records = [record for record in records if record["arm"] in arms and not record["is_control"]]
    facts = [_cost_note(saving_of(ledger, records, spec, store)), _winner_note(ledger, records, store)]
    if ledger["kind"] == "race":
        return [_race_table(ledger, list(arms), records, facts)]
    return [_rungs_table(ledger, facts, _num_readers(records, store))]


def saving_of(ledger: Mapping[str, Any], records: Iterable[Mapping[str, Any]], spec: Mapping[str, Any], store: Store) -> Saving:
    """Of the arms that compete, what they share included; controls and the finalists' tests aside."""
    resources = ResourcesSpec.model_validate(spec["resources"])
    spent: set[Ref] = set()
    for record in records:
        refs = [*record["prepare"], *record["build"], *(item[:2] for item in record.get("quality", ()))]
        refs += [[item["stage"], item["key"]] for item in record["evaluators"]]
        spent |= {(stage, key) for stage, key in refs}
    full = {(stage, key) for entry in ledger["full"] for stage, key in entry["calls"]}
    seconds = {ref: artifact.seconds for ref in spent | full if (artifact := store.get(*ref)) is not None}
    known: dict[str, list[float]] = {}
    for (stage, key), value in seconds.items():
        if (stage, key) in full or stage not in {name for name, _ in full}:  # a lower rung's are cheaper
            known.setdefault(stage, []).append(value)
    mean = {stage: statistics.fmean(values) for stage, values in known.items()}
    has_gpu = any(resources.of(stage).gpus for stage, _ in full)

    def weight(stage: str) -> float:
        amounts = resources.of(stage)
        return amounts.held["gpus" if has_gpu else "cpus"]

    return Saving(
        spent=sum(seconds[ref] * weight(ref[0]) for ref in sorted(spent) if ref in seconds),
        full=sum(seconds.get(ref, mean.get(ref[0], 0.0)) * weight(ref[0]) for ref in sorted(full)),
        unit="GPU-seconds" if has_gpu else "core-seconds",
        num_calls=len(full),
        num_estimated=len(full - seconds.keys()),
    )


def _cost_note(saving: Saving) -> str:
    estimated = f", {saving.num_estimated} of its {saving.num_calls} calls estimated by the mean of their stage"
    return (
        f"Spent on these arms: {saving.spent:.0f} {saving.unit}; the full grid: {saving.full:.0f}"
        f"{estimated if saving.num_estimated else ''}; saved: {saving.share:.0%}."
    )


def _means(entries: Iterable[tuple[str, Iterable[Ref]]], metric: str, store: Store) -> dict[str, float]:
    """{arm: mean over its seeds of the mean over evaluators} of the arms whose every evaluator is published."""
    values: dict[str, list[float]] = {}
    lacking = set()
    for arm, refs in entries:
        found = [artifact.metrics.get(metric) for ref in refs if (artifact := store.get(*ref)) is not None]
        if not found or None in found or len(found) < len(list(refs)):
            lacking.add(arm)
        else:
            values.setdefault(arm, []).append(statistics.fmean(value for value in found if value is not None))
    return {arm: statistics.fmean(found) for arm, found in values.items() if arm not in lacking}


def _winner_note(ledger: Mapping[str, Any], records: Sequence[Mapping[str, Any]], store: Store) -> str:
    """By the main protocol alone: its refs are the ledger's."""
    metric, sign = ledger["metric"], 1 if ledger["direction"] == "maximize" else -1
    refs_of = {(entry["arm"], entry["seed"]): [(stage, key) for stage, key in entry["evaluators"]] for entry in ledger["full"]}
    places = [(record["arm"], record["seed"]) for record in records if record.get("rung") is None and record["state"] == "done"]
    if ledger["kind"] == "race":
        places = [place for place in places if place[0] in ledger["left"]]
    ours = _means([(arm, refs_of[arm, seed]) for arm, seed in places if (arm, seed) in refs_of], metric, store)
    if not ours:
        return "No winner yet."
    winner = max(ours, key=lambda arm: sign * ours[arm])
    said = f"Winner by {metric}: {winner}, {ours[winner]:.4f}."
    full = _means([(arm, refs) for (arm, _), refs in refs_of.items()], metric, store)
    missing = {arm for arm, _ in refs_of} - full.keys()
    if missing:
        return f"{said} Whether the full grid has the same winner is not known: it is not in the store for {len(missing)} arms."
    best = max(full, key=lambda arm: sign * full[arm])
    if best == winner:
        return f"{said} The full grid, all of which is in the store, has the same winner ({full[best]:.4f})."
    return (
        f"{said} The winner CHANGED: the full grid, all of which is in the store, has {best} ({full[best]:.4f}); "
        f"{winner} has {full[winner]:.4f} there."
    )


def _race_table(
    ledger: Mapping[str, Any], arms: Sequence[str], records: Sequence[Mapping[str, Any]], facts: Sequence[str]
) -> Table:
    drops = {drop["arm"]: drop for drop in ledger["drops"]}
    settings = ledger["settings"]
    lines = []
    for arm in arms:
        num_seeds = sum(record["arm"] == arm and record["state"] == "done" for record in records)
        if arm in drops:
            drop = drops[arm]
            cells = [f"dropped after {drop['num_seeds']} seeds", drop["against"], f"{drop['difference']:+.4f}"]
            cells += [f"{drop['statistic']:.2f}", f"{-drop['critical']:.2f}"]
        else:
            outcome = "failed" if arm in ledger["failed"] else "kept" if ledger["is_over"] else "running"
            cells = [outcome, *["-"] * 4]
        lines.append((arm, [Cell(str(num_seeds)), *map(Cell, cells)]))
    zone = settings["min_effect"]
    of = "one variance of all arms" if settings["pool_variance"] else "the arm's own variance"
    what = f"as good as the best up to {zone:g}" if zone else "the best"
    note = (
        f"An arm is dropped when t < -t critical against the incumbent (one-sided, differences paired by seed, {of}) at a "
        f"level of {ledger['alpha']:.2g}: {1 - settings['confidence']:.2g} over {ledger['num_arms'] - 1} opponents and "
        f"{ledger['num_looks']} looks. An arm {what} is kept with probability {settings['confidence']:g} or more, if "
        f"differences are normal."
    )
    heads = ["arm", "seeds", "outcome", "against", f"difference of {ledger['metric']}", "t", "-t critical"]
    return Table("Race", [Column(head) for head in heads], lines, " ".join([note, *facts]))


def _rungs_table(ledger: Mapping[str, Any], facts: Sequence[str], num_readers: int) -> Table:
    lines = []
    for line in sorted(ledger["decisions"], key=lambda line: (line["rung"], line["place"] or len(ledger["full"]))):
        value = "-" if line["value"] is None else f"{line['value']:.4f}"
        place = f"{line['place']} of {line['of']}" if line["place"] else "-"
        lines.append((line["arm"], [Cell(text) for text in (str(line["rung"]), value, place, line["outcome"])]))
    settings = ledger["settings"]["settings"]
    said = [f"rung {rung}: {_setting(setting)}" for rung, setting in enumerate(settings)]
    note = f"The best 1/{ledger['settings']['eta']} of a rung go on. {'; '.join(said)}. Values of two rungs are not comparable."
    if num_readers:
        note += f" Test images were read by {num_readers} classifiers of rungs before the last, beside those counted below."
    heads = ["arm", "rung", ledger["metric"], "place", "outcome"]
    return Table("Rungs", [Column(head) for head in heads], lines, " ".join([note, *facts]))


def _setting(setting: Mapping[str, Any]) -> str:
    if not setting:
        return "the full setting"
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in setting.items())


def _num_readers(records: Iterable[Mapping[str, Any]], store: Store) -> int:
    """Classifiers of lower rungs alone that looked at the test images."""
    keys: dict[bool, set[Ref]] = {True: set(), False: set()}
    for record in records:
        keys[record.get("rung") is None] |= {(item["stage"], item["key"]) for item in record["evaluators"]}
    found = [store.get(*ref) for ref in keys[False] - keys[True]]
    return sum(artifact is not None and "top1_last" in artifact.metrics for artifact in found)
