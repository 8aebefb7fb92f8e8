"""The door to Ray Tune: every job is a trial with its own resources, handed out by a Searcher that asks the conductor.

Tune executes and keeps worker processes alive between trials. What may run at once and where, our own admission says; what is
done and what is not, the store: each start is a new experiment, and `Tuner.restore` is not used (it repeats or loses trials).
A trial is never stopped by Tune, which would leave Train's placement group behind: it is told to, and ends itself.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddgd_ray.cluster import key_values
from ddgd_ray.cluster.admission import amounts_of, is_spread_over_cluster
from ddgd_ray.cluster.connect import hush, start_ray
from ddgd_ray.cluster.driver import ClusterDriver
from ddgd_ray.cluster.encode import encode_over_cluster
from ddgd_ray.cluster.key_values import job_key, packed, unpacked
from ddgd_ray.cluster.nodes import await_nodes
from ddgd_ray.cluster.stop_order import stop_file_here
from ddgd_ray.cluster.train import NODE, WorkerGroup, publish_with_train
from ddgd_ray.cluster.watchdog import watched
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.job_log import job_log, log_file, log_name, send_log
from ddgd_ray.conduct.work import run_job
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store


def run_with_tune(
    conductor: Conductor,
    store: Store,
    resources: ResourcesSpec,
    address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    work: Callable[..., Outcome] = run_job,
    *,
    min_nodes: int = 0,
) -> None:
    """Run all jobs as trials of one new Tune experiment; returns when the conductor has nothing left or was told to stop.

    work: what a worker does with a job; it has the arguments of run_job. min_nodes: number of nodes to wait for at the start.

    Raises ClusterError before any work: no cluster, another version, too few nodes, no room for a stage, storage that nodes do
    not share.
    """
    start_ray(address, runtime_env)
    hush()
    if not await_nodes(min_nodes, lambda: conductor.folder.is_told_to_stop):
        conductor.stop("interrupted")
        return
    cluster = ClusterDriver(conductor, store, resources)
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(
            _trainable(),
            store=store,
            resources=resources,
            stop_file=conductor.folder.stop_file,
            run=conductor.folder.path.name,
            work=work,
        ),
        _request,
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_searcher(cluster),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
            trial_name_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("attempt-%Y%m%d-%H%M%S"),
            storage_path=str((conductor.folder.path / "tune").absolute()),
            verbose=0,
            callbacks=[_listener(cluster)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # on other hosts this folder is not there
            stop=_stopper(cluster),
        ),
    )
    with watched():
        tuner.fit()
    if cluster.error is not None:
        raise cluster.error


def _stopper(cluster: ClusterDriver) -> Any:
    from ray.tune import Stopper

    class Over(Stopper):
        """The end of the experiment. Tune asks at each step of its loop; by itself it would wait for trials that we gave up."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            with cluster.keeping_error():
                cluster.tend()
            return cluster.is_over

    return Over()


def _listener(cluster: ClusterDriver) -> Any:
    from ray.air.constants import EXPR_ERROR_FILE
    from ray.tune import Callback

    class Listener(Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """Tell the driver where Tune writes what Ray says of a death; Tune does not tell the searcher."""
            cluster.error_files[trial.trial_id] = Path(trial.local_path) / EXPR_ERROR_FILE

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """Drop the 100 kB of running averages that Tune keeps for each trial that ever ran; ours are in the store."""
            for name in ("metric_analysis", "metric_n_steps"):
                if hasattr(trial.run_metadata, name):
                    setattr(trial.run_metadata, name, {})

    return Listener()


def _searcher(cluster: ClusterDriver) -> Any:
    from ray.tune.search import Searcher

    class ConductorSearch(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="seconds", mode="min")

        def suggest(self, trial_id: str) -> Any:
            with cluster.keeping_error():
                job = cluster.next()
                if job is not None:
                    cluster.trials[trial_id] = job.id
                    key_values.put(job_key(trial_id), packed(job))  # Tune would keep seven copies of it until the end
                    return {"job": trial_id, **cluster.trial(job)}
            return Searcher.FINISHED if cluster.is_over else None

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            with cluster.keeping_error():
                self._take(trial_id, result, error=error)

        def _take(self, trial_id: str, result: dict[str, Any] | None, *, error: bool) -> None:
            key_values.remove(job_key(trial_id))
            job_id = cluster.trials.pop(trial_id, None)
            if job_id is None:
                return  # it was given up before
            if error or result is None or "is_final" not in result:
                outcome = cluster.died(trial_id, job_id)
            else:
                outcome = Outcome(**{field.name: result[field.name] for field in dataclasses.fields(Outcome)})
            cluster.error_files.pop(trial_id, None)
            cluster.ended(job_id, outcome)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("{}")  # the store holds all that a new start needs

        def restore(self, checkpoint_path: str) -> None:
            raise AssertionError("each start is a new experiment")

    return ConductorSearch()


def _request(config: Mapping[str, Any]) -> Any:
    """The placement group of the trial's own process. Tune reuses a process only for trials with an equal one."""
    from ray.tune import PlacementGroupFactory

    where: dict[str, Any] = {"bundle_label_selector": [{NODE: config["node"]}]} if config["node"] else {}
    return PlacementGroupFactory([dict(config["holds"])], **where)


def _trainable() -> type:
    from ray import get_runtime_context, tune

    class JobTrainable(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
            self.store: Store = given["store"]  # what tune.with_parameters was given
            self.resources: ResourcesSpec = given["resources"]
            self.stop_file: Path | None = given["stop_file"]
            self.run: str = given["run"]
            self.work: Callable[..., Outcome] = given["work"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True  # the process stays, and with it all imports

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # Tune saves every trial at its end; the artifact is in the store already

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

        def step(self) -> dict[str, Any]:
            key = job_key(self.config["job"])
            text = key_values.get(key)
            if not key_values.remove(key):  # from here on the job has started: the driver does not give it up any more
                return {"done": True, **vars(Outcome("it was given up before it started", is_lost=True))}
            job: Job = unpacked(text)
            name = log_name(job)
            amounts = self.resources.of(job.stage)
            group = WorkerGroup(
                self.config["num_workers"],
                amounts_of(amounts),
                self.resources.placement,
                tuple(self.config["nodes"]),
                self.resources.max_failures,
                (self.run, name),
            )

            def publish(call: Any, store: Store, ctx: Any) -> Any:
                if is_spread_over_cluster(call.stage, self.resources):
                    return encode_over_cluster(call, store, ctx, group)
                return publish_with_train(call, store, ctx, group)

            head = {"node": get_runtime_context().get_node_id()[:8], "stage": job.stage, "key": job.id}
            with (
                stop_file_here(self.store, self.stop_file) as stop_file,
                job_log(log_file(name, self.store, self.run), head | {"attempt": self.config["attempt"]}, takes_output=True),
            ):
                outcome = self.work(job, self.store, self.resources, publish, stop_file=stop_file)
            send_log(name, self.store, self.run)
            return {"done": True, **vars(dataclasses.replace(outcome, log=name))}

    return JobTrainable
