"""The interface of a stage. Torch-free: rooms above the stages import this, stages.curves and stages.publish, and no stage.

A stage module offers `run(spec, inputs, out, ctx) -> metrics`: it reads the folders in `inputs`, writes files into the empty
folder `out`, and returns named numbers that summarise what it made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddgd_ray.spec.stages import StageSpec
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import key_of

RESUMABLE = ("encode", "sample")
"""Stages that keep, before each report, all they have made: stopping there loses nothing. Fine-tuning sees to itself."""
GOES_ON = (*RESUMABLE, "finetune")
"""Stages whose second attempt goes on from what the first one kept."""


@dataclass(frozen=True)
class Outside:
    """An input that no stage made: its fingerprint enters the key, its path does not."""

    fingerprint: str
    path: str


@dataclass(frozen=True)
class StageCall:
    """One stage with its inputs: artifacts of other calls, or what comes from outside."""

    spec: StageSpec
    inputs: "Mapping[str, Ref | Outside]"
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of(self.spec, self.input_keys()))

    @property
    def stage(self) -> str:
        return self.spec.stage

    @property
    def ref(self) -> Ref:
        return Ref(self.stage, self.key)

    def input_keys(self) -> dict[str, str]:
        return {name: value.fingerprint if isinstance(value, Outside) else value.key for name, value in self.inputs.items()}


@dataclass
class Context:
    """What a stage may know of its surroundings; nothing here changes what it computes."""

    report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    """Takes a step and its metrics: a point of the stage's curves."""
    device: str = "cpu"
    chunk: int = 256
    """Most rows in a forward pass without gradient."""
    num_threads: int = 1
    rank: int = 0
    num_ranks: int = 1
    keep: Path | None = None
    """A folder that outlives a crash of the stage and is gone once the stage is published, one for all ranks where their hosts
    share the store. None: nothing is kept."""
    checkpoint_steps: int = 0
    """Optimizer steps between checkpoints; 0: no checkpoints."""
    micro_batch: int = 0
    """Most rows in a pass with gradient; 0: a worker's whole share of the batch."""
    compiled: bool = False
    """Whether the network's blocks go through torch.compile."""
    recompute: bool = False
    """Whether the activations inside a block are computed again for the backward pass, and not kept."""
    pack: int = 0
    """Classifiers trained at once; 0: as many as fit on a GPU, one on a CPU."""
    stop_file: Path | None = None
    """Once this file exists, a stage that can go on later keeps what it has and raises Stopped. Once `stop_now_file` of it
    exists too, every other stage raises Stopped at its next report."""
    held: Mapping[str, float] = field(default_factory=dict)
    """CPUs and GPUs of the job over all its workers, for the manifest."""

    @property
    def is_told_to_stop(self) -> bool:
        return self.stop_file is not None and self.stop_file.exists()

    @property
    def is_told_to_stop_now(self) -> bool:
        return self.stop_file is not None and stop_now_file(self.stop_file).exists()


def stop_now_file(stop_file: Path) -> Path:
    """The file beside a run's stop file that makes the order urgent."""
    return stop_file.with_name(f"{stop_file.name}.now")
