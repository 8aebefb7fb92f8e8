"""The door to Ray Tune: every job is a trial with its own resources, handed out by a Searcher that asks the conductor.

Tune executes and keeps worker processes alive between trials. What may run at once and where, our own admission says; what is
done and what is not, the store: each start is a new experiment, and `Tuner.restore` is not used (it repeats or loses trials).
A trial is never stopped by Tune, which would leave Train's placement group behind: it is told to, and ends itself.
"""

import dataclasses
import logging
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddgd_ray.engine.admission import Admission, amounts_of, is_spread_over_cluster
from ddgd_ray.engine.conductor import Conductor
from ddgd_ray.engine.jobs import Job, Outcome
from ddgd_ray.engine.ray_cluster import SETTINGS as SETTINGS
from ddgd_ray.engine.ray_cluster import hush, start_ray
from ddgd_ray.engine.ray_encode import encode_over_cluster
from ddgd_ray.engine.ray_nodes import check_nodes, cluster_nodes, refuse_shards_apart
from ddgd_ray.engine.ray_notes import StopRelay, drop, stop_file_here, tell, told
from ddgd_ray.engine.ray_train import NODE, Width, publish_with_train
from ddgd_ray.engine.rooms import Node
from ddgd_ray.engine.work import run_job
from ddgd_ray.errors import ClusterError, EngineError
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.store import Store

LOOK_S = 2.0  # between looks at the nodes
NODE_WAIT_S = 600.0  # how long a sweep waits for nodes that were lost, when nothing can run without them
UNPLACEABLE = ("PENDING", "RESCHEDULING")

log = logging.getLogger(__name__)


def run_with_tune(
    conductor: Conductor,
    store: Store,
    resources: ResourcesSpec,
    address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    work: Callable[..., Outcome] = run_job,
) -> None:
    """Run all jobs as trials of one new Tune experiment; returns when the conductor has nothing left or was told to stop.

    work: what a worker does with a job; with the arguments of run_job.

    Raises ClusterError before any work: no cluster, another version, no room for a stage, storage that nodes do not share.
    """
    start_ray(address, runtime_env)
    hush()
    cluster = _Cluster(conductor, store, resources)
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(_trainable(), store=store, resources=resources, stop_file=conductor.folder.stop_file, work=work),
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
            callbacks=[_forgetter()],
        ),
    )
    tuner.fit()
    if cluster.error is not None:
        raise cluster.error


def _forgetter() -> Any:
    from ray.tune import Callback

    class Forgetter(Callback):
        """Tune keeps 100 kB of running averages and reports for each trial that ever ran; ours are in the store."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for name in ("metric_analysis", "metric_n_steps"):
                if hasattr(trial.run_metadata, name):
                    setattr(trial.run_metadata, name, {})

    return Forgetter()


def _searcher(cluster: "_Cluster") -> Any:
    from ray.tune.search import Searcher

    class ConductorSearch(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="seconds", mode="min")
            self._jobs: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            job = cluster.next()
            if job is None:
                return Searcher.FINISHED if cluster.is_over else None
            self._jobs[trial_id] = job.id
            tell(_note(trial_id), pickle.dumps(job).hex())  # Tune would keep seven copies of it until the end
            return {"job": trial_id, **cluster.trial(job)}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            job_id = self._jobs.pop(trial_id, None)
            if job_id is None:
                return
            drop(_note(trial_id))
            if error or result is None or "is_final" not in result:
                outcome = Outcome("the worker process died")
            else:
                outcome = Outcome(**{field.name: result[field.name] for field in dataclasses.fields(Outcome)})
            cluster.ended(job_id, outcome)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("{}")  # nothing of ours lives here

        def restore(self, checkpoint_path: str) -> None:
            raise AssertionError("each start is a new experiment")

    return ConductorSearch()


def _note(trial_id: str) -> str:
    return f"job/{trial_id}"


class _Cluster:
    """Conductor, admission and the nodes that are alive, in this process alone."""

    def __init__(self, conductor: Conductor, store: Store, resources: ResourcesSpec) -> None:
        """Raises ClusterError: no room for a stage, or nodes that do not share our storage. One node is this machine."""
        self.conductor, self.store = conductor, store
        nodes = cluster_nodes()
        self.admission = Admission(nodes, resources)
        self.is_pinned = len(nodes) > 1
        """With several nodes every job is told its own, so that we know what is free on each of them."""
        if self.is_pinned:
            check_nodes(store, nodes)
            refuse_shards_apart(store, resources)
        self._stop_relay = StopRelay(store, conductor.folder.stop_file)
        self._refused: set[str] = set()
        self.error: EngineError | None = None
        self._looked = self._moved = time.monotonic()
        self._has_lost = False

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the conductor, and with it the view and its locks, out of what Tune pickles."""
        return (object, ())

    @property
    def is_over(self) -> bool:
        return self.conductor.is_finished or self.error is not None

    def next(self) -> Job | None:
        """The next job that has room; None: nothing now, or never again."""
        self._stop_relay.look()
        if self.is_over:
            return None
        self.look()
        self.admission.retain(self.conductor.running)
        job = self.conductor.next(self.admission.fits)
        if job is not None or self.conductor.running:
            self._moved = time.monotonic()
        elif not self.conductor.is_finished and time.monotonic() - self._moved > NODE_WAIT_S:
            self.error = EngineError(
                f"no node has had room for a job for {NODE_WAIT_S:.0f} s",
                code="nodes-lost",
                where="cluster",
                fix="run the same command again when its nodes are back: finished stages are not repeated",
            )
        return job

    def trial(self, job: Job) -> dict[str, Any]:
        """What Tune hands to the worker process."""
        *workers, last = self.admission.seats(job.id)
        nodes = [seat.node for seat in workers] if self.is_pinned else []
        return {
            "label": job.label,
            "holds": dict(last.amounts),
            "node": last.node if self.is_pinned else "",
            "num_workers": max(1, len(workers)),
            "nodes": nodes,
        }

    def ended(self, job_id: str, outcome: Outcome) -> None:
        if job_id not in self.conductor.running:
            return
        if outcome.error and not outcome.is_lost:
            self.look(force=True)
            gone = {seat.node for seat in self.admission.seats(job_id)} - self.admission.nodes.keys()
            if gone:  # no fault of the job's: it uses up no attempt
                nodes = ", ".join(sorted(node[:8] for node in gone))
                outcome = dataclasses.replace(outcome, error=f"node {nodes} was lost", is_lost=True, is_final=False)
        self.conductor.ended(job_id, outcome)

    def look(self, force: bool = False) -> None:
        """See which nodes are alive; jobs that wait on one that is gone are let go."""
        if not force and time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        known = self.admission.nodes
        nodes = self._checked(cluster_nodes())
        if {node.id for node in nodes} != known.keys():
            for node_id in known.keys() - {node.id for node in nodes}:
                log.warning("node %s (%s) was lost", node_id[:8], known[node_id].name)
                self._has_lost = True
            self.admission.set_nodes(nodes)
        if self._has_lost and self.is_pinned:
            _release_unplaceable()

    def _checked(self, nodes: list[Node]) -> list[Node]:
        """Without those that joined and cannot work on this run."""
        self.is_pinned = self.is_pinned or len(nodes) > 1
        for node in nodes:
            if node.id not in self.admission.nodes and node.id not in self._refused:
                try:
                    check_nodes(self.store, [node])
                except ClusterError as err:
                    log.warning("%s", err)
                    self._refused.add(node.id)
                else:
                    log.info("node %s (%s) joined", node.id[:8], node.name)
        return [node for node in nodes if node.id not in self._refused]


def _release_unplaceable() -> None:
    """Remove our placement groups that wait for a node that is gone: who waits for one then fails, and is handed out anew."""
    import ray
    from ray import PlacementGroupID
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    ours = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        is_stuck = group["state"] in UNPLACEABLE and group["stats"]["scheduling_state"] == "INFEASIBLE"
        if is_stuck and group_id.endswith(ours):
            log.warning("placement group %s waits for a node that is gone: removed", group_id[:8])
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))


def _request(config: Mapping[str, Any]) -> Any:
    """What the trial's own process holds, and where. Tune reuses a process for trials with an equal request alone."""
    from ray.tune import PlacementGroupFactory

    where: dict[str, Any] = {"bundle_label_selector": [{NODE: config["node"]}]} if config["node"] else {}
    return PlacementGroupFactory([dict(config["holds"])], **where)


def _trainable() -> type:
    from ray import tune

    class JobTrainable(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
            self.store: Store = given["store"]  # all come by tune.with_parameters
            self.resources: ResourcesSpec = given["resources"]
            self.stop_file: Path | None = given["stop_file"]
            self.work: Callable[..., Outcome] = given["work"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True  # the process stays, and with it all imports

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}  # Tune saves every trial at its end; the artifact is in the store already

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

        def step(self) -> dict[str, Any]:
            job: Job = pickle.loads(bytes.fromhex(told(_note(self.config["job"]))))
            amounts = self.resources.of(job.stage)
            width = Width(
                self.config["num_workers"],
                amounts_of(amounts),
                self.resources.placement,
                tuple(self.config["nodes"]),
                self.resources.max_failures,
            )

            def publish(call: Any, store: Store, ctx: Any) -> Any:
                if is_spread_over_cluster(call.stage, self.resources):
                    return encode_over_cluster(call, store, ctx, width)
                return publish_with_train(call, store, ctx, width)

            with stop_file_here(self.store, self.stop_file) as stop_file:
                outcome = self.work(job, self.store, self.resources, publish, stop_file=stop_file)
            return {"done": True, **vars(outcome)}

    return JobTrainable
