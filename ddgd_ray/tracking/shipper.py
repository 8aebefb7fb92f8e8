"""What a tracking server gets of a run folder: one run for the sweep, one per trial below it, one per evaluator below that.

Everything carries the time and step at which it was measured, from the store, so that sending it again leaves the same rows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddgd_ray.report.build import read_run
from ddgd_ray.storage.store import Artifact, Store
from ddgd_ray.tracking.mlflow import DataSet, Known, Runs
from ddgd_ray.tracking.names import cleaned, short_names
from ddgd_ray.tracking.pictures import memory_pictures, portraits, trial_pictures
from ddgd_ray.tracking.scores import curves, evaluator_points, name_of, trial_points

MAX_NOTE = 5000
Record = Mapping[str, Any]


class Shipper:
    """Writes one run folder's trials to one tracking server."""

    def __init__(self, path: Path, store: Store, client: Any, *, is_server: bool) -> None:
        """is_server: it decides where files go; a plain database leaves that to us."""
        self.path, self.store = path, store
        self.sweep, records = read_run(path)
        self.name = cleaned(str(self.sweep["spec"]["name"]))
        location = None if is_server else (path.parent / "mlartifacts" / self.name).absolute().as_uri()
        self.runs = Runs(client, self.name, location)
        self._names = short_names([*self.sweep["spec"]["vary"], *self.sweep["identity"]["space"]])
        self._started = float(self.sweep.get("started") or min((record["finished"] for record in records), default=0.0))
        self._sweep_run, status = self._open_sweep()
        self._is_running = status == "RUNNING"

    def _open_sweep(self) -> tuple[str, str]:
        found = self.runs.found("ddgd.key", self.name).get(self.name)
        if found is not None:
            return found.id, found.status
        spec = self.sweep["spec"]
        tags = self._tags(self.name, "sweep", spec["name"], None) | {"ddgd.name": spec["name"]}
        tags |= {"ddgd.recipe": spec["recipe"]} if spec.get("recipe") else {}
        return self.runs.create(tags, self._started), "RUNNING"

    def _tags(self, key: str, kind: str, title: str, parent: tuple[str, str] | None) -> dict[str, str]:
        """What every run has. parent: its run id and key; MLflow's pages show one level of nesting, tags can be filtered by."""
        tags = {"ddgd.key": key, "ddgd.kind": kind, "ddgd.sweep": self.name, "mlflow.runName": title}
        tags |= {"mlflow.source.name": "ddgd-ray", "ddgd.preset": self.sweep["spec"]["preset"]}
        tags |= {"ddgd.version.ddgd_ray": str(self.sweep["ddgd_ray"])}
        return tags if parent is None else {**tags, "mlflow.parentRunId": parent[0], "ddgd.parent_key": parent[1]}

    def ship(self, record: Record) -> None:
        """One trial with its evaluators."""
        if not self._is_running:  # a sweep that had ended goes on
            self.runs.client.update_run(self._sweep_run, status="RUNNING")
            self._is_running = True
        key = cleaned(f"{self.name}/{record['name']}")
        known = self.runs.found("ddgd.trial_key", key)
        built = self._artifacts(record["build"])
        tags = self._tags(key, "trial", record["name"], (self._sweep_run, self.name)) | self._trial_tags(key, record)
        tags |= _version_tags(built[-1] if built else None)
        run = known[key].id if key in known else self.runs.create(tags, self._start_of(record, built))
        if "ddgd.error" in (known[key].tags if key in known else {}) and not record["errors"]:
            self.runs.client.delete_tag(run, "ddgd.error")
        points = [*trial_points(record, self.store)]
        for artifact in _tuned(built):
            points += curves(artifact, "finetune/")
        self.runs.log(run, points, self._params(record), tags)
        self.runs.log_data(run, self._data_of_trial(record, built))
        self.runs.log_pictures(run, trial_pictures(record, built, self.store))
        for evaluator in record["evaluators"]:
            self._ship_evaluator(known, (run, key), record, evaluator)
        self.runs.end(run, record["finished"], "FAILED" if record["state"] == "failed" else "FINISHED")

    def _trial_tags(self, key: str, record: Record) -> dict[str, str]:
        tags = {"ddgd.trial_key": key, "ddgd.arm": record["arm"], "ddgd.control": str(record["is_control"]).lower()}
        tags |= {"ddgd.distill_seed": str(record["seed"])}
        if record["evaluators"]:
            tags["ddgd.protocol"] = record["evaluators"][0]["protocol"]
        if record.get("rung") is not None:
            tags["ddgd.rung"] = str(record["rung"])
        keys: dict[str, list[str]] = {}
        for stage, stage_key in [*record["prepare"], *record["build"]]:
            keys.setdefault(stage, []).append(stage_key)
        tags |= {f"ddgd.{stage}": " ".join(found) for stage, found in keys.items()}
        return tags | ({"ddgd.error": "; ".join(sorted(set(record["errors"].values())))} if record["errors"] else {})

    def _params(self, record: Record) -> dict[str, Any]:
        varied = {self._names.get(path, path): value for path, value in record["params"].items()}
        return {**varied, "arm": record["arm"], "distill_seed": record["seed"]}

    def _ship_evaluator(self, known: Mapping[str, Known], parent: tuple[str, str], record: Record, evaluator: Record) -> None:
        artifact = self.store.get(evaluator["stage"], evaluator["key"])
        if artifact is None:
            return
        protocol = evaluator["protocol"]
        title = f"{name_of(evaluator)}/seed{evaluator['seed']}"
        title += "" if protocol == record["evaluators"][0]["protocol"] else f"/{protocol}"
        key = cleaned(f"{parent[1]}/{title}")
        tags = self._tags(key, "evaluator", title, parent) | _version_tags(artifact)
        tags |= {"ddgd.trial_key": parent[1], "ddgd.evaluate": artifact.key, "ddgd.protocol": protocol}
        tags |= {"ddgd.arm": record["arm"], "ddgd.distill_seed": str(record["seed"])}
        tags |= {"ddgd.evaluate_seed": str(evaluator["seed"])}
        run = known[key].id if key in known else self.runs.create(tags, artifact.manifest["created"] - artifact.seconds)
        tested = self.store.get(*evaluator["test"]) if evaluator.get("test") else None
        params = self._params(record) | {name: evaluator[name] for name in ("network", "ipc", "protocol")}
        along = curves(artifact)
        points = along + evaluator_points(artifact, tested, without={point.name for point in along})
        self.runs.log(run, points, params | {"evaluate_seed": evaluator["seed"]}, tags)
        self.runs.log_data(run, self._data_of_evaluator(artifact))
        self.runs.end(run, (tested or artifact).manifest["created"], "FINISHED")

    def _data_of_trial(self, record: Record, built: list[Artifact]) -> Iterator[DataSet]:
        for artifact in [*self._artifacts(record["prepare"]), *built]:
            if "images" in artifact.manifest["inputs"]:
                source = {"preset": self.sweep["spec"]["preset"]}
                yield DataSet(self.sweep["spec"]["preset"], artifact.manifest["inputs"]["images"], source, "training")
                break
        evaluators = self._evaluators(record)
        digest = built[-1].key if built else next((item.manifest["inputs"]["set"] for item in evaluators), "")
        if digest:
            yield DataSet(f"distilled {digest[:8]}", digest, {"set": digest}, "distilled")

    def _data_of_evaluator(self, artifact: Artifact) -> Iterator[DataSet]:
        inputs = artifact.manifest["inputs"]
        yield DataSet(f"distilled {inputs['set'][:8]}", inputs["set"], {"set": inputs["set"]}, "training")
        preset = self.sweep["spec"]["preset"]
        yield DataSet(f"{preset} test images", inputs["real"], {"preset": preset, "images": inputs["real"]}, "testing")

    def _start_of(self, record: Record, built: list[Artifact]) -> float:
        """When work on the trial's own stages began."""
        starts = [artifact.manifest["created"] - artifact.seconds for artifact in built or self._evaluators(record)]
        return float(min(starts, default=record["finished"]))

    def _artifacts(self, refs: list[list[str]]) -> list[Artifact]:
        found = (self.store.get(stage, key) for stage, key in refs)
        return [artifact for artifact in found if artifact is not None]

    def _evaluators(self, record: Record) -> list[Artifact]:
        return self._artifacts([[item["stage"], item["key"]] for item in record["evaluators"]])

    def _show_memories(self, known: Mapping[str, Known], records: list[dict[str, Any]]) -> None:
        """What reports had decoded of them since."""
        portrait_of = portraits(self.store)
        for record in records:
            run = known.get(cleaned(f"{self.name}/{record['name']}"))
            for stage, key in record["build"]:
                if run is not None and stage == "finetune" and key in portrait_of:
                    self.runs.log_pictures(run.id, memory_pictures(portrait_of[key]))

    def finish(self) -> None:
        """Put tables and pictures on the sweep's run and end it: FAILED with a failed trial, KILLED while some are missing."""
        _, records = read_run(self.path)
        report = self.path / "report"
        for file in sorted(report.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                inner = file.parent.relative_to(report).as_posix()
                self.runs.client.log_artifact(self._sweep_run, str(file), "report" if inner == "." else f"report/{inner}")
        if (report / "table.md").is_file():
            self.runs.log(self._sweep_run, (), {}, {"mlflow.note.content": _beginning((report / "table.md").read_text())})
        known = self.runs.found("ddgd.sweep", self.name)  # deletes twins
        self._show_memories(known, records)
        states = {record["state"] for record in records}
        status = "KILLED" if "planned" in states else "FAILED" if "failed" in states else "FINISHED"
        self.runs.end(self._sweep_run, max([self._started, *(record["finished"] for record in records)]), status)
        self._is_running = False


def _tuned(built: list[Artifact]) -> list[Artifact]:
    return [artifact for artifact in built if artifact.manifest["stage"] == "finetune"]


def _version_tags(artifact: Artifact | None) -> dict[str, str]:
    versions: dict[str, str] = artifact.manifest["versions"] if artifact is not None else {}
    return {f"ddgd.version.{name}": version for name, version in versions.items()}


def _beginning(text: str) -> str:
    """As many whole lines as a description holds."""
    if len(text) <= MAX_NOTE:
        return text
    return text[: MAX_NOTE - 40].rpartition("\n")[0] + "\n\n(more: report/table.md)"
