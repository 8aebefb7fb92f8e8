"""The work of one job: each of its calls is published before the next begins. The in-process executor."""

import logging
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.job_log import job_log, log_name
from ddgd_ray.errors import DamagedArtifact, DdgdError, NoRoom, Stopped
from ddgd_ray.plan.jobs import Job, Outcome
from ddgd_ray.spec.sweep_spec import ResourcesSpec
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import publish_call, publish_packed
from ddgd_ray.storage.store import Artifact, Store

log = logging.getLogger(__name__)

DEVICE = "DDGD_DEVICE"  # the device of all stages, whatever they hold: to try GPUs that Ray is only told about

Publish = Callable[[StageCall, Store, Context], tuple[Artifact, bool]]


def context_of(resources: ResourcesSpec, stage: str, stop_file: Path | None = None) -> Context:
    """The surroundings that a job of this stage may know of: device, threads, sizes of batches, the stop file."""
    amounts = resources.of(stage)
    device = os.environ.get(DEVICE) or ("cuda" if amounts.gpus else "cpu")
    gains = device.startswith("cuda") and stage in ("finetune", "sample")
    return Context(
        device=device,
        chunk=resources.chunk,
        num_threads=max(1, int(amounts.cpus)),
        checkpoint_steps=resources.checkpoint_steps,
        micro_batch=resources.micro_batch,
        compiled=gains if resources.compile == "auto" else resources.compile,
        recompute=resources.recompute,
        pack=resources.pack,
        stop_file=stop_file,
        held=amounts.held,
    )


def run_job(
    job: Job, store: Store, resources: ResourcesSpec, publish: Publish = publish_call, *, stop_file: Path | None = None
) -> Outcome:
    """The outcome of a job; an error becomes its text, and is never raised.

    An error that names its cause is final; a job with any other error may be tried again.
    """
    started = time.monotonic()
    try:
        context = context_of(resources, job.stage, stop_file)
        if job.kind == "evaluate" and len(job.calls) > 1:
            publish_packed(job.calls, store, context)
        else:
            for call in job.calls:
                publish(call, store, context)
    except Stopped as err:
        seconds, has_held = time.monotonic() - started, not isinstance(err, NoRoom)
        return Outcome(str(err), is_lost=True, seconds=seconds, exit_code=err.exit_code, has_held=has_held)
    except DdgdError as err:
        log.info("%s failed", job.label, exc_info=True)
        # what is damaged was set aside, and can be made again; storage that did not answer may do so soon
        is_final = not (isinstance(err, DamagedArtifact) or err.code == "storage")
        return Outcome(str(err), is_final=is_final, seconds=time.monotonic() - started, exit_code=err.exit_code)
    except Exception as err:
        log.exception("%s failed", job.label)
        last = traceback.extract_tb(err.__traceback__)[-1]
        place = f"{os.path.basename(last.filename)}:{last.lineno}"
        return Outcome(f"{type(err).__name__}: {err} ({place})", seconds=time.monotonic() - started)
    return Outcome(seconds=time.monotonic() - started)


def run_in_process(conductor: Conductor, store: Store, resources: ResourcesSpec) -> None:
    """Run one job after another in this process: the executor of the tests and of `--executor local`."""
    while not conductor.is_finished:
        job = conductor.next()
        assert job is not None or conductor.is_draining, "jobs wait, none is running, and none can start"
        if job is None:
            return
        name = log_name(job)
        head = {"stage": job.stage, "key": job.id, "attempt": conductor.jobs.attempt(job)}
        with job_log(conductor.folder.path / name, head, takes_output=False):
            outcome = run_job(job, store, resources, stop_file=conductor.folder.stop_file)
        conductor.ended(job.id, replace(outcome, log=name))
