"""A run as pandas frames. Columns are named as in the sweep file: varied fields by their dotted path."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.exporting.run_data import Record, RunData
from ddgd_ray.report.compare import by_arm
from ddgd_ray.report.statistics import mean_interval
from ddgd_ray.report.tables import main_metric
from ddgd_ray.run.results import Row, over_seeds, protocols_of, seed_means
from ddgd_ray.spec.load import nearest

CURVES = "curves.jsonl"


def trials(data: RunData) -> pd.DataFrame:
    """objective: the mean over a trial's evaluators that the objective goes by; NaN without one."""
    metric = data.spec["objective"]["metric"]
    lines = []
    for record in data.records:
        rows = [row for row in _of_trial(data, record) if row.ipc in (data.ipc, 0) and row.protocol == data.protocol]
        stat = over_seeds(rows, metric)
        made = [artifact for ref in _own(record) if (artifact := data.store.get(*ref)) is not None]
        keys = dict(record["build"])
        lines.append(
            {
                "trial": record["name"],
                "arm": record["arm"],
                "seed": record["seed"],
                "is_control": record["is_control"],
                "state": record["state"],
                **record["params"],
                "objective": stat.mean if stat else None,
                "num_evaluated": len(_of_trial(data, record)),
                "num_evaluators": len(record["evaluators"]),
                "seconds": sum(artifact.seconds for artifact in made),
                "finetune": keys.get("finetune", ""),
                "set": record["build"][-1][1] if record["build"] else record["folder"],
                "errors": "; ".join(sorted(set(record["errors"].values()))),
            }
        )
    columns = ["trial", "arm", "seed", "is_control", "state", *_params(data), "objective", "num_evaluated", "num_evaluators"]
    frame = pd.DataFrame(lines, columns=[*columns, "seconds", "finetune", "set", "errors"])
    order = {arm: place for place, arm in enumerate(data.arms)}
    frame = frame.astype({"objective": float, "seconds": float})
    return frame.sort_values(
        ["arm", "seed"], key=lambda column: column.map(order) if column.name == "arm" else column
    ).set_index("trial")


def evaluations(data: RunData) -> pd.DataFrame:
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
        for row in data.rows
    ]
    metrics = sorted({name for row in data.rows for name in row.metrics})
    columns = ["arm", "seed", "is_control", *_params(data), "network", "ipc", "evaluate_seed", "protocol", "key", *metrics]
    return pd.DataFrame(lines, columns=columns)


def quality(data: RunData) -> pd.DataFrame:
    lines = []
    for record in data.records:
        for stage, key, label in record.get("quality", ()):
            artifact = data.store.get(stage, key)
            if artifact is not None:
                space, _, rest = label.partition(", ")
                place = {"trial": record["name"], "arm": record["arm"], "seed": record["seed"]}
                ipc = int(rest.partition(" ")[0])
                lines.append({**place, **record["params"], "space": space, "ipc": ipc, "key": key, **artifact.metrics})
    columns = ["trial", "arm", "seed", *_params(data), "space", "ipc", "key"]
    return pd.DataFrame(lines, columns=None if lines else columns)


def costs(data: RunData) -> pd.DataFrame:
    """num_trials above 1: made once, used by several."""
    users: dict[tuple[str, str], int] = {}
    for record in data.records:
        for ref in dict.fromkeys([*map(tuple, record["prepare"]), *_own(record)]):
            users[ref] = users.get(ref, 0) + 1
    lines = []
    for (stage, key), count in users.items():
        artifact = data.store.get(stage, key)
        if artifact is not None:
            created = pd.Timestamp(artifact.manifest.get("created", 0), unit="s")
            line = {"stage": stage, "key": key, "seconds": artifact.seconds, "num_trials": count}
            lines.append({**line, "created": created, "host": artifact.manifest.get("host", "")})
    return pd.DataFrame(lines, columns=["stage", "key", "seconds", "num_trials", "created", "host"])


def curves(data: RunData, trial: str, stage: str = "") -> pd.DataFrame:
    """Raises SpecError for a trial that is none, or a stage that it has no curves of."""
    names = [record["name"] for record in data.records]
    if trial not in names:
        what = f"there is no trial {trial!r}; there: {', '.join(names[:20])}"
        raise SpecError(what, code="unknown-trial", where=str(data.path), fix=f"did you mean {nearest(trial, names)}?")
    record = data.records[names.index(trial)]
    evaluators = {item["key"]: item for item in record["evaluators"]}
    lines: list[dict[str, Any]] = []
    for its_stage, key in [*map(tuple, record["prepare"]), *_own(record)]:
        artifact = data.store.get(its_stage, key)
        if artifact is None or stage not in ("", its_stage):
            continue
        item = evaluators.get(key, {})
        place = {"stage": its_stage, "key": key} | {name: item.get(name) for name in ("network", "ipc", "seed", "protocol")}
        lines += [place | point for point in _points(artifact.path / CURVES)]
    stages = list(dict.fromkeys(ref[0] for ref in [*record["prepare"], *_own(record)]))
    if stage and stage not in stages:
        what = f"trial {trial} has no stage {stage!r}; there: {', '.join(stages)}"
        raise SpecError(what, code="unknown-stage", where=str(data.path), fix=f"did you mean {nearest(stage, stages)}?")
    frame = pd.DataFrame(
        lines, columns=None if lines else ["stage", "key", "network", "ipc", "seed", "protocol", "step", "time"]
    )
    frame["time"] = pd.to_datetime(frame["time"], unit="s")
    return frame.rename(columns={"seed": "evaluate_seed"})


def table(data: RunData, metric: str = "", ipc: int = 0, protocol: str = "") -> pd.DataFrame:
    rows, metric, ipc, protocol = chosen_rows(data, metric, ipc, protocol)
    lines = []
    for arm, found in by_arm(rows).items():
        stat = over_seeds(found, metric)
        if stat is None:
            continue
        interval = mean_interval(list(seed_means(found, metric).values()))
        bounds = {"low": interval.low if interval else None, "high": interval.high if interval else None}
        numbers = {"mean": stat.mean, "std": stat.std, "n": stat.n, **bounds}
        lines.append({"arm": arm, "is_control": found[0].is_control, **found[0].params, **numbers})
    frame = pd.DataFrame(lines, columns=["arm", "is_control", *_params(data), "mean", "std", "n", "low", "high"])
    frame = frame.astype(dict.fromkeys(("mean", "std", "low", "high"), float) | {"n": int}).set_index("arm")
    frame.attrs = {"metric": metric, "ipc": ipc, "protocol": protocol}
    return frame


def chosen_rows(data: RunData, metric: str, ipc: int, protocol: str) -> tuple[list[Row], str, int, str]:
    """Rows of one protocol and ipc, the ceiling's with them, and what was chosen. Raises SpecError for what is not there."""
    protocol = protocol or data.protocol
    ipc = ipc or data.ipc
    _refuse("protocol", protocol, protocols_of(data.rows) or [protocol], data.path)
    _refuse("ipc", ipc, sorted({row.ipc for row in data.rows} - {0}) or [ipc], data.path)
    rows = [row for row in data.rows if row.protocol == protocol and row.ipc in (ipc, 0)]
    metric = metric or (main_metric(rows) if rows else data.spec["objective"]["metric"])
    _refuse("metric", metric, sorted({name for row in rows for name in row.metrics}) or [metric], data.path)
    return rows, metric, ipc, protocol


def _refuse(what: str, value: object, known: Sequence[object], path: Path) -> None:
    if value not in known:
        names = list(map(str, known))
        text = f"this run has no {what} {value!r}; there: {', '.join(names[:30])}"
        raise SpecError(text, code=f"unknown-{what}", where=str(path), fix=f"did you mean {nearest(str(value), names)}?")


def _params(data: RunData) -> list[str]:
    """What varies, in the order of the sweep file; of a search, in the order of its trials."""
    return list(dict.fromkeys([*data.spec["vary"], *(name for record in data.records for name in record["params"])]))


def _of_trial(data: RunData, record: Record) -> list[Row]:
    return [row for row in data.rows if (row.arm, row.seed) == (record["arm"], record["seed"])]


def _own(record: Record) -> list[tuple[str, str]]:
    """What a trial alone needs: its set, its classifiers, their tests, its measures."""
    refs = [*record["build"], *([item["stage"], item["key"]] for item in record["evaluators"])]
    refs += [item["test"] for item in record["evaluators"] if item.get("test")]
    refs += [[stage, key] for stage, key, _ in record.get("quality", ())]
    return [(str(stage), str(key)) for stage, key in refs]


def _points(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a curve; none where a stage reports none. Raises ArtifactError for a damaged file."""
    try:
        yield from map(json.loads, path.read_text().splitlines() if path.is_file() else [])
    except (ValueError, OSError) as err:
        raise ArtifactError("cannot be read", where=str(path), fix="delete this folder; it is made again") from err
