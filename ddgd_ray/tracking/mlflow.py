"""The door to MLflow: runs that are found again by a tag, and calls that leave the same rows however often they are made.

No retries by MLflow itself: a request that timed out may have been carried out, and creating a run twice makes two.
"""

import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from ddgd_ray.errors import DdgdError
from ddgd_ray.tracking.names import cleaned
from ddgd_ray.tracking.pictures import Picture
from ddgd_ray.tracking.scores import Measurement

log = logging.getLogger(__name__)

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's pages open on traces of language models."""
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100  # a request
THUMBNAIL = 256
MAX_VALUE, MAX_TAG, MAX_DIGEST = 6000, 5000, 36
UNAVAILABLE = (401, 403, 407, 408, 409, 425, 429)  # of the 4xx, those that speak of the caller or the moment


@dataclass(frozen=True)
class FoundRun:
    """A run that the server has already."""

    id: str
    status: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class DataSet:
    """A set of images that a run read or made. role: `training`, `testing`, `distilled`."""

    name: str
    digest: str
    source: Mapping[str, str]
    role: str


def connect(uri: str) -> Any:
    """A client. Raises MlflowException for an address that cannot be one."""
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "sqlalchemy"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.CRITICAL)  # tracebacks; the error itself is logged by us
    with _made_once(uri):
        return MlflowClient(uri)


@contextmanager
def _made_once(uri: str) -> Iterator[None]:
    """Two processes that create one SQLite database at the same time leave it broken."""
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not uri.startswith("sqlite:///") or not path.parent.is_dir():
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as file:
        flock(file, LOCK_EX)
        yield


def is_refusal(err: Exception) -> bool:
    """Whether the error speaks of the record that was sent, not of the server or the moment."""
    from mlflow.exceptions import MlflowException

    if isinstance(err, MlflowException):
        status = int(err.get_http_status_code())
    elif (response := getattr(err, "response", None)) is not None:  # of requests, when files are sent
        status = int(response.status_code)
    else:
        return isinstance(err, DdgdError | ValueError | LookupError | TypeError | AttributeError)
    return 400 <= status < 500 and status not in UNAVAILABLE


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


class Runs:
    """The runs of one experiment. A run is known by its tag `ddgd.key`; where twins have been made, one stays."""

    def __init__(self, client: Any, name: str, location: str | None) -> None:
        self.client = client
        self._experiment = self._open(cleaned(name), location)

    def _open(self, name: str, location: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        if found.lifecycle_stage != "active":
            log.warning("the experiment %s was deleted; it is restored", name)
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def found(self, tag: str, value: str) -> dict[str, FoundRun]:
        """{key: run} of the runs with this tag."""
        runs: dict[str, FoundRun] = {}
        page: str | None = None
        while True:
            some = self.client.search_runs([self._experiment], f"tags.`{tag}` = '{value}'", max_results=1000, page_token=page)
            for run in sorted(some, key=lambda run: str(run.info.run_id)):
                key = run.data.tags.get("ddgd.key", "")
                if key in runs:  # a request that had timed out was carried out after all
                    log.warning("%s was made twice; one is deleted", key)
                    self.client.delete_run(run.info.run_id)
                else:
                    runs[key] = FoundRun(str(run.info.run_id), str(run.info.status), run.data.tags)
            page = some.token
            if not page:
                return runs

    def create(self, tags: Mapping[str, str], seconds: float) -> str:
        """Id of a new run with these tags, started at `seconds`."""
        first = dict(list(tags.items())[:MAX_TAGS])
        run = self.client.create_run(self._experiment, start_time=milliseconds(seconds), tags=first)
        return str(run.info.run_id)

    def log(self, run: str, scores: Iterable[Measurement], params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Add measurements, parameters and tags to a run. Names that MLflow refuses are cleaned; what they were is a tag."""
        from mlflow.entities import Metric, Param, RunTag

        measured = list(scores)
        for name in [*params, *(one.name for one in measured)]:
            if cleaned(name) != name:
                tags = {**tags, cleaned(f"ddgd.name.{cleaned(name)}"): name}
        metrics = [Metric(cleaned(item.name), item.value, milliseconds(item.seconds), item.step) for item in measured]
        settings = [Param(cleaned(name), _cut(str(value), MAX_VALUE)) for name, value in params.items()]
        labels = [RunTag(cleaned(name), _cut(value, MAX_TAG)) for name, value in tags.items()]
        while metrics or settings or labels:
            num = MAX_METRICS - MAX_PARAMS - MAX_TAGS
            self.client.log_batch(run, metrics[:num], settings[:MAX_PARAMS], labels[:MAX_TAGS])
            metrics, settings, labels = metrics[num:], settings[MAX_PARAMS:], labels[MAX_TAGS:]

    def add_params(self, run: str, params: Mapping[str, Any]) -> bool:
        """Whether the run has these parameters now. MLflow never changes one: where another value stands, none is added."""
        found = self.client.get_run(run).data.params
        wanted = {cleaned(name): _cut(str(value), MAX_VALUE) for name, value in params.items()}
        if any(found.get(name, value) != value for name, value in wanted.items()):
            return False
        self.log(run, (), {name: value for name, value in wanted.items() if name not in found}, {})
        return True

    def log_data(self, run: str, sets: Iterable[DataSet]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(item.name, item.digest[:MAX_DIGEST], "ddgd-ray", json.dumps(dict(item.source), sort_keys=True)),
                [InputTag("mlflow.data.context", item.role)],
            )
            for item in sets
        ]
        if inputs:
            self.client.log_inputs(run, inputs)

    def log_pictures(self, run: str, pictures: Iterable[Picture]) -> None:
        """Add pictures as client.log_image(key=, step=, synchronous=True) does, under names that stay from call to call.

        That function draws a new random name each time, and a picture sent again would be there twice.
        """
        with tempfile.TemporaryDirectory() as scratch:
            for item in pictures:
                key = cleaned(item.name).replace("/", "~")
                stamp = f"{key}+step+{item.step}+timestamp+{milliseconds(item.seconds)}"
                stem = f"{stamp}+{uuid.uuid5(uuid.NAMESPACE_OID, stamp)}"
                item.image.save(Path(scratch) / f"{stem}.png")
                small = item.image.copy()
                small.thumbnail((THUMBNAIL, THUMBNAIL))
                small.save(Path(scratch) / f"{stem}+compressed.webp")
            if any(Path(scratch).iterdir()):
                self.client.log_artifacts(run, scratch, "images")
                self.client.set_tag(run, "mlflow.loggedImages", "True")

    def end(self, run: str, seconds: float, status: str) -> None:
        self.client.set_terminated(run, status, end_time=milliseconds(seconds))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
