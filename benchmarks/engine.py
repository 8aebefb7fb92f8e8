"""What the engine costs beside the work: ours in this process and under Ray Tune, plain Ray Tune, plain Optuna.

python -m benchmarks.engine [--quick] [--json]

A trial is one unit of work for each side: for ours a job of a sweep (a fine-tuning, a sampling or an evaluation of a grid on
digits) that publishes an empty artifact into a real store; for Tune a function trainable that reports once, all settings at
their defaults; for Optuna an objective that returns 0, in two processes on one SQLite file. Every side runs in a process of its
own. `ms` is wall time a trial without the start of Ray, `cpu_ms` the driver's processor time a trial, which a loaded machine
changes less; `rss_mb` is the driver's at the end (of it, PyTorch's 350), `rss_growth_mb` since before the first trial.
Ratio: plain Tune's ms a trial over ours under Tune, at Tune's one size: at its defaults it starts a process a trial, so
that 10,000 would take hours. `own_ms`, ours in this process, is what we add: conductor, admission, ledger and store;
`tune_ms` is the rest.

Then each side runs trials of --seconds on --workers workers: the share of their time in which they work, and the time from
submission to the first step, the start of Ray counted.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import Result, device_name, parser

JOBS_OF_ARM = 3
SIZES = {"own": (100, 1000, 10_000), "ours": (100, 1000, 10_000), "tune": (100,), "optuna": (100, 1000)}
QUICK = {"own": (100, 1000), "ours": (20, 100), "tune": (20,), "optuna": (100,)}
WORK = 20  # trials of the second measurement
STEPS = "steps"  # a file a trial, with its start and end


def main() -> None:
    args = _parse()
    if args.side:
        print(json.dumps(SIDES[args.side](args.num, args.seconds, args.workers)))
        return
    sizes = QUICK if args.quick else SIZES
    empty = {side: {num: _measure(args, side, num, 0.0) for num in sizes[side]} for side in SIDES}
    busy = {side: _measure(args, side, WORK, args.seconds) for side in ("ours", "tune", "optuna")}
    (num,) = sizes["tune"]
    ours, baseline = empty["ours"][num]["ms"], empty["tune"][num]["ms"]
    own = empty["own"][max(size for size in sizes["own"] if size <= 1000)]["ms"]
    Result(
        ratio=baseline / ours,
        ours=ours,
        baseline=baseline,
        unit="ms/trial",
        device=device_name("cpu"),
        parts={
            "own_ms": own,
            "tune_ms": ours - own,
            "empty": empty,
            "busy": busy,
            "setting": {"seconds": args.seconds, "workers": args.workers, "load": psutil.getloadavg()[0]},
        },
    ).print(args.json)


def _parse() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=1.0, help="of a trial that works (it sleeps), for the share of time")
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    made.add_argument("--num", type=int, default=100, help=argparse.SUPPRESS)
    return made.parse_args()


def _measure(args: argparse.Namespace, side: str, num: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.engine", "--side", side, "--num", str(num), "--seconds", str(seconds)]
    command += ["--workers", str(args.workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} {num}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if not args.json:
        print(f"{side:7} {num:6} " + "  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    return found


def _sweep(num: int, folder: Path) -> Any:
    """`num` jobs, more or less: an arm is a fine-tuning, a sampling and one evaluation."""
    from ddgd_ray.spec.load import Document
    from ddgd_ray.spec.sweep import check_sweep

    arms = max(1, num // JOBS_OF_ARM)
    asked = {
        "name": "noop",
        "preset": "digits",
        "vary": {"finetune.lambda_g": tuple(round(0.001 * (1 + place), 6) for place in range(arms))},
        "seeds": {"distill": (0,), "evaluate": (0,)},
        "evaluate": {"networks": ("convnet3_slim",), "ipc": (2,)},
    }
    return check_sweep(Document(asked, "noop.yaml"), folder, {})


def _noop(job: Any, store: Any, resources: Any, publish: Any = None, *, stop_file: Any = None, seconds: float = 0.0) -> Any:
    """What a worker does: sleep, then publish empty artifacts."""
    from ddgd_ray.plan.jobs import Outcome

    started = time.time()
    time.sleep(seconds)
    for call in job.calls:
        with store.scratch(call.key) as out:
            (out / "curves.jsonl").write_text("")
            store.publish(out, call.spec, call.input_keys(), {"val_top1": 0.5, "top1_last": 0.5}, 1.0)
    if seconds:
        _note(store.root.parent / STEPS, started)
    return Outcome(seconds=time.time() - started)


def _note(folder: Path, started: float) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{started:.6f}").write_text(f"{started} {time.time()}")


def _own(num: int, seconds: float, workers: int) -> dict[str, float]:
    """Conductor, admission, ledger and store, in this process."""
    from ddgd_ray.cluster.admission import Admission
    from ddgd_ray.cluster.placement import Node

    publish_s = 0.0

    def execute(conductor: Any, store: Any, resources: Any) -> None:
        nonlocal publish_s
        admission = Admission([Node("here", {"CPU": workers, "memory": 8e9})], resources)
        while not conductor.is_finished:
            admission.retain(conductor.jobs.running)
            job = conductor.next(admission.fits)
            started = time.perf_counter()
            outcome = _noop(job, store, resources)
            publish_s += time.perf_counter() - started
            conductor.ended(job.id, outcome)

    found = _run_ours(num, 0.0, workers, execute)
    return {**found, "publish_ms": 1000 * publish_s / num}


def _ours(num: int, seconds: float, workers: int) -> dict[str, float]:
    """The same jobs as trials of Ray Tune."""
    from functools import partial

    from ddgd_ray.cluster.connect import SETTINGS
    from ddgd_ray.cluster.tune import run_with_tune

    submitted = time.time()
    _start_ray(workers, SETTINGS)

    def execute(conductor: Any, store: Any, resources: Any) -> None:
        run_with_tune(conductor, store, resources, work=partial(_noop, seconds=seconds))

    return _run_ours(num, seconds, workers, execute, submitted)


def _run_ours(num: int, seconds: float, workers: int, execute: Any, submitted: float = 0.0) -> dict[str, float]:
    from ddgd_ray.conduct.sweep import run_sweep

    with tempfile.TemporaryDirectory() as folder:
        sweep = _sweep(num, Path(folder))
        rss_before, cpu_before, started = _rss_mb(), time.process_time(), time.perf_counter()
        result = run_sweep(sweep, Path(folder), execute)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
        assert result.exit_code == 0, result.causes
        found = _found(wall_s, result.num_ran, workers, Path(folder) / STEPS, submitted)
        return found | {"cpu_ms": 1000 * cpu_s / num, "rss_growth_mb": _rss_mb() - rss_before}


def _rss_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _tune(num: int, seconds: float, workers: int) -> dict[str, float]:
    """Ray Tune as its guide shows it: a function trainable, nothing else said."""
    submitted = time.time()
    _start_ray(workers, {})
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:

        def trainable(config: dict[str, Any]) -> None:
            started = time.time()
            time.sleep(seconds)
            if seconds:
                _note(Path(folder) / STEPS, started)
            tune.report({"score": config["x"]})

        tuner = tune.Tuner(
            trainable,
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=num),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        started = time.perf_counter()
        results = tuner.fit()
        wall_s = time.perf_counter() - started
        assert not results.errors, results.errors
        return _found(wall_s, num, workers, Path(folder) / STEPS, submitted)


def _optuna(num: int, seconds: float, workers: int) -> dict[str, float]:
    """Optuna's way to several processes: one study in a database, each process takes its part of the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    submitted = time.time()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/study.db"
        optuna.create_study(storage=url, study_name="noop")
        started = time.perf_counter()
        parts = [num // workers + (place < num % workers) for place in range(workers)]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.starmap(_optimize, [(url, part, seconds, folder) for part in parts], chunksize=1)
        wall_s = time.perf_counter() - started
        return _found(wall_s, num, workers, Path(folder) / STEPS, submitted)


def _optimize(url: str, num: int, seconds: float, folder: str) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: Any) -> float:
        started = time.time()
        trial.suggest_float("x", 0, 1)
        time.sleep(seconds)
        if seconds:
            _note(Path(folder) / STEPS, started)
        return 0.0

    optuna.load_study(storage=url, study_name="noop").optimize(objective, n_trials=num)


def _start_ray(workers: int, settings: dict[str, str]) -> None:
    import os

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.update(settings)
    import ray

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _found(wall_s: float, num: int, workers: int, steps: Path, submitted: float) -> dict[str, float]:
    found = {"ms": 1000 * wall_s / num, "rss_mb": _rss_mb()}
    if steps.is_dir():
        spans = [tuple(map(float, path.read_text().split())) for path in steps.iterdir()]
        first = min(start for start, _ in spans)
        worked_s = sum(end - start for start, end in spans)
        found |= {
            "first_step_s": first - submitted,
            "share": worked_s / workers / (time.time() - submitted),
            "share_from_first_step": worked_s / workers / (max(end for _, end in spans) - first),
        }
    return found


SIDES = {"own": _own, "ours": _ours, "tune": _tune, "optuna": _optuna}

if __name__ == "__main__":
    main()
