"""Jobs that wait: for their inputs to be published, then for their turn. Every step costs the same however many wait."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from ddgd_ray.conduct.waiting import Waiting
from ddgd_ray.plan.jobs import KINDS, Job
from ddgd_ray.storage.manifest import Ref


class JobQueue:
    """`add` jobs with the inputs that they miss, tell what was `published`, `take` a job that may start."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._waiting = Waiting[str]()
        self._ready: dict[str, OrderedDict[str, None]] = {kind: OrderedDict() for kind in KINDS}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def count(self) -> Counter[str]:
        """{stage: number of jobs that wait}."""
        return Counter(job.stage for job in list(self._jobs.values()))  # a view counts from a thread of its own

    def add(self, job: Job, missing: Iterable[Ref]) -> None:
        """missing: the inputs of the job that are not published yet."""
        self._jobs[job.id] = job
        if not self._waiting.add(job.id, missing):
            self._ready[job.kind][job.id] = None

    def published(self, ref: Ref) -> None:
        """Make the jobs ready that waited for this artifact alone."""
        for job_id in self._waiting.resolve(ref):
            self._ready[self._jobs[job_id].kind][job_id] = None

    def drop_dependants(self, ref: Ref) -> list[Job]:
        """The jobs that waited for an artifact that will not come; they are removed, jobs that wait for theirs are not."""
        return [self._remove(job_id) for job_id in self._waiting.waiting_for(ref)]

    def take(self, fits: Callable[[Job], bool]) -> Job | None:
        """The first ready job that fits, removed; None when there is none.

        fits is asked for the oldest job of each kind, in the order of KINDS: jobs of one kind want equal resources. It may keep
        back for the first what it refuses to those behind.
        """
        for kind in KINDS:
            job_id = next(iter(self._ready[kind]), None)
            if job_id is not None and fits(self._jobs[job_id]):
                return self._remove(job_id)
        return None

    def _remove(self, job_id: str) -> Job:
        job = self._jobs.pop(job_id)
        self._ready[job.kind].pop(job_id, None)
        self._waiting.remove(job_id)
        return job
