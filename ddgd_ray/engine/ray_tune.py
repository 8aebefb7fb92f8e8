"""The door to Ray Tune: every job is a trial with its own resources, handed out by a Searcher that asks the conductor.

Tune executes, packs resources and keeps worker processes alive between trials. What is done and what is not, it is never
asked: each start is a new experiment, and `Tuner.restore` is not used (shared notes on the engine: it repeats or loses trials).
"""

import dataclasses
import logging
import os
import pickle
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddgd_ray.engine.conductor import Conductor
from ddgd_ray.engine.jobs import Job, Outcome
from ddgd_ray.engine.ray_train import publish_with_train
from ddgd_ray.engine.signals import kept_signals
from ddgd_ray.engine.work import run_job
from ddgd_ray.errors import EngineError
from ddgd_ray.spec.sweep_spec import WIDE_STAGES, ResourcesSpec
from ddgd_ray.store import Store

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C drains; ours is installed by the cli
    "TUNE_MAX_PENDING_TRIALS_PG": "8",
    "OMP_WAIT_POLICY": "PASSIVE",  # two busy-waiting threads on a loaded core: 5.7 s a step in place of 0.24
}

WAITER = "ddgd_waiter"  # what a trial holds that only waits for Train's workers; no share of a core is lost to it

log = logging.getLogger(__name__)


def start_ray(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine. Raises EngineError within 5 s when nobody answers."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # workers import torch and diffusers: 2-3 x dearer without bytecode
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    _hush()
    if ray.is_initialized():
        return
    if address is None:
        with kept_signals():
            ray.init(
                resources={WAITER: 1000},
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        token = Path("~/.ray/auth_token").expanduser()
        if token.is_file():
            token.chmod(0o600)  # ray writes it readable for everybody
        return
    _probe(address)
    with kept_signals():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)


def _hush() -> None:
    """ray puts a handler for stderr on its logger, at import and at init; what it says goes to the run's log file instead."""
    for name in ("_private.authentication.authentication_token_setup", "tune.analysis.experiment_analysis"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # advice for who calls ray himself; metrics are in our store
    logger = logging.getLogger("ray")
    for handler in list(logger.handlers):
        if type(handler) is not logging.FileHandler:
            logger.removeHandler(handler)


def _probe(address: str) -> None:
    """ray.init to a dead address hangs for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as err:
        raise EngineError(
            f"no answer within 5 s: {err}",
            code="cluster",
            where=f"--address {address}",
            fix="expected HOST:PORT of a ray head",
        ) from err


def run_with_tune(conductor: Conductor, store: Store, resources: ResourcesSpec, address: str | None = None) -> None:
    """Run all jobs as trials of one new Tune experiment; returns when the conductor has nothing left or was told to stop."""
    start_ray(address)
    _hush()
    import ray
    from ray import tune
    from ray.tune.search import Searcher

    admission = Admission(ray.cluster_resources(), resources)

    here = _Here(conductor)

    class ConductorSearch(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="seconds", mode="min")
            self._jobs: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            if here.conductor.is_finished:
                return Searcher.FINISHED
            job = here.conductor.next(lambda job: admission.has_room(job, here.conductor.running.values()))
            if job is None:
                return Searcher.FINISHED if here.conductor.is_finished else None
            self._jobs[trial_id] = job.id
            return {"job": pickle.dumps(job).hex(), "label": job.label, "is_wide": admission.is_wide(job)}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            job_id = self._jobs.pop(trial_id, None)
            if job_id is None or job_id not in here.conductor.running:
                return
            if error or result is None or "is_final" not in result:
                here.conductor.ended(job_id, Outcome("the worker process died"))
            else:
                here.conductor.ended(
                    job_id, Outcome(**{field.name: result[field.name] for field in dataclasses.fields(Outcome)})
                )

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("{}")  # nothing of ours lives here

        def restore(self, checkpoint_path: str) -> None:
            raise AssertionError("each start is a new experiment")

    attempt = time.strftime("attempt-%Y%m%d-%H%M%S")
    trainable = tune.with_resources(
        tune.with_parameters(_trainable(), store=store, resources=resources, stop_file=conductor.folder.stop_file),
        lambda config: admission.bundle(config["is_wide"]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=ConductorSearch(),
            num_samples=-1,
            reuse_actors=resources.workers == 1,  # an idle process keeps its resources: Train's workers would wait for ever
            trial_dirname_creator=lambda trial: trial.trial_id,
            trial_name_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name=attempt, storage_path=str((conductor.folder.path / "tune").absolute()), verbose=0),
    )
    tuner.fit()


class Admission:
    """Which jobs may run at once. A wide job's shared stages run in a placement group of Train's own, its trial only waits."""

    def __init__(self, cluster: dict[str, float], resources: ResourcesSpec) -> None:
        """cluster: what ray offers, {"CPU": 2.0, ...}. Raises EngineError when no job could ever fit: ray would wait."""
        self._cluster, self._resources = cluster, resources
        wanted = {name: amount * resources.workers for name, amount in self._narrow().items()}
        lacking = {name: amount for name, amount in wanted.items() if amount > cluster.get(name, 0)}
        if lacking:
            asked = ", ".join(f"{amount:g} {name}" for name, amount in lacking.items())
            offered = ", ".join(f"{cluster.get(name, 0):g} {name}" for name in lacking)
            raise EngineError(
                f"a job asks for {asked}, the cluster has {offered}",
                code="infeasible",
                where="resources",
                fix="lower resources.workers, cpus or gpus, or join a larger cluster with --address",
            )

    def _narrow(self) -> dict[str, float]:
        amounts = {"CPU": self._resources.cpus, "GPU": self._resources.gpus}
        return {name: amount for name, amount in amounts.items() if amount}

    def is_wide(self, job: Job) -> bool:
        return self._resources.workers > 1 and any(call.stage in WIDE_STAGES for call in job.calls)

    def has_room(self, job: Job, running: Iterable[Job]) -> bool:
        """Whether `job` fits beside what runs; with one worker a job, one more is let in so that it starts without delay."""
        ahead = 1 if self._resources.workers == 1 else 0
        for name, amount in self._narrow().items():
            used = sum(amount * self._width(other) for other in running)
            if used + amount * (self._width(job) - ahead) > self._cluster.get(name, 0):
                return False
        return True

    def _width(self, job: Job) -> int:
        return self._resources.workers if self.is_wide(job) else 1

    def bundle(self, is_wide: bool) -> Any:
        from ray.tune import PlacementGroupFactory

        waiting = {WAITER: 1.0} if WAITER in self._cluster else {"CPU": 0.01}  # a bundle must ask for something
        return PlacementGroupFactory([waiting if is_wide else self._narrow()])


class _Here:
    """Keeps the conductor, and with it the view and its locks, out of what Tune pickles: it lives in this process alone."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor

    def __reduce__(self) -> tuple[object, ...]:
        return (object, ())


def _trainable() -> type:
    from ray import tune

    class JobTrainable(tune.Trainable):
        def setup(self, config: dict[str, Any], store: Any = None, resources: Any = None, stop_file: Any = None) -> None:
            self.store: Store = store  # all three come by tune.with_parameters
            self.stop_file: Path = stop_file
            self.resources: ResourcesSpec = resources

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True  # the process stays, and with it all imports

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # Tune saves every trial at its end; the artifact is in the store already

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

        def step(self) -> dict[str, Any]:
            job: Job = pickle.loads(bytes.fromhex(self.config["job"]))
            workers = self.resources.workers

            def publish(call: Any, store: Store, ctx: Any) -> Any:
                return publish_with_train(call, store, ctx, workers=workers, gpus=self.resources.gpus)

            outcome = run_job(job, self.store, self.resources, publish, stop_file=self.stop_file)
            return {"done": True, **vars(outcome)}

    return JobTrainable
