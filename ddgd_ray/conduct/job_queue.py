"""Jobs that wait: for what they need to be published, then for their turn. Every step costs the same however many wait."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from ddgd_ray.plan.jobs import KINDS, Job
from ddgd_ray.storage.manifest import Ref


class JobQueue:
    """`add` jobs with what they lack, tell what was `published`, `take` what may start."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lacks: dict[str, set[Ref]] = {}
        self._waiting_for: dict[Ref, OrderedDict[str, None]] = {}
        self._ready: dict[str, OrderedDict[str, None]] = {kind: OrderedDict() for kind in KINDS}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def count(self) -> Counter[str]:
        """{stage: number of jobs that wait}."""
        return Counter(job.stage for job in list(self._jobs.values()))  # a view counts from a thread of its own

    def add(self, job: Job, lacks: Iterable[Ref]) -> None:
        """lacks: those of its needs that are not published yet."""
        self._jobs[job.id] = job
        missing = set(lacks)
        if not missing:
            self._ready[job.kind][job.id] = None
            return
        self._lacks[job.id] = missing
        for ref in missing:
            self._waiting_for.setdefault(ref, OrderedDict())[job.id] = None

    def published(self, ref: Ref) -> None:
        for job_id in self._waiting_for.pop(ref, ()):
            lacks = self._lacks[job_id]
            lacks.discard(ref)
            if not lacks:
                del self._lacks[job_id]
                self._ready[self._jobs[job_id].kind][job_id] = None

    def drop_dependants(self, ref: Ref) -> list[Job]:
        """Remove the jobs that wait for `ref`, which will not come; those that wait for theirs are not looked at."""
        dropped = []
        for job_id in list(self._waiting_for.pop(ref, ())):
            dropped.append(self.remove(job_id))
        return dropped

    def remove(self, job_id: str) -> Job:
        job = self._jobs.pop(job_id)
        self._ready[job.kind].pop(job_id, None)
        for other in self._lacks.pop(job_id, ()):
            if other in self._waiting_for:
                self._waiting_for[other].pop(job_id, None)
        return job

    def take(self, fits: Callable[[Job], bool]) -> Job | None:
        """The first ready job that fits, oldest of each kind in turn of the kinds; equal kinds want equal resources.

        fits is asked in that order: it may keep back for the first what it refuses to those behind.
        """
        for kind in KINDS:
            job_id = next(iter(self._ready[kind]), None)
            if job_id is not None and fits(self._jobs[job_id]):
                return self.remove(job_id)
        return None
