"""What a tracking server gets of a run folder: one run for the sweep, one per trial below it, one per evaluator below that.

Everything carries the time and step at which it was measured, from the store, so that sending it again leaves the same rows.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddgd_ray.run.reading import Run, read_run
from ddgd_ray.run.records import EvaluatorRecord, TrialRecord
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Artifact, Store
from ddgd_ray.tracking.mlflow import DataSet, FoundRun, Runs
from ddgd_ray.tracking.names import cleaned
from ddgd_ray.tracking.pictures import memory_pictures, portraits, trial_pictures
from ddgd_ray.tracking.scores import best_scores, curves, evaluator_scores, set_name, trial_scores

log = logging.getLogger(__name__)

MAX_NOTE = 5000
"""Characters of a description that MLflow shows."""


class Shipper:
    """Writes one run folder's trials to one tracking server."""

    def __init__(self, path: Path, store: Store, client: Any, *, is_server: bool) -> None:
        """is_server: the server decides where files go; a plain database leaves that to us."""
        self.store = store
        self.run = read_run(path, store)
        self.name = cleaned(self.run.spec.name)
        location = None if is_server else (path.parent / "mlartifacts" / self.name).absolute().as_uri()
        self.runs = Runs(client, self.name, location)
        self._started = self.run.sweep.started or min((trial.finished for trial in self.run.trials), default=0.0)
        self._sweep_run, status = self._open_sweep()
        self._is_running = status == "RUNNING"

    def _open_sweep(self) -> tuple[str, str]:
        """Id and status of the sweep's own run, which is made where the server has none."""
        found = self.runs.found("ddgd.key", self.name).get(self.name)
        if found is not None:
            return found.id, found.status
        spec = self.run.spec
        tags = self._tags(self.name, "sweep", spec.name, None) | {"ddgd.name": spec.name}
        tags |= {"ddgd.recipe": spec.recipe} if spec.recipe else {}
        return self.runs.create(tags, self._started), "RUNNING"

    def _tags(self, key: str, kind: str, title: str, parent: tuple[str, str] | None) -> dict[str, str]:
        """The tags that every run has. parent: its run id and key.

        MLflow's pages show one level of nesting; by tags any level can be filtered.
        """
        tags = {"ddgd.key": key, "ddgd.kind": kind, "ddgd.sweep": self.name, "mlflow.runName": title}
        tags |= {"mlflow.source.name": "ddgd-ray", "ddgd.preset": self.run.spec.preset}
        tags |= {"ddgd.version.ddgd_ray": self.run.sweep.ddgd_ray}
        return tags if parent is None else {**tags, "mlflow.parentRunId": parent[0], "ddgd.parent_key": parent[1]}

    def ship(self, trial: TrialRecord) -> None:
        """Send one trial with its evaluators."""
        if not self._is_running:  # a sweep that had ended goes on
            self.runs.client.update_run(self._sweep_run, status="RUNNING")
            self._is_running = True
        key = cleaned(f"{self.name}/{trial.name}")
        known = self.runs.found("ddgd.trial_key", key)
        built = self._artifacts(trial.build)
        tags = self._tags(key, "trial", trial.name, (self._sweep_run, self.name)) | _trial_tags(key, trial)
        tags |= _version_tags(built[-1] if built else None)
        made = [*built, *self._artifacts(one.ref for one in trial.evaluators)]
        if was_there := [artifact.stage for artifact in built if not self._is_work(artifact)]:
            tags["ddgd.reused"] = " ".join(was_there)
        run = known[key].id if key in known else self.runs.create(tags, self._began(made, trial.finished))
        if key in known and "ddgd.error" in known[key].tags and not trial.errors:
            self.runs.client.delete_tag(run, "ddgd.error")
        scores = [*trial_scores(trial, self.store)]
        for artifact in built:
            scores += curves(artifact, "finetune/") if artifact.stage == "finetune" else []
        self.runs.log(run, scores, self._params(trial), tags)
        self.runs.log_data(run, self._data_of_trial(trial, built))
        self.runs.log_pictures(run, trial_pictures(trial, built, self.store))
        for evaluator in trial.evaluators:
            self._ship_evaluator(known, (run, key), trial, evaluator)
        self.runs.end(run, trial.finished, "FAILED" if trial.state == "failed" else "FINISHED")

    def _params(self, trial: TrialRecord) -> dict[str, Any]:
        return {**trial.params, "arm": trial.arm, "distill_seed": trial.seed}

    def _ship_evaluator(
        self, known: Mapping[str, FoundRun], parent: tuple[str, str], trial: TrialRecord, evaluator: EvaluatorRecord
    ) -> None:
        artifact = self.store.get(*evaluator.ref)
        if artifact is None:
            return
        name = f"{set_name(evaluator)}/seed{evaluator.seed}"
        name += "" if evaluator.protocol == trial.protocol else f"/{evaluator.protocol}"
        key = cleaned(f"{parent[1]}/{name}")
        tags = self._tags(key, "evaluator", f"{trial.name}/{name}", parent) | _version_tags(artifact)
        tags |= {"ddgd.trial_key": parent[1], "ddgd.evaluate": artifact.key, "ddgd.protocol": evaluator.protocol}
        tags |= {"ddgd.arm": trial.arm, "ddgd.distill_seed": str(trial.seed), "ddgd.evaluate_seed": str(evaluator.seed)}
        tested = self.store.get(*evaluator.test) if evaluator.test else None
        last = tested if tested is not None and self._is_work(artifact) else artifact  # no run lasts from then until now
        run = known[key].id if key in known else self.runs.create(tags, self._began([artifact], artifact.created))
        params = {"network": evaluator.network, "ipc": evaluator.ipc, "protocol": evaluator.protocol}
        params |= {"evaluate_seed": evaluator.seed}
        along = curves(artifact)
        scores = along + evaluator_scores(artifact, tested, without={score.name for score in along})
        self.runs.log(run, scores, self._params(trial) | params, tags)
        self.runs.log_data(run, self._data_of_evaluator(artifact))
        self.runs.end(run, last.created, "FINISHED")

    def _data_of_trial(self, trial: TrialRecord, built: Sequence[Artifact]) -> Iterator[DataSet]:
        """The real images that the trial read, and the set that it made."""
        preset = self.run.spec.preset
        made = [*self._artifacts(trial.prepare), *built]
        real = next((artifact.inputs["images"] for artifact in made if "images" in artifact.inputs), "")
        if real:
            yield DataSet(preset, real, {"preset": preset}, "training")
        evaluators = self._artifacts(one.ref for one in trial.evaluators)
        digest = built[-1].key if built else next((artifact.inputs["set"] for artifact in evaluators), "")
        if digest:
            yield DataSet(f"distilled {digest[:8]}", digest, {"set": digest}, "distilled")

    def _data_of_evaluator(self, artifact: Artifact) -> Iterator[DataSet]:
        """The set that the classifier was trained on, and the real images that it was tested on."""
        preset, made, real = self.run.spec.preset, artifact.inputs["set"], artifact.inputs["real"]
        yield DataSet(f"distilled {made[:8]}", made, {"set": made}, "training")
        yield DataSet(f"{preset} test images", real, {"preset": preset, "images": real}, "testing")

    def _is_work(self, artifact: Artifact) -> bool:
        """Whether the artifact was made since the run first started; otherwise it was there, and took the run no time."""
        return artifact.created >= self.run.sweep.started

    def _began(self, made: Sequence[Artifact], ended: float) -> float:
        """Seconds since 1970 at which work on the artifacts began; `ended` where all of them were there."""
        return min([artifact.began for artifact in made if self._is_work(artifact)], default=ended)

    def _artifacts(self, refs: Iterable[Ref]) -> list[Artifact]:
        """Those of the artifacts that are in the store."""
        found = (self.store.get(*ref) for ref in refs)
        return [artifact for artifact in found if artifact is not None]

    def _show_memories(self, known: Mapping[str, FoundRun], run: Run) -> None:
        """Add what the memories held, of those fine-tunings whose memories a report has decoded since."""
        portrait_of = portraits(self.store)
        for trial in run.trials:
            found = known.get(cleaned(f"{self.name}/{trial.name}"))
            if found is not None and trial.finetune is not None and trial.finetune.key in portrait_of:
                self.runs.log_pictures(found.id, memory_pictures(portrait_of[trial.finetune.key]))

    def _show_best(self, run: Run, *, is_last: bool) -> None:
        """Put the best arm on the sweep's run: tags and its numbers, and with `is_last` its parameters.

        MLflow never changes a parameter: while trials are missing, another arm may still become the best. Where one does so
        later, in a sweep that went on, the run's parameter `arm` says whose parameters they are, and the tags tell the best.
        """
        ranking, objective = run.ranking, run.spec.objective
        if not ranking.best:
            return
        params = run.of_arm(ranking.best)[0].params
        tags = {"ddgd.best": ranking.best, "ddgd.best.value": f"{ranking.told(ranking.best)} by {objective.metric}"}
        tags |= {f"ddgd.best.{path}": str(value) for path, value in params.items()}
        tags |= {"ddgd.front": ", ".join(ranking.front)} if len(objective.metrics) > 1 else {}
        if is_last and not self.runs.add_params(self._sweep_run, {**params, "arm": ranking.best}):
            log.warning(
                "%s: its parameters in MLflow are those of an earlier best arm; the tags ddgd.best are right", self.name
            )
        self.runs.log(self._sweep_run, best_scores(run), {}, tags)

    def finish(self) -> None:
        """Put tables and pictures on the sweep's run and end it: FAILED with a failed trial, KILLED while some are missing."""
        run = read_run(self.run.path, self.store)
        report = run.path / "report"
        for file in sorted(report.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                inner = file.parent.relative_to(report).as_posix()
                self.runs.client.log_artifact(self._sweep_run, str(file), "report" if inner == "." else f"report/{inner}")
        if (report / "table.md").is_file():
            self.runs.log(self._sweep_run, (), {}, {"mlflow.note.content": _beginning((report / "table.md").read_text())})
        known = self.runs.found("ddgd.sweep", self.name)  # deletes twins
        self._show_memories(known, run)
        states = {trial.state for trial in run.trials}
        self._show_best(run, is_last="planned" not in states)
        status = "KILLED" if "planned" in states else "FAILED" if "failed" in states else "FINISHED"
        self.runs.end(self._sweep_run, max(self._started, run.finished), status)
        self._is_running = False


def _trial_tags(key: str, trial: TrialRecord) -> dict[str, str]:
    tags = {"ddgd.trial_key": key, "ddgd.arm": trial.arm, "ddgd.control": str(trial.is_control).lower()}
    tags |= {"ddgd.distill_seed": str(trial.seed)}
    tags |= {"ddgd.protocol": trial.protocol} if trial.protocol else {}
    tags |= {"ddgd.rung": str(trial.rung)} if trial.rung is not None else {}
    keys: dict[str, list[str]] = {}
    for ref in [*trial.prepare, *trial.build]:
        keys.setdefault(ref.stage, []).append(ref.key)
    tags |= {f"ddgd.{stage}": " ".join(found) for stage, found in keys.items()}
    return tags | ({"ddgd.error": trial.error} if trial.errors else {})


def _version_tags(artifact: Artifact | None) -> dict[str, str]:
    versions = artifact.versions if artifact is not None else {}
    return {f"ddgd.version.{name}": version for name, version in versions.items()}


def _beginning(text: str) -> str:
    """As many whole lines as a description holds."""
    if len(text) <= MAX_NOTE:
        return text
    return text[: MAX_NOTE - 40].rpartition("\n")[0] + "\n\n(more: report/table.md)"
