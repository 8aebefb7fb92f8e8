"""A hundred thousand trials on a thousand GPUs that are only imagined: what the engine itself costs, and if that stays flat.

    python -m benchmarks.scale [--quick] [--json] [--trials 100000] [--gpus 1000] [--run-dir FOLDER]

The planner, the search, the conductor, the store and the books are the real ones; the executor is conduct/virtual.py, where 2 %
of the jobs lose their worker and 5 % are pre-empted. Half-way the driver is told to stop, and a new one continues. A trial is
three jobs (fine-tune, sample, classify). ours and baseline: milliseconds of driver a job in the last and in the first tenth; a
ratio of 1 is flat growth. What workers do, publishing, is timed apart (publish_s). parts: seconds of driver in all, of planning
and of the restart, memory, longest queue, share of the time that GPUs were held.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measure
from ddgd_ray.conduct.conductor import Conductor
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.virtual import VirtualCluster
from ddgd_ray.spec.sweep import read_sweep

SWEEP = """\
name: scale
preset: digits
vary:
  finetune.lambda_r: [{first}]
  finetune.lambda_g: [{second}]
seeds: {{distill: [{seeds}], evaluate: [0]}}
evaluate: {{networks: [convnet3_slim], ipc: [10]}}
resources: {{gpus: 1, max_failures: 5}}
"""
SEEDS = 10
DEATHS, PREEMPTIONS = 0.02, 0.05


def sweep_of(trials: int, folder: Path) -> Any:
    """A grid of about `trials` trials at SEEDS seeds."""
    side = max(2, round((trials / SEEDS) ** 0.5))
    values = [", ".join(f"{(place + 1) * scale:.6g}" for place in range(side)) for scale in (1e-5, 2e-5)]
    path = folder / "scale.yaml"
    path.write_text(SWEEP.format(first=values[0], second=values[1], seeds=", ".join(map(str, range(SEEDS)))))
    return read_sweep(path, {})


class Watch:
    """Seconds, memory and queue after every so many jobs; tells the driver to stop after `stop_after` of them."""

    def __init__(self, stop_after: int = 0) -> None:
        self.started = self.last = time.perf_counter()
        self.planned_s = 0.0
        self.ms: list[float] = []
        self.rss_mb: list[float] = []
        self.queue = 0
        self._stop_after, self._published_s = stop_after, 0.0
        self._process = psutil.Process()

    def begin(self, conductor: Conductor) -> None:
        self.planned_s = time.perf_counter() - self.started
        self.last = time.perf_counter()
        self.queue = len(conductor.jobs.queue)

    def __call__(self, cluster: VirtualCluster, conductor: Conductor) -> None:
        now = time.perf_counter()
        driver_s = now - self.last - (cluster.publish_s - self._published_s)
        self.ms.append(1000 * driver_s / cluster.watch_every)
        self._published_s = cluster.publish_s
        self.rss_mb.append(self._process.memory_info().rss / 1e6)
        self.last = now
        if self._stop_after and cluster.num_ended >= self._stop_after:
            conductor.stop("interrupted")


def run(trials: int, gpus: int, folder: Path) -> measure.Result:
    sweep = sweep_of(trials, folder)
    every = max(50, 3 * trials // 100)
    clusters, watches, results = [], [], []
    for start in range(2):
        watch = Watch(stop_after=3 * trials // 2 if start == 0 else 0)
        cluster = VirtualCluster(gpus, start, DEATHS, PREEMPTIONS, watch, every)
        results.append(run_sweep(sweep, folder, cluster, on_start=watch.begin))
        clusters.append(cluster)
        watches.append(watch)
        watch.planned_s = watch.planned_s or time.perf_counter() - watch.started
    publish_s = sum(cluster.publish_s for cluster in clusters)
    total_s = time.perf_counter() - watches[0].started - publish_s
    ms = [value for watch in watches for value in watch.ms]
    tenth = max(1, len(ms) // 10)
    first, last = sum(ms[:tenth]) / tenth, sum(ms[-tenth:]) / tenth
    num_ended = sum(cluster.num_ended for cluster in clusters)
    num_done = sum(result.num_ran for result in results)
    final = results[-1]
    parts = {
        "trials": len(final.records),
        "jobs_done": num_done,
        "jobs_handed_out": num_ended,
        "deaths": sum(cluster.num_deaths for cluster in clusters),
        "preemptions": sum(cluster.num_preemptions for cluster in clusters),
        "exit_codes": [result.exit_code for result in results],
        "trials_done": sum(record.state == "done" for record in final.records),
        "driver_s": total_s,
        "publish_s": publish_s,
        "driver_ms_a_job": 1000 * total_s / num_ended,
        "planning_s": watches[0].planned_s,
        "restart_s": watches[1].planned_s,
        "rss_mb": [round(value) for watch in watches for value in watch.rss_mb[:: max(1, len(watch.rss_mb) // 5)]],
        "queue_at_start": watches[0].queue,
        "gpus_held": sum(cluster.held_s for cluster in clusters) / sum(gpus * cluster.now_s for cluster in clusters),
        "virtual_hours": sum(cluster.now_s for cluster in clusters) / 3600,
    }
    return measure.Result(
        first / last, last, first, "ms of driver a job, last and first tenth", measure.device_name("cpu"), parts
    )


def main() -> None:
    logging.getLogger("ddgd_ray").setLevel(logging.CRITICAL)  # a line for each death
    parser: argparse.ArgumentParser = measure.parser(__doc__ or "")
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--run-dir", type=Path, help="kept afterwards; default: a temporary folder")
    args = parser.parse_args()
    trials, gpus = (1000, 100) if args.quick else (args.trials, args.gpus)
    if args.run_dir:
        args.run_dir.mkdir(parents=True, exist_ok=True)
        run(trials, gpus, args.run_dir).print(args.json)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(trials, gpus, Path(folder)).print(args.json)


if __name__ == "__main__":
    main()
