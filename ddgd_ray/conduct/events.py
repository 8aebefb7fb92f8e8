"""What a conductor has to tell, and why it may end before everything is done."""

from dataclasses import dataclass
from typing import Literal

from ddgd_ray.plan.jobs import Job
from ddgd_ray.run.folder import TrialProgress

StopReason = Literal["", "interrupted", "failures", "budget"]


@dataclass
class Event:
    """Something to show: kind is `start`, `done`, `failed`, `retry`, `lost` or `trial`."""

    kind: str
    job: Job | None = None
    record: TrialProgress | None = None
    text: str = ""
