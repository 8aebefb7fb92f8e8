"""The records of a run, written and read by the same classes: what was asked, and a line for each trial.

They are JSON on disk. Whoever stands above this room sees these objects, never the JSON; a field that does not exist does not
type-check.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from ddgd_ray.errors import ArtifactError
from ddgd_ray.plain_files import read_bytes
from ddgd_ray.spec.base import Value
from ddgd_ray.spec.check import expected, shown
from ddgd_ray.spec.claims_spec import ClaimsSpec
from ddgd_ray.spec.fidelity_spec import RaceSpec, RungsSpec
from ddgd_ray.spec.search_spec import Direction
from ddgd_ray.spec.sweep_spec import SweepSpec
from ddgd_ray.storage.manifest import Ref

SCHEMA: Literal[1] = 1
"""Version of what a run folder holds. A reader refuses another one: it would mean something else."""
DAMAGED = "damaged-record"
"""Code of the error for a record that cannot be read."""
AGAIN = "run the sweep again: it writes this file anew"

State = Literal["planned", "done", "failed"]


class Record(BaseModel):
    """A frozen record whose unknown, missing or mistyped fields are damage. Text that was written is read back equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def as_text(self, *, sort_keys: bool = True) -> str:
        """JSON of the record, as the file of a run folder holds it."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, sort_keys=sort_keys)

    @classmethod
    def from_text(cls, text: str | bytes, where: Path | str) -> Self:
        """The record that the text holds. Raises ArtifactError, with the file and the field, when it holds something else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as err:
            _refuse_another_schema(text, where)
            what = f"cannot be read: {first_problem(err)}"
            raise ArtifactError(what, code=DAMAGED, where=str(where), fix=AGAIN) from err

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record of a file. Raises ArtifactError when it cannot be read or holds something else."""
        try:
            text = read_bytes(path)
        except OSError as err:
            what = f"cannot be read: {err.strerror or err}"
            raise ArtifactError(what, code=DAMAGED, where=str(path), fix=AGAIN) from err
        return cls.from_text(text, path)


def _refuse_another_schema(text: str | bytes, where: Path | str) -> None:
    """Say of a record that does not fit what is behind that, where another version wrote it. Raises ArtifactError."""
    try:
        found = json.loads(text)["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if found != SCHEMA and isinstance(found, int):
        what = f"schema: expected {SCHEMA}, found {found}: another version of ddgd-ray made this run"
        raise ArtifactError(what, code="other-schema", where=str(where), fix="use that version, or another --run-dir")


def first_problem(error: ValidationError) -> str:
    """`FIELD: what is wrong` of the first thing that does not fit a record; without a field where the whole is none."""
    detail = error.errors(include_url=False)[0]
    field = ".".join(map(str, detail["loc"]))
    if detail["type"] == "json_invalid":
        what = f"expected JSON: {detail['ctx']['error']}"
    elif detail["type"] == "extra_forbidden":
        what = "expected no such field"
    elif detail["type"] == "missing":
        what = "expected a value, found none"
    elif detail["type"] == "value_error":
        what = str(detail["ctx"]["error"].args[0])  # specs raise ValueError(what) or ValueError(what, fix)
    else:
        what = f"expected {expected(detail)}, got {shown(detail['input'])}"
    return f"{field}: {what}" if field else what


class EvaluatorRecord(Record):
    """One classifier of a trial: what it is, and the artifact that holds its numbers."""

    network: str
    ipc: int
    """Images a class that it is trained on; 0: all of them."""
    seed: int
    protocol: str
    """Label of how it is trained."""
    stage: str
    key: str
    test: Ref | None = None
    """The artifact that looked at the test images for a finalist; None where the classifier's own does so, or nothing did."""

    @model_serializer(mode="wrap")
    def _without_a_missing_test(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; `test` only where there is one."""
        fields: dict[str, Any] = serialize(self)
        return fields if self.test is not None else {name: value for name, value in fields.items() if name != "test"}

    @property
    def ref(self) -> Ref:
        return Ref(self.stage, self.key)

    @property
    def name(self) -> str:
        """`NETWORK ipcN seedS`, as logs and pages name it."""
        return f"{self.network} ipc{self.ipc or 'all'} seed{self.seed}"


class QualityRecord(NamedTuple):
    """One measure of a trial's set. label: the feature space and images a class, `latents, 20 images per class`."""

    stage: str
    key: str
    label: str

    @property
    def ref(self) -> Ref:
        return Ref(self.stage, self.key)

    @property
    def space(self) -> str:
        """The feature space in which the set was compared with the real images."""
        return self.label.partition(", ")[0]

    @property
    def ipc(self) -> int:
        """Images a class of the measured set."""
        return int(self.label.partition(", ")[2].partition(" ")[0])


class TrialRecord(Record):
    """One trial, an arm at one distillation seed: its place in the sweep, the artifacts that it needs, and how it ended."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    name: str
    arm: str
    params: dict[str, Value]
    """{dotted path: value} of what varies."""
    seed: int
    """Distillation seed."""
    rung: int | None = None
    """The rung whose cheaper setting the trial has; None: the full one."""
    is_control: bool
    state: State
    prepare: tuple[Ref, ...]
    """Artifacts shared with other trials, in an order in which they can be made."""
    build: tuple[Ref, ...]
    """The trial's own model and set; the set is the last. Empty for a ready-made set."""
    evaluators: tuple[EvaluatorRecord, ...]
    """Those of the main protocol, by which the objective goes, come first."""
    quality: tuple[QualityRecord, ...] = ()
    measures: tuple[tuple[Ref, ...], ...] = ()
    """For each of `quality` the artifacts behind it, the measure last. Empty in records of early versions."""
    folder: str = ""
    """Folder of a ready-made set."""
    errors: dict[str, str]
    """{key of a stage call: message} of what failed."""
    attempts: dict[str, int] = {}
    """{key of a stage call: number} where it took more than one."""
    finished: float
    """Seconds since 1970 at which the last of its artifacts was published; 0 while it is planned."""

    @property
    def set(self) -> Ref | None:
        """The artifact that is the trial's set, None for a ready-made one."""
        return self.build[-1] if self.build else None

    @property
    def finetune(self) -> Ref | None:
        """The artifact that is the trial's fine-tuning, None where nothing was fine-tuned."""
        return next((ref for ref in self.build if ref.stage == "finetune"), None)

    @property
    def sample(self) -> Ref | None:
        """The artifact that the trial drew, its set or the pool that it was picked from; None where nothing was drawn."""
        return next((ref for ref in self.build if ref.stage == "sample"), None)

    @property
    def protocol(self) -> str:
        """Label of the main protocol; "" without evaluators."""
        return self.evaluators[0].protocol if self.evaluators else ""

    @property
    def main_evaluators(self) -> tuple[EvaluatorRecord, ...]:
        return tuple(one for one in self.evaluators if one.protocol == self.protocol)

    @property
    def error(self) -> str:
        """Every message of `errors` once; "" when nothing failed."""
        return "; ".join(sorted(set(self.errors.values())))

    def own_refs(self) -> list[Ref]:
        """Everything that no other configuration shares by design, in order, the finalists' tests aside."""
        refs = [*self.build, *(one.ref for one in self.evaluators)]
        refs += [ref for refs_of in self.measures for ref in refs_of] or [one.ref for one in self.quality]
        return list(dict.fromkeys(refs))

    def refs(self) -> list[Ref]:
        """Everything behind the trial, each artifact once, in an order in which it can be made."""
        refs = [*self.prepare, *self.own_refs(), *(one.test for one in self.evaluators if one.test is not None)]
        return list(dict.fromkeys(refs))

    def labelled_refs(self) -> Iterator[tuple[Ref, str]]:
        """Each artifact that the trial needs, with whom it is for."""
        for ref in self.prepare:
            yield ref, "all trials"
        for ref in self.build:
            yield ref, self.name
        for one in self.evaluators:
            yield one.ref, f"{self.name} {one.name}"
            if one.test is not None:
                yield one.test, f"{self.name} {one.name} test"
        for measure in self.quality:
            yield measure.ref, f"{self.name} {measure.label}"


class SweepRecord(Record):
    """What a run was asked to do, as it stands in its sweep.json."""

    schema_: Literal[1] = Field(SCHEMA, alias="schema")
    ddgd_ray: str
    """Version of the package that wrote the record last."""
    started: float = 0.0
    """Seconds since 1970 of the first start; 0 in runs of early versions."""
    name: str
    identity: dict[str, Any]
    """Everything that decides what the results mean: run/identity.py compares it when a sweep comes again."""
    spec: SweepSpec
    source: str = ""
    """The sweep file."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The preset's sections with `set` and `recipe` put in, as JSON."""
        found: Mapping[str, Any] = self.identity.get("settings", {})
        return found

    @property
    def space(self) -> Mapping[str, Any]:
        """{dotted path: distribution} of a search, as JSON; empty for a grid."""
        found: Mapping[str, Any] = self.identity.get("space", {})
        return found


class PlannedRecord(Record):
    """A trial that runs when every configuration gets everything: what a race or rungs are held against."""

    arm: str
    seed: int
    calls: tuple[Ref, ...]
    evaluators: tuple[Ref, ...]
    """Those of the main protocol."""


class DropRecord(Record):
    """A configuration that a race dropped. difference: to the incumbent `against`, in units of the metric."""

    arm: str
    against: str
    num_seeds: int
    difference: float
    bound: float
    statistic: float
    critical: float


class RaceRecord(Record):
    """What a race decided. Each start of a sweep writes it anew."""

    kind: Literal["race"] = "race"
    metric: str
    direction: Direction
    settings: RaceSpec
    alpha: float
    """Level of one test."""
    num_arms: int
    num_looks: int
    is_over: bool
    left: tuple[str, ...]
    failed: tuple[str, ...]
    drops: tuple[DropRecord, ...]
    full: tuple[PlannedRecord, ...]


class VerdictRecord(Record):
    """What a race for verdicts concluded of an arm. difference: to the reference, in units of the metric, as measured.

    low, high: ends of the interval that holds for all arms and all looks together; null while n is too small for one.
    """

    arm: str
    word: Literal["better", "worse", "equivalent", "undecided"]
    num_seeds: int
    difference: float
    low: float | None
    high: float | None


class VerdictsRecord(Record):
    """What a race for verdicts decided. Each start of a sweep writes it anew."""

    kind: Literal["verdicts"] = "verdicts"
    metric: str
    direction: Direction
    claims: ClaimsSpec
    reference: str
    alpha: float
    """Error rate of one pair."""
    limit: int
    """Seeds at which the race ends though pairs be undecided."""
    is_over: bool
    failed: tuple[str, ...]
    verdicts: tuple[VerdictRecord, ...]
    full: tuple[PlannedRecord, ...]


class RungDecision(Record):
    """What became of a configuration at a rung. place: 1 for the best of `of`, 0 without a value."""

    rung: int
    arm: str
    value: float | None = None
    place: int
    of: int
    outcome: str


class RungsRecord(Record):
    """What successive halving decided. Each start of a sweep writes it anew."""

    kind: Literal["rungs"] = "rungs"
    metric: str
    direction: Direction
    settings: RungsSpec
    decisions: tuple[RungDecision, ...]
    full: tuple[PlannedRecord, ...]
