"""Stage calls and core-seconds of the shipped ablations on one another's results, with a race, and as separate runs.

    python -m benchmarks.sharing [--quick] [--json] [--run-dir RUNS] [--seeds N] [--first-seeds K] [--min-effect E]

The union of Table 3 (ablations/memory.yaml) and Figure 4 (size, lambda_r, lambda_g).

- baseline: what the public scripts do. Every configuration, seed and control of every ablation makes its own latents, tunes,
  samples and is judged, though it was in another ablation before. Counted in their favour: a run encodes the pictures
  that its steps see, yet none of them twice; test images are decoded once a set instead of once a classifier and test;
  autoencoder and backbone are given.
- sharing: each stage call once. A call's key says which ones are the same.
- racing: a race within each ablation besides; its decisions are the engine's own, replayed over the results.

A call costs the seconds that it took when it was made, on both sides. `--run-dir` holds the store of the four finished
ablations (`ddgd-ray sweep ablations/memory.yaml` and so on; with `--seeds 8` they need `--set 'seeds.distill=[0, ..., 7]'`).
Without one, stages are timed on one trial of the preset and calls are counted by the planner: no results, so no race.
`--quick` runs all four for real on the digits with a few steps: shows that it works and what is shared; so few steps teach too
little for its race to mean much. Goal: 3 x.
"""

import argparse
import functools
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import new_seed_policy, planned_trials, run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.plan.plan import Trial
from ddgd_ray.run.folder import RunFolder, open_store
from ddgd_ray.run.objective import ranking_of, value_of
from ddgd_ray.search.ask_tell import GridSearch
from ddgd_ray.search.race import Race
from ddgd_ray.spec.stages import FinetuneSpec
from ddgd_ray.spec.sweep import Sweep, read_sweep
from ddgd_ray.stages.base import Context, StageCall
from ddgd_ray.stages.publish import make
from ddgd_ray.storage.store import Store

ABLATIONS = ("memory", "size", "lambda_r", "lambda_g")
OF_EVERY_RUN = ("encode", "decode")  # what separate runs prepare anew
GIVEN = ("autoencoder", "pretrain", "adopt")
QUICK: dict[str, Any] = {
    "backbone.layers": 1,
    "backbone.steps": 30,
    "finetune.steps": 6,
    "sample.steps": 3,
    "evaluate.protocol.steps": 20,
    "evaluate.protocol.steps_large": 40,
    "evaluate.networks": ("convnet3_slim",),
    "evaluate.ipc": (5,),
    "seeds.evaluate": (0,),
}
PROBE: dict[str, Any] = {
    "name": "probe",
    "seeds.distill": (0,),
    "seeds.evaluate": (0,),
    "vary": {"finetune.memory_real.pop": ("max_similarity",)},
    "controls": ("random_real", "full_data"),
}


def read(ablation: str, args: argparse.Namespace, **more: Any) -> Sweep:
    changes = dict(QUICK) if args.quick else {}
    if args.seeds:
        changes["seeds.distill"] = tuple(range(args.seeds))
    path = Path(__file__).parent.parent / "ablations" / f"{ablation}.yaml"
    return read_sweep(path, changes | more, "digits" if args.quick else None)


def raced(ablation: str, args: argparse.Namespace) -> Sweep:
    num_seeds = len(read(ablation, args).spec.seeds.distill)
    first = args.first_seeds or (2 if num_seeds < 6 else 3)
    settings = {"first_seeds": first, "min_effect": args.min_effect, "pool_variance": True}
    return read(ablation, args, name=f"{ablation}-race", race=settings)


class Costs:
    """Seconds of a call: its own where it is in the store, else the mean of its like."""

    def __init__(self, store: Store, calls: Iterable[StageCall], timed: Iterable[StageCall]) -> None:
        """timed: calls in the store that are not among `calls`."""
        calls = {call.ref: call for call in calls}.values()
        groups: dict[tuple[Any, ...], list[float]] = {}
        own: dict[str, float] = {}
        for call in {call.ref: call for call in [*calls, *timed]}.values():
            if (artifact := store.get(*call.ref)) is not None:
                own[call.key] = artifact.seconds
                groups.setdefault(_like(call), []).append(artifact.seconds)
        for call in calls:
            if call.stage in OF_EVERY_RUN:
                own[call.key] = seconds_of(call, store)
        means = {like: statistics.fmean(values) for like, values in groups.items()}
        self.num_estimated = sum(call.key not in own for call in calls)
        self._seconds = {call.key: own.get(call.key, means.get(_like(call), 0.0)) for call in calls}

    def total(self, charged: Iterable[tuple[StageCall, float]]) -> float:
        return sum(share * self._seconds[call.key] for call, share in charged)


def seconds_of(call: StageCall, store: Store) -> float:
    """Made anew, the second time: a store's one call of a stage may have paid for its imports, and counts once a run here."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = 0.0
        for number in range(2):
            beside = Store(Path(folder) / str(number), (store.root, *store.read_only))
            beside.prepare()
            seconds = measure.timed(functools.partial(make, call, beside, Context()), "cpu")
        return seconds


def _like(call: StageCall) -> tuple[Any, ...]:
    """Calls that should take as long: stage, network, all data or not, fine-tuned at all."""
    spec = call.spec
    is_large = getattr(spec, "ipc", None) == 0
    return (call.stage, getattr(spec, "network", ""), is_large, bool(getattr(spec, "steps", 1)))


def separate(trials: Iterable[Trial], store: Store) -> list[tuple[StageCall, float]]:
    """What each trial runs when it knows of no other, and what share of the call it needs."""
    found = []
    for trial in trials:
        tune = next((call.spec for call in trial.build if call.stage == "finetune"), None)
        num_pictures = tune.steps * tune.batch_size if isinstance(tune, FinetuneSpec) else 0
        for call in trial.prepare:
            if call.stage == "encode" and num_pictures:
                encoded = store.get(*call.ref)
                assert encoded is not None, "latents are made before anything is timed"
                found.append((call, min(1.0, num_pictures / (2 * encoded.metrics["num_images"]))))  # both flips
            elif call.stage == "decode":
                found.append((call, 1.0))
        found += [(call, 1.0) for call in (*trial.build, *(item.call for item in trial.evaluators))]
    return found


def shared(trials: Iterable[Trial]) -> list[tuple[StageCall, float]]:
    """Each call once, whole."""
    found = {call.ref: call for trial in trials for call in trial.calls() if call.stage not in GIVEN}
    return [(call, 1.0) for call in found.values()]


def replay(sweep: Sweep, store: Store, folder: Path) -> Conductor | None:
    """The sweep over what is published; None where something is missing."""
    run = RunFolder(folder, sweep.spec.name)
    run.prepare()
    conductor = Conductor(sweep, store, GridSearch(sweep), run, seed_policy=new_seed_policy(sweep, store, run))
    return conductor if conductor.is_finished else None


def winner(conductor: Conductor, among: Sequence[str] | None = None) -> str:
    """The arm that the objective prefers, among all or the named ones; "" without a value."""
    trials = [record.record for record in conductor.records if among is None or record.trial.arm in among]
    return ranking_of(trials, conductor.sweep.spec.objective, conductor.store).best


def _mean(conductor: Conductor, arm: str) -> float:
    metric = conductor.sweep.spec.objective.metric
    values = [value_of(record.record, metric, conductor.store) for record in conductor.records if record.trial.arm == arm]
    return statistics.fmean(value for value in values if value is not None)


def races(args: argparse.Namespace, store: Store) -> tuple[list[Trial], dict[str, Any]] | None:
    """The trials that the races give, and each ablation's winner with and without; None where results are missing.

    loss: how far the race's winner is below the other, by the full grid's means.
    """
    trials: list[Trial] = []
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ABLATIONS:
            race = replay(raced(name, args), store, Path(folder))
            full = replay(read(name, args), store, Path(folder))
            if race is None or full is None:
                return None
            assert isinstance(race.seed_policy, Race)
            kept = [arm.proposal.arm for arm in race.arms if not arm.end.startswith(("dropped", "failed"))]
            ours, theirs = winner(race, kept), winner(full)
            said[name] = {"arms": len(race.arms), "dropped": len(race.arms) - len(kept), "race": ours, "full": theirs}
            said[name] |= {"is_same": ours == theirs, "loss": round(abs(_mean(full, theirs) - _mean(full, ours)), 5)}
            trials += [record.trial for record in race.records]
    return trials, said


def main() -> None:
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--run-dir", type=Path, help="holds the store of the finished ablations")
    parser.add_argument("--seeds", type=int, default=0, help="distillation seeds 0 .. N-1; 0: as shipped")
    parser.add_argument("--first-seeds", type=int, default=0, help="of a race, for every arm; 0: 2, or 3 of 6 and more")
    parser.add_argument("--min-effect", type=float, default=0.01, help="difference of accuracy that a race need not resolve")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = args.run_dir or Path(temporary)
        timed: list[Trial] = []
        if args.quick:
            for name in ABLATIONS:
                run_sweep(read(name, args), run_dir, run_in_process)
        elif args.run_dir is None:
            probe = read("memory", argparse.Namespace(quick=False, seeds=0), **PROBE)
            run_sweep(probe, run_dir, run_in_process)
            timed = planned_trials(probe)
        report(args, open_store(run_dir), timed)


def report(args: argparse.Namespace, store: Store, timed: Sequence[Trial]) -> None:
    trials = [trial for name in ABLATIONS for trial in planned_trials(read(name, args))]
    ways = {"separate": separate(trials, store), "sharing": shared(trials)}
    decided = races(args, store)
    if decided is not None:
        ways["racing"] = shared(decided[0])
    every = [call for charged in ways.values() for call, _ in charged]
    costs = Costs(store, every, [call for trial in timed for call in trial.calls()])
    seconds = {way: costs.total(charged) for way, charged in ways.items()}
    ours = seconds.get("racing", seconds["sharing"])
    stages = {way: dict(sorted(Counter(call.stage for call, _ in charged).items())) for way, charged in ways.items()}
    parts: dict[str, Any] = {
        "calls": stages,
        "seconds": {way: round(value, 1) for way, value in seconds.items()},
        "ratio_of_sharing": seconds["separate"] / seconds["sharing"],
        "ratio_of_racing": seconds["sharing"] / ours if decided is not None else "no results, no race",
        "calls_timed_by_their_like": costs.num_estimated,
        "seeds": len(read("memory", args).spec.seeds.distill),
        "min_effect": args.min_effect,
    }
    if decided is not None:
        parts["winners"] = decided[1]
    preset = read("memory", args).spec.preset
    measure.Result(
        ratio=seconds["separate"] / ours,
        ours=ours,
        baseline=seconds["separate"],
        unit=f"core-seconds of stages ({', '.join(ABLATIONS)}; preset {preset})",
        device=measure.device_name("cpu"),
        parts=parts,
    ).print(args.json)


if __name__ == "__main__":
    main()
