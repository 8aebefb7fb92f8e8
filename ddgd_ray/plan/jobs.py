"""The jobs of a trial: the calls that run in one process, the artifacts that they need first, and how a job may end."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ddgd_ray.plan.plan import Evaluator, Trial
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import Outside, StageCall
from ddgd_ray.storage.manifest import Ref

# of jobs that are ready, earlier kinds start first: evaluators before new sets, so that results come in as the sweep goes
KINDS = (
    "prepare",
    "test",
    "evaluate",
    "measure",
    "relabel",
    "pick",
    "scores",
    "features",
    "sample",
    "select",
    "invert",
    "finetune",
)


@dataclass(frozen=True)
class Job:
    """One stage call, or several that run one after another or together in one process. The key of the last one is its id."""

    kind: str
    label: str
    calls: tuple[StageCall, ...]

    @property
    def id(self) -> str:
        return self.calls[-1].key

    @property
    def stage(self) -> str:
        """The stage of the last call: the job holds the resources that the sweep gives to this stage."""
        return self.calls[-1].stage

    @cached_property
    def needs(self) -> frozenset[Ref]:
        """The artifacts that must be published first: inputs of the calls that no call of the job makes itself."""
        own = {call.ref for call in self.calls}
        inputs = (value for call in self.calls for value in call.inputs.values() if not isinstance(value, Outside))
        return frozenset(ref for ref in inputs if ref not in own)


@dataclass(frozen=True)
class Outcome:
    """How a job ended; with no error, its calls are published.

    is_final: the job would fail again. exit_code: the exit code that belongs to the error's class. is_lost: the job did not
    fail, its node was lost or it was told to stop; this uses up no attempt.
    """

    error: str = ""
    is_final: bool = False
    seconds: float = 0.0
    exit_code: int = 1
    is_lost: bool = False
    has_held: bool = True
    """The job held the resources that it asked for. A job that only waited for them has spent nothing."""
    log: str = ""
    """The path of the job's log in the folder of its run; "" without one."""

    def message(self, run: Path | None = None) -> str:
        """The error, and on a line of its own the job's log, in the folder `run` if given."""
        log = str(run / self.log) if run is not None and self.log else self.log
        return f"{self.error}\n  log: {log}" if log else self.error


def jobs_of(trial: Trial, resources: ResourcesSpec) -> Iterator[Job]:
    """The jobs of a trial, in an order in which they could run one after another.

    Evaluators that differ in their seeds alone are one job where a worker may train them at once.
    """
    for call in trial.prepare:
        yield Job("prepare", call.stage, (call,))
    for call in trial.build:
        yield Job(call.stage, f"{trial.name} {call.stage}", (call,))
    for call in trial.labels:
        yield Job(call.stage, f"{trial.name} labels", (call,))
    yield from _evaluations(trial, resources)
    for measure in trial.measures:
        yield Job("measure", f"{trial.name} {measure.label}", measure.calls)


def _evaluations(trial: Trial, resources: ResourcesSpec) -> Iterator[Job]:
    alike: dict[tuple[str, int, str], list[Evaluator]] = {}
    for item in trial.evaluators:
        alike.setdefault((item.network, item.ipc, item.protocol), []).append(item)
    most = resources.pack or (len(trial.evaluators) if resources.of("evaluate").gpus else 1)
    for (network, ipc, protocol), items in alike.items():
        for start in range(0, len(items), most):
            some = items[start : start + most]
            seeds = ",".join(str(item.seed) for item in some)
            of_protocol = "" if some[0].is_main else f" {protocol}"
            label = f"{trial.name} {network} ipc{ipc or 'all'} seed{seeds}{of_protocol}"
            yield Job("evaluate", label, tuple(item.call for item in some))


def finalist_jobs(trial: Trial) -> Iterator[Job]:
    """The jobs that show the test images to the classifiers of a finalist."""
    for item in trial.evaluators:
        if item.test is not None:
            label = f"{trial.name} {item.network} ipc{item.ipc or 'all'} seed{item.seed} test"
            yield Job("test", label, (item.test,))
