"""The folder of one run: what was asked (`sweep.json`), one record per trial, the lock, and the outbox of the tracker."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.engine.plan import Evaluator, Trial
from ddgd_ray.errors import ArtifactError, SpecError
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.stages.base import StageCall
from ddgd_ray.store import Store, make_writable, write_atomically

SCHEMA = 1
BUNDLED = Path(__file__).resolve().parent.parent / "bundled"


def open_store(run_dir: Path) -> Store:
    """`run_dir/store`, backed by the checkpoints that ship with the package."""
    return Store(run_dir.absolute() / "store", (BUNDLED,))  # workers have working directories of their own


@dataclass
class TrialRecord:
    """The ledger's line of one trial: everything a report or a tracker needs besides the artifacts themselves."""

    trial: Trial
    state: str = "planned"  # planned, done, failed
    errors: dict[str, str] = field(default_factory=dict)
    """{stage key: message} of what failed."""
    attempts: dict[str, int] = field(default_factory=dict)
    """{stage key: number} where it took more than one."""
    finished: float = 0.0
    is_finalist: bool = False
    """Its classifiers see the test images (`test: finalists`)."""

    def calls(self) -> Iterator[StageCall]:
        yield from self.trial.calls()
        if self.is_finalist:
            yield from (item.test for item in self.trial.evaluators if item.test is not None)

    def as_json(self) -> dict[str, Any]:
        trial = self.trial

        def one(evaluator: Evaluator) -> dict[str, Any]:
            labels = {"network": evaluator.network, "ipc": evaluator.ipc, "seed": evaluator.seed}
            made = {"protocol": evaluator.protocol, "stage": evaluator.call.stage, "key": evaluator.call.key}
            tested = {"test": list(evaluator.test.ref)} if evaluator.test is not None and self.is_finalist else {}
            return {**labels, **made, **tested}

        return {
            "schema": SCHEMA,
            "name": trial.name,
            "arm": trial.arm,
            "params": dict(trial.params),
            "seed": trial.seed,
            "is_control": trial.is_control,
            "state": self.state,
            "prepare": [list(call.ref) for call in trial.prepare],
            "build": [list(call.ref) for call in trial.build],
            "evaluators": [one(evaluator) for evaluator in trial.evaluators],
            "quality": [[*measure.calls[-1].ref, measure.label] for measure in trial.measures],
            "folder": trial.folder,
            "errors": self.errors,
            "attempts": self.attempts,
            "finished": self.finished,
        }


class RunFolder:
    """`run_dir/name/`, with the store and MLflow's database beside it."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir = run_dir.absolute()
        self.path = self.run_dir / name
        self.trials = self.path / "trials"
        self.outbox = self.path / "outbox"

    def prepare(self) -> None:
        """Create the folders. Raises StageError when they cannot be written."""
        make_writable("the run folder", self.path, self.trials, self.outbox)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One driver a run. Raises ArtifactError that names the holder; the kernel frees the lock when its holder dies."""
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                file.seek(0)
                raise ArtifactError(
                    f"this run is locked by {file.read().strip() or 'another process'}",
                    code="locked",
                    where=str(self.path),
                    fix="wait for it, or stop that process",
                ) from err
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            yield

    def remember(self, sweep: Sweep) -> None:
        """Write sweep.json, or check that the folder belongs to the same sweep. Raises SpecError with the differing fields.

        More seeds, networks, ipc, controls or trials continue a sweep: what is done stays. Another preset, grid or recipe
        under the same name would mix two tables.
        """
        path = self.path / "sweep.json"
        parts = {
            "preset": sweep.spec.preset,
            "settings": sweep.preset.data,
            "vary": sweep.spec.vary,
            "space": {name: value.canonical() for name, value in sweep.space.items()},
            "objective": sweep.spec.objective.identity(),
        }
        identity = json.loads(json.dumps(parts))  # as a file gives it back: lists, not tuples
        if path.is_file():
            before = json.loads(path.read_text())["identity"]
            changed = _differences(before, identity)
            # a wider grid keeps all cells of the old one
            widened = [line for line in changed if line.startswith("vary.") and _is_wider(before["vary"], identity["vary"])]
            changed = [line for line in changed if line not in widened]
            if changed:
                raise SpecError(
                    "this folder holds another sweep:\n" + "\n".join(f"    {line}" for line in changed),
                    code="other-sweep",
                    where=str(self.path),
                    fix="give the changed sweep another name (--set name=...); finished stages are shared all the same",
                )
        content = {
            "schema": SCHEMA,
            "ddgd_ray": __version__,
            "name": sweep.spec.name,
            "identity": identity,
            "spec": sweep.spec.canonical(),
            "source": sweep.source.source,
        }
        write_atomically(path, json.dumps(content, indent=1))  # the order of `vary` is that of the table

    @property
    def is_remembered(self) -> bool:
        return (self.path / "sweep.json").is_file()

    def forget(self) -> None:
        """Give the name free again, before anything ran under it."""
        (self.path / "sweep.json").unlink(missing_ok=True)

    def write(self, record: TrialRecord) -> None:
        """The trial's line in the ledger; a finished trial also goes to the tracker's outbox.

        A line that says as much already stays: how often a job was tried is known to the start that tried it.
        """
        line = record.as_json()
        path = self.trials / f"{record.trial.name}.json"
        before = _read_line(path)
        what = ("build", "evaluators", "quality")
        same = what if record.state == "planned" else (*what, "state", "errors")
        if before and all(before.get(name) == line[name] for name in same):
            return
        text = json.dumps(line, indent=1, sort_keys=True)
        write_atomically(path, text)
        if record.state != "planned":
            write_atomically(self.outbox / f"{record.trial.name}.json", text)


def _read_line(path: Path) -> dict[str, Any]:
    """{} when there is none or it cannot be read."""
    try:
        line = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return line if isinstance(line, dict) else {}


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        lines = []
        for name in sorted(before.keys() | now.keys()):
            inner = f"{path}.{name}" if path else name
            lines += _differences(before.get(name), now.get(name), inner)
        return lines
    return [] if before == now else [f"{path}: was {json.dumps(before)}, is {json.dumps(now)}"]


def _is_wider(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return before.keys() == now.keys() and all(set(map(repr, before[k])) <= set(map(repr, now[k])) for k in before)
