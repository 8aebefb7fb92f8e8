"""The driver's side of a sweep on a cluster: which job starts next, and on which of the nodes that are alive."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddgd_ray.cluster import key_values
from ddgd_ray.cluster.admission import Admission
from ddgd_ray.cluster.deaths import cause_of_death
from ddgd_ray.cluster.key_values import job_key
from ddgd_ray.cluster.nodes import NodeChecks, check_nodes, cluster_nodes, refuse_shards_apart
from ddgd_ray.cluster.placement import Node
from ddgd_ray.cluster.stop_order import StopRelay
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.job_log import log_file, log_name
from ddgd_ray.errors import EngineError
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

LOOK_S = 2.0  # between looks at the nodes
GONE_S = 60.0  # until a job on a lost node counts as lost though Ray has not said so
NODE_WAIT_S = 600.0  # how long a sweep waits for nodes that were lost, when nothing can run without them
UNPLACEABLE = ("PENDING", "RESCHEDULING")

log = logging.getLogger(__name__)


class ClusterDriver:
    """The conductor, the admission and the nodes that are alive; they live in this process alone."""

    def __init__(self, conductor: Conductor, store: Store, resources: ResourcesSpec) -> None:
        """Raises ClusterError when no node has room for some stage, or nodes do not share our storage."""
        self.conductor, self.store = conductor, store
        nodes = cluster_nodes()
        self.admission = Admission(nodes, resources)
        self.is_pinned = len(nodes) > 1
        """Each job is told its node, so that we know what is free on each. A single node needs no telling."""
        if self.is_pinned:
            check_nodes(store, nodes)
            refuse_shards_apart(store, resources)
        self._stop_relay = StopRelay(store, conductor.folder.stop_file)
        self._checks = NodeChecks(store, nodes)
        self.trials: dict[str, str] = {}
        """{id of a trial of Tune's: id of its job} of the trials that are under way."""
        self.error_files: dict[str, Path] = {}
        """{id of a trial of Tune's: the file that says, after a failure, what Ray knows of it} of the trials that began."""
        self._gone_since: dict[str, float] = {}
        self.error: Exception | None = None
        """The error that ends the sweep; it is raised once Tune has returned."""
        self._looked = self._moved = time.monotonic()
        self._has_lost = False

    def __reduce__(self) -> tuple[object, ...]:
        """A stand-in: the conductor, and with it the view and its locks, stays out of what Tune pickles."""
        return (object, ())

    @property
    def is_over(self) -> bool:
        return self.conductor.is_finished or self.error is not None

    @contextmanager
    def keeping_error(self) -> Iterator[None]:
        """Keep the first error that is raised inside, and go on.

        Tune would take it for a trial's failure and go on without the job, or end at once.
        """
        try:
            yield
        except Exception as err:
            if self.error is None:
                log.exception("the sweep ends")
            self.error = self.error or err

    def tend(self) -> None:
        """Do what is due though no trial starts or ends: orders to stop, nodes that went or came."""
        self._stop_relay.look()
        if self.is_over:
            return
        self.look()
        self.conductor.look_for_orders()
        if self.conductor.is_draining:
            self._let_go_of_unstarted()

    def _let_go_of_unstarted(self) -> None:
        """Give up jobs whose process has not come up: on a cluster that others use too, it may not for hours."""
        waiting = set(key_values.keys(job_key("")))
        for trial in [trial for trial in self.trials if job_key(trial) in waiting]:
            if key_values.remove(job_key(trial)):  # else its process has taken it up in this moment
                self.conductor.ended(self.trials.pop(trial), Outcome("it had not started", is_lost=True, has_held=False))

    def next(self) -> Job | None:
        """The next job that may start; None when none may start now, or ever again."""
        if self.is_over:
            return None
        self.look()
        self.admission.retain(self.conductor.jobs.running)
        job = self.conductor.next(self.admission.fits)
        if job is not None or self.conductor.jobs.running:
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
        """The configuration of the trial that runs this job, as Tune hands it to the worker process."""
        *workers, last = self.admission.allocations(job.id)
        nodes = [worker.node for worker in workers] if self.is_pinned else []
        return {
            "label": job.label,
            "attempt": self.conductor.jobs.attempt(job),
            "holds": dict(last.amounts),
            "node": last.node if self.is_pinned else "",
            "num_workers": max(1, len(workers)),
            "nodes": nodes,
        }

    def died(self, trial: str, job_id: str) -> Outcome:
        """The outcome of a job whose process has died, with the cause unless its node is gone too, which `ended` tells."""
        self.look(force=True)
        job = self.conductor.jobs.running.get(job_id)
        if job is None or self._lost_nodes(job_id):
            return Outcome("the worker process died")
        name = log_name(job)
        node = self.admission.nodes[self.admission.allocations(job_id)[-1].node] if self.is_pinned else None
        word = ""
        with suppress(OSError, KeyError):
            word = self.error_files[trial].read_text()
        return Outcome(cause_of_death(word, log_file(name, self.store, self.conductor.folder.path.name), node), log=name)

    def ended(self, job_id: str, outcome: Outcome) -> None:
        """Pass an outcome on to the conductor; an error on a node that is gone becomes the loss of the node."""
        if job_id not in self.conductor.jobs.running:
            return
        if outcome.error and not outcome.is_lost:
            self.look(force=True)
            gone = self._lost_nodes(job_id)
            if gone:  # no fault of the job's: it uses up no attempt
                nodes = ", ".join(sorted(node[:8] for node in gone))
                outcome = dataclasses.replace(outcome, error=f"node {nodes} was lost", is_lost=True, is_final=False)
        self.conductor.ended(job_id, outcome)

    def look(self, force: bool = False) -> None:
        """Look which nodes are alive, at most every LOOK_S seconds; jobs that wait on a node that is gone are given up."""
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
            self._give_up()

    def _give_up(self) -> None:
        """Give up jobs that sit on nodes which have been gone for GONE_S seconds.

        A process that was about to start on a node when this was cut off waits for ever, and Ray says nothing.
        """
        now = time.monotonic()
        gone = {trial for trial, job_id in self.trials.items() if self._lost_nodes(job_id)}
        self._gone_since = {trial: self._gone_since.get(trial, now) for trial in gone}
        for trial in [trial for trial, since in self._gone_since.items() if now - since > GONE_S]:
            key_values.remove(job_key(trial))
            self.conductor.ended(self.trials.pop(trial), Outcome("its node was lost", is_lost=True))

    def _lost_nodes(self, job_id: str) -> set[str]:
        """The ids of the nodes that the job runs on and that are gone."""
        return {worker.node for worker in self.admission.allocations(job_id)} - self.admission.nodes.keys()

    def _checked(self, nodes: list[Node]) -> list[Node]:
        """The nodes among these that are known to be able to work on this run."""
        self.is_pinned = self.is_pinned or len(nodes) > 1
        return self._checks.sound(nodes)


def _release_unplaceable() -> None:
    """Remove our placement groups that wait for a node that is gone. Their jobs then fail, and are handed out anew."""
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
