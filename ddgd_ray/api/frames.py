"""A run as pandas frames. Columns are named as in the sweep file: varied fields by their dotted path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.report.statistics import mean_interval
from ddgd_ray.run.objective import value_of
from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import Row, by_arm, main_metric, over_seeds, protocols_of, seed_means
from ddgd_ray.spec.load import nearest
from ddgd_ray.stages.curves import CURVES, read_curves
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Artifact


def trials(run: Run) -> pd.DataFrame:
    """A line a trial. objective: its value of the objective's first metric, NaN without one."""
    lines = []
    for trial in run.trials:
        made = [artifact for ref in _own(trial) if (artifact := run.store.get(*ref)) is not None]
        lines.append(
            {
                "trial": trial.name,
                "arm": trial.arm,
                "seed": trial.seed,
                "is_control": trial.is_control,
                "state": trial.state,
                **trial.params,
                "objective": value_of(trial, run.spec.objective.metric, run.store, run.spec.resources),
                "num_evaluated": sum((row.arm, row.seed) == (trial.arm, trial.seed) for row in run.rows),
                "num_evaluators": len(trial.evaluators),
                "seconds": sum(artifact.seconds for artifact in made),
                "finetune": trial.finetune.key if trial.finetune else "",
                "set": trial.set.key if trial.set else trial.folder,
                "errors": trial.error,
            }
        )
    columns = ["trial", "arm", "seed", "is_control", "state", *_params(run), "objective", "num_evaluated", "num_evaluators"]
    frame = pd.DataFrame(lines, columns=[*columns, "seconds", "finetune", "set", "errors"])
    order = {arm: place for place, arm in enumerate(run.arms)}
    frame = frame.astype({"objective": float, "seconds": float})
    return frame.sort_values(
        ["arm", "seed"], key=lambda column: column.map(order) if column.name == "arm" else column
    ).set_index("trial")


def evaluations(run: Run) -> pd.DataFrame:
    """A line a trained classifier of any protocol."""
    lines = [
        {
            "arm": row.arm,
            "seed": row.seed,
            "is_control": row.is_control,
            **row.params,
            "network": row.network,
            "ipc": row.ipc,
            "evaluate_seed": row.evaluate_seed,
            "protocol": row.protocol,
            "key": row.key,
            **row.metrics,
        }
        for row in run.rows
    ]
    metrics = sorted({name for row in run.rows for name in row.metrics})
    columns = ["arm", "seed", "is_control", *_params(run), "network", "ipc", "evaluate_seed", "protocol", "key", *metrics]
    return pd.DataFrame(lines, columns=columns)


def quality(run: Run) -> pd.DataFrame:
    """A line a measured set and feature space."""
    lines = []
    for trial in run.trials:
        for measure in trial.quality:
            artifact = run.store.get(*measure.ref)
            if artifact is not None:
                place = {"trial": trial.name, "arm": trial.arm, "seed": trial.seed, **trial.params}
                lines.append({**place, "space": measure.space, "ipc": measure.ipc, "key": measure.key, **artifact.metrics})
    columns = ["trial", "arm", "seed", *_params(run), "space", "ipc", "key"]
    return pd.DataFrame(lines, columns=None if lines else columns)


def costs(run: Run) -> pd.DataFrame:
    """A line an artifact behind the run. num_trials above 1: made once, used by several."""
    uses = Counter(ref for trial in run.trials for ref in trial.refs())
    lines = []
    for ref, count in uses.items():
        artifact = run.store.get(*ref)
        if artifact is not None:
            created = pd.Timestamp(artifact.created, unit="s")
            line = {"stage": ref.stage, "key": ref.key, "seconds": artifact.seconds, "num_trials": count}
            lines.append({**line, "created": created, "host": artifact.host})
    return pd.DataFrame(lines, columns=["stage", "key", "seconds", "num_trials", "created", "host"])


def curves(run: Run, name: str, stage: str = "") -> pd.DataFrame:
    """A line a point that a stage of the trial `name` reported.

    Raises SpecError for a trial that is none, or a stage that it has no curves of.
    """
    by_name = {trial.name: trial for trial in run.trials}
    _refuse("trial", name, list(by_name), run.path)
    trial = by_name[name]
    stages = list(dict.fromkeys(ref.stage for ref in trial.refs()))
    if stage:
        _refuse("stage", stage, stages, run.path, who=f"trial {name}")
    evaluators = {one.key: one for one in trial.evaluators}
    lines: list[dict[str, Any]] = []
    for ref in trial.refs():
        artifact = run.store.get(*ref)
        if artifact is None or stage not in ("", ref.stage):
            continue
        one = evaluators.get(ref.key)
        whose = (one.network, one.ipc, one.seed, one.protocol) if one else (None,) * 4
        place = dict(zip(("network", "ipc", "evaluate_seed", "protocol"), whose, strict=True))
        lines += [{"stage": ref.stage, "key": ref.key} | place | point for point in _points(artifact)]
    empty = ["stage", "key", "network", "ipc", "evaluate_seed", "protocol", "step", "time"]
    frame = pd.DataFrame(lines, columns=None if lines else empty)
    frame["time"] = pd.to_datetime(frame["time"], unit="s")
    return frame


def table(run: Run, metric: str = "", ipc: int = 0, protocol: str = "") -> pd.DataFrame:
    """A line an arm: mean, std, n and the ends of the interval over distillation seeds."""
    rows, metric, ipc, protocol = chosen_rows(run, metric, ipc, protocol)
    lines = []
    for arm, found in by_arm(rows).items():
        stat = over_seeds(found, metric)
        if stat is None:
            continue
        interval = mean_interval(list(seed_means(found, metric).values()))
        bounds = {"low": interval.low if interval else None, "high": interval.high if interval else None}
        numbers = {"mean": stat.mean, "std": stat.std, "n": stat.n, **bounds}
        lines.append({"arm": arm, "is_control": found[0].is_control, **found[0].params, **numbers})
    frame = pd.DataFrame(lines, columns=["arm", "is_control", *_params(run), "mean", "std", "n", "low", "high"])
    frame = frame.astype(dict.fromkeys(("mean", "std", "low", "high"), float) | {"n": int}).set_index("arm")
    frame.attrs = {"metric": metric, "ipc": ipc, "protocol": protocol}
    return frame


def chosen_rows(run: Run, metric: str, ipc: int, protocol: str) -> tuple[list[Row], str, int, str]:
    """Rows of one protocol and ipc, the ceiling's with them, and what was chosen. Raises SpecError for what is not there."""
    protocol = protocol or run.protocol
    ipc = ipc or run.ipc
    _refuse("protocol", protocol, protocols_of(run.rows) or [protocol], run.path)
    _refuse("ipc", ipc, sorted({row.ipc for row in run.rows} - {0}) or [ipc], run.path)
    rows = [row for row in run.rows if row.protocol == protocol and row.ipc in (ipc, 0)]
    metric = metric or main_metric(rows)
    _refuse("metric", metric, sorted({name for row in rows for name in row.metrics}) or [metric], run.path)
    return rows, metric, ipc, protocol


def _refuse(what: str, value: object, known: Sequence[object], path: Path, *, who: str = "this run") -> None:
    """Raises SpecError, with what is known, for a value that is not among it."""
    if value not in known:
        names = list(map(str, known))
        text = f"{who} has no {what} {value!r}; there: {', '.join(names[:30])}"
        raise SpecError(text, code=f"unknown-{what}", where=str(path), fix=f"did you mean {nearest(str(value), names)}?")


def _params(run: Run) -> list[str]:
    """The fields that vary, in the order of the sweep file; of a search, in the order of its trials."""
    return list(dict.fromkeys([*run.spec.vary, *(name for trial in run.trials for name in trial.params)]))


def _own(trial: TrialRecord) -> list[Ref]:
    """The artifacts that the trial alone needs: its set, its classifiers, their tests, its measures."""
    shared = set(trial.prepare)
    return [ref for ref in trial.refs() if ref not in shared]


def _points(artifact: Artifact) -> list[dict[str, float]]:
    """The points of a stage's curves; none where it reports none. Raises ArtifactError for a damaged file."""
    try:
        return read_curves(artifact)
    except (ValueError, OSError) as err:
        where = str(artifact.folder / CURVES)
        raise ArtifactError("cannot be read", where=where, fix="delete this folder; it is made again") from err
