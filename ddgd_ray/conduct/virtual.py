"""A cluster that is only imagined: jobs take virtual seconds and publish empty artifacts with plausible numbers.

A discrete-event executor for the real planner, search, conductor, store and books: what they cost with a thousand GPUs can be
measured on two cores. Workers die and are pre-empted at given rates; which jobs that befalls follows from the seed alone.
"""

import hashlib
import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.storage.store import Store

SECONDS = {"finetune": 1800.0, "sample": 120.0, "evaluate": 900.0}
"""{stage: mean virtual seconds of a job on one GPU}; other stages take OTHER_S."""
OTHER_S = 60.0


@dataclass
class VirtualCluster:
    """An executor: `run_sweep(sweep, run_dir, VirtualCluster(gpus=1000))`. Times are virtual seconds.

    deaths, preemptions: per job, the probability that its worker dies or is taken away half-way. watch: called after every
    `watch_every` ended jobs.
    """

    gpus: float
    seed: int = 0
    deaths: float = 0.0
    preemptions: float = 0.0
    watch: Callable[["VirtualCluster", Conductor], None] = lambda cluster, conductor: None
    watch_every: int = 1000
    now_s: float = 0.0
    held_s: float = 0.0
    """Virtual GPU-seconds that jobs have held."""
    publish_s: float = 0.0
    """Real seconds spent on publishing, which on a real cluster its workers do."""
    num_ended: int = 0
    num_deaths: int = 0
    num_preemptions: int = 0
    free: float = field(init=False)

    def __post_init__(self) -> None:
        self.free = self.gpus
        self._draw = random.Random(self.seed)

    def __call__(self, conductor: Conductor, store: Store, resources: ResourcesSpec) -> None:
        ends: list[tuple[float, int, Job, Outcome]] = []
        order = 0
        while True:
            while (job := conductor.next(lambda job: self._held(job, resources) <= self.free)) is not None:
                self.free -= self._held(job, resources)
                outcome = self._outcome(job)
                order += 1
                heapq.heappush(ends, (self.now_s + outcome.seconds, order, job, outcome))
            if not ends:
                return
            self.now_s, _, job, outcome = heapq.heappop(ends)
            held = self._held(job, resources)
            self.free += held
            self.held_s += held * outcome.seconds
            if not outcome.error:
                started = time.perf_counter()
                publish_virtually(job, store)
                self.publish_s += time.perf_counter() - started
            conductor.ended(job.id, outcome)
            self.num_ended += 1
            if self.num_ended % self.watch_every == 0:
                self.watch(self, conductor)

    @staticmethod
    def _held(job: Job, resources: ResourcesSpec) -> float:
        amounts = resources.of(job.stage)
        return amounts.held["gpus"]

    def _outcome(self, job: Job) -> Outcome:
        seconds = SECONDS.get(job.stage, OTHER_S) * self._draw.uniform(0.7, 1.3)
        fate = self._draw.random()
        if fate < self.deaths:
            self.num_deaths += 1
            return Outcome("the worker process died", seconds=seconds / 2)
        if fate < self.deaths + self.preemptions:
            self.num_preemptions += 1
            return Outcome("its node was taken away", seconds=seconds / 2, is_lost=True)
        return Outcome(seconds=seconds)


def publish_virtually(job: Job, store: Store) -> None:
    """Publish artifacts without files, whose accuracies follow from their keys."""
    for call in job.calls:
        if store.has(*call.ref):
            continue
        share = int(hashlib.sha256(call.key.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
        metrics = {"val_top1": 0.6 + 0.1 * share, "top1_last": 0.6 + 0.1 * share} if call.stage == "evaluate" else {}
        with store.scratch(call.key) as out:
            store.publish(out, call.spec, call.input_keys(), metrics, SECONDS.get(call.stage, OTHER_S))
