"""The command line: the only file that prints or exits."""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ddgd_ray import __version__
from ddgd_ray.errors import DdgdError, SpecError

if TYPE_CHECKING:
    from ddgd_ray.engine.conductor import Conductor
    from ddgd_ray.engine.sweep import Result
    from ddgd_ray.spec.sweep import Sweep

TRACKER_WAIT_S = 10.0
EPILOG = (
    "exit codes: 0 done, 2 wrong usage or configuration, 3 some trials failed, 4 too many failed, 5 data, weights or storage "
)
EPILOG += "missing, 6 store or run locked or damaged, 75 interrupted: run the same command again, 130 left at once"


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    try:
        code = args.run(args)
    except DdgdError as err:
        print(err, file=sys.stderr)
        code = err.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ddgd-ray", description=__doc__, epilog=EPILOG)
    parser.description = "Ablation and hyperparameter engine for diversity-driven generative dataset distillation."
    parser.add_argument("--version", action="version", version=f"ddgd-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--run-dir", type=Path, help="folder of runs, store and tracking database (default: runs)")
        return added

    def takes_sweep(added: argparse.ArgumentParser) -> None:
        added.add_argument("file", type=Path, help="a sweep file, e.g. ablations/memory.yaml")
        added.add_argument("--preset", help="run the file on another data set")
        added.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, e.g. finetune.steps=500"
        )

    def runs(added: argparse.ArgumentParser) -> None:
        added.add_argument("--address", help="a ray cluster, HOST:PORT or auto (default: this machine)")
        added.add_argument("--executor", choices=("ray", "local"), default="ray", help="local: one job at a time, without ray")
        added.add_argument("--tracking-uri", help="MLflow server or database (default: RUN_DIR/mlflow.db)")
        added.add_argument("--no-tracking", action="store_true", help="do not write to MLflow")

    sweep = command("sweep", run_sweep_command, "run a sweep, or continue it: finished stages are not repeated")
    takes_sweep(sweep)
    runs(sweep)
    evaluate = command("evaluate", evaluate_command, "train classifiers on a ready-made set, whoever made it, and test them")
    _takes_sets(evaluate)
    runs(evaluate)
    takes_sweep(command("plan", plan_command, "show trials, stages, keys, hits and misses; runs nothing"))
    status = command("status", status_command, "what is done, running and left of a run")
    status.add_argument("run_folder", type=_folder, metavar="RUN", help="runs/NAME")
    status.add_argument("--json", action="store_true")
    report = command("report", report_command, "write tables and pictures of a run again from the store")
    report.add_argument("run_folder", type=_folder, metavar="RUN", help="runs/NAME")
    sync = command("sync", sync_command, "send what waits in the outbox to MLflow; sending twice changes nothing")
    sync.add_argument("run_folder", type=_folder, metavar="RUN", help="runs/NAME")
    sync.add_argument("--tracking-uri")
    sync.add_argument("--follow", type=int, default=0, metavar="PID", help=argparse.SUPPRESS)
    export = command("export", export_command, "write a fine-tuned model as a plain diffusers DiTPipeline folder")
    export.add_argument("key", metavar="KEY", help="of a finetune artifact, or its first digits; `ddgd-ray plan` shows them")
    export.add_argument("to", type=_folder, metavar="FOLDER")
    export.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged over the steps, or the last ones")
    pretrain = command("pretrain", pretrain_command, "train a preset's autoencoder and backbone")
    pretrain.add_argument("preset")
    pretrain.add_argument("--bundle", action="store_true", help="put them into the package (maintainers)")
    return parser


def _takes_sets(added: argparse.ArgumentParser) -> None:
    added.add_argument("paths", nargs="+", metavar="PATH", help="a folder of class folders; several: seeds of one method")
    added.add_argument("--preset", default="", help="whose classes and real images; default: those of --real")
    added.add_argument("--real", default="", metavar="FOLDER", help="the real images: train/CLASS and val/CLASS")
    added.add_argument("--protocol", default="", help="idc, rded, ... (default: the preset's)")
    added.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="default: by the size of the images")
    added.add_argument("--ipc", nargs="+", type=int, default=[], metavar="N", help="default: all images of a class")
    added.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of the classifiers")
    added.add_argument("--controls", nargs="+", default=[], metavar="NAME", help="random_real, herding, full_data, ...")
    added.add_argument("--quality", nargs="+", default=[], metavar="SPACE", help="latents, network")
    added.add_argument("--also", nargs="+", default=[], metavar="PROTOCOL", help="further protocols, e.g. noaug")
    added.add_argument("--name", default="", help="of the run folder and the table's line (default: the folder's name)")
    added.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _run_dir(args: argparse.Namespace) -> Path:
    from ddgd_ray.engine.sweep import default_run_dir

    return (args.run_dir or default_run_dir()).expanduser().absolute()


def _read(args: argparse.Namespace) -> "Sweep":
    from ddgd_ray.spec.sweep import read_sweep

    return read_sweep(args.file, _overrides(args), args.preset)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    from ddgd_ray.spec.load import parse_value

    overrides: dict[str, Any] = {}
    for text in args.set:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise SpecError(f"expected PATH=VALUE, got {text!r}", where="--set", fix="e.g. --set finetune.steps=500")
        if path in overrides:
            raise SpecError(f"{path} is given twice", where="--set", fix="remove one of the two")
        overrides[path] = parse_value(value, f"--set {path}")
    return overrides


def plan_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.plan import count_stages
    from ddgd_ray.engine.run_folder import open_store
    from ddgd_ray.engine.sweep import planned_trials

    sweep = _read(args)
    store = open_store(_run_dir(args))
    trials = planned_trials(sweep)
    of_recipe = f", recipe {sweep.spec.recipe}" if sweep.spec.recipe else ""
    print(f"{sweep.spec.name}: preset {sweep.spec.preset}{of_recipe}, {len(trials)} trials")
    if sweep.spec.search:
        search = sweep.spec.search
        print(f"search: up to {search.trials} configurations by {search.algorithm} over {', '.join(sweep.space)},")
        print(f"each at {len(sweep.spec.seeds.distill)} seeds; which ones, the results decide. Planned for certain:")
    print(f"\n{'stage':12} {'hits':>6} {'to run':>6}")
    for count in count_stages(trials, store):
        print(f"{count.stage:12} {count.hits:6} {count.misses:6}")
    print(f"\n{'trial':28} stage key (* published)")
    for trial in trials:
        keys = [f"{call.stage} {call.key[:8]}{'*' if store.has(*call.ref) else ''}" for call in trial.build]
        done = sum(store.has(*item.call.ref) for item in trial.evaluators)
        print(f"{trial.name:28} {'  '.join(keys)}  evaluators {done}/{len(trial.evaluators)}")
    return 0


def run_sweep_command(args: argparse.Namespace) -> int:
    return _run(_read(args), args)


def evaluate_command(args: argparse.Namespace) -> int:
    from ddgd_ray.errors import StageError
    from ddgd_ray.setfolder import class_folders, set_files
    from ddgd_ray.spec.judging import common_ipc, sweep_of_sets
    from ddgd_ray.spec.preset import read_preset

    overrides = _overrides(args)
    paths = [str(_folder(path)) for path in args.paths]
    if not args.preset:
        if not args.real:
            fix = "--preset imagewoof, or --real FOLDER for images of your own"
            raise SpecError("what are the real images that the classifiers are tested on?", where="ddgd-ray evaluate", fix=fix)
        overrides.setdefault("images.classes", tuple(class_folders(Path(paths[0]))))
    if args.real:
        overrides["images.root"] = str(_folder(args.real))
    if args.protocol:
        overrides["evaluate.protocol"] = args.protocol
    preset = args.preset or "imagefolder"
    ipc = args.ipc
    if not ipc:
        classes = overrides.get("images.classes") or read_preset(preset).data["images"]["classes"]
        counts = {common_ipc(set_files(Path(path), classes)) for path in paths}
        if len(counts) > 1 or 0 in counts:
            what = "the classes have different numbers of images"
            raise StageError(what, code="data-missing", where=", ".join(paths), fix="say how many to use: --ipc N")
        ipc = list(counts)
    sweep = sweep_of_sets(
        args.name or Path(paths[0]).name,
        paths,
        preset=preset,
        ipc=ipc,
        seeds=args.seeds,
        overrides=overrides,
        networks=args.networks,
        controls=args.controls,
        quality=args.quality,
        also=args.also,
    )
    return _run(sweep, args)


def _run(sweep: "Sweep", args: argparse.Namespace) -> int:
    from rich.console import Console

    from ddgd_ray.engine import tracker
    from ddgd_ray.engine.plan import plan_controls
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.engine.sweep import run_sweep
    from ddgd_ray.engine.work import run_in_process
    from ddgd_ray.view import LiveView, PlainView, machine_busy_s

    plan_controls(sweep)  # data and weights are looked for before anything is written
    run_dir = _run_dir(args)
    folder = RunFolder(run_dir, sweep.spec.name)
    folder.prepare()
    _log_to(folder.path / "sweep.log")
    console = Console()
    view: LiveView | PlainView = LiveView(console) if console.is_terminal else PlainView(_echo)

    def execute(conductor: "Conductor", store: Any, resources: Any) -> None:
        if args.executor == "local":
            run_in_process(conductor, store, resources)
            return
        from ddgd_ray.engine.ray_tune import run_with_tune

        run_with_tune(conductor, store, resources, args.address)

    shipper = None
    uri = args.tracking_uri or tracker.default_uri(run_dir)

    def on_start(conductor: "Conductor") -> None:
        nonlocal shipper
        _drain_on_signal(conductor)
        if not args.no_tracking and (not conductor.is_finished or tracker.waiting(folder)):
            shipper = tracker.start_shipper(folder, uri)
        view.start(conductor)

    started, busy_before = time.monotonic(), machine_busy_s()
    try:
        result = run_sweep(sweep, run_dir, execute, emit=view.event, on_start=on_start)
    finally:
        view.stop()
    seconds = time.monotonic() - started
    _finish(result, open_store(run_dir), seconds, busy_share=(machine_busy_s() - busy_before) / seconds / (os.cpu_count() or 1))
    if shipper is not None:
        left = tracker.close(folder, shipper, TRACKER_WAIT_S)
        if left:
            _echo(f"warning: {left} trials are not in MLflow yet; send them with: ddgd-ray sync {folder.path}")
        else:
            _echo(f"MLflow    {uri}")
    return result.exit_code


def _finish(result: "Result", store: Any, seconds: float, busy_share: float) -> None:
    from ddgd_ray.report.results import rows_of
    from ddgd_ray.report.write import read_run

    _, records = read_run(result.folder.path)
    for cause in result.causes:
        _echo(cause)
    if rows_of(records, store):
        _tell_results(result.folder.path, records, store)
    else:
        _echo("no evaluation has finished: there is no table yet")
    busy = f", this machine's cores {busy_share:.0%} busy" if result.num_ran else ""
    _echo(f"this run  {result.num_ran} jobs in {seconds:.0f} s{busy}")
    _echo(f"store     {store.root}")
    if result.failed:
        _echo(f"failed    {', '.join(record.trial.name for record in result.failed)}")
    if result.is_interrupted:
        _echo("interrupted: everything finished is kept; run the same command again to continue")
    if result.is_given_up:
        _echo("stopped: too many jobs failed (resources.max_failed_share)")


def _tell_results(path: Path, records: list[dict[str, Any]], store: Any) -> None:
    from ddgd_ray.report.results import stage_costs
    from ddgd_ray.report.write import write_report

    report = write_report(path, store)
    _echo("\n" + report.brief)
    costs = ", ".join(f"{cost.stage} {cost.count} x {cost.seconds / cost.count:.1f} s" for cost in stage_costs(records, store))
    _echo(f"stages    {costs}")
    _echo(f"tables    {report.tables[0]} (.tex, .csv), with comparisons and quality\nresults   {report.results}")
    if report.pictures:
        _echo(f"pictures  {path / 'report'}/grid-*.png ({len(report.pictures)})")


def _drain_on_signal(conductor: "Conductor") -> None:
    """The first SIGINT or SIGTERM lets running jobs end, a second leaves at once; the store is consistent either way."""

    def handle(number: int, frame: FrameType | None) -> None:
        if conductor.is_draining:
            os._exit(128 + number)
        conductor.is_draining = True
        logging.getLogger(__name__).warning("signal %d: stopping; running jobs end first, once more leaves at once", number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def status_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.engine.tracker import waiting
    from ddgd_ray.report.write import read_run

    sweep, records = read_run(args.run_folder)
    store = open_store(args.run_folder.parent)
    states = Counter(record["state"] for record in records)
    evaluators = {item["key"]: store.has(item["stage"], item["key"]) for record in records for item in record["evaluators"]}
    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    status = {
        "name": sweep["name"],
        "preset": sweep["spec"]["preset"],
        "trials": {state: states[state] for state in ("done", "failed", "planned")},
        "evaluations": {"done": sum(evaluators.values()), "known": len(evaluators)},
        "running": store.in_progress(),
        "waiting_for_tracker": len(waiting(folder)),
    }
    if args.json:
        print(json.dumps(status))
        return 0
    for name, value in status.items():
        shown = ", ".join(f"{inner} {count}" for inner, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:20} {', '.join(shown) if isinstance(shown, list) else shown}")
    return 0


def report_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.run_folder import open_store
    from ddgd_ray.report.write import write_report

    report = write_report(args.run_folder, open_store(args.run_folder.parent))
    print(report.markdown)
    for file in (*report.tables, report.results, *report.pictures):
        print(file)
    return 0


def sync_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine import tracker
    from ddgd_ray.engine.run_folder import RunFolder, open_store
    from ddgd_ray.report.write import read_run

    read_run(args.run_folder)
    folder = RunFolder(args.run_folder.parent, args.run_folder.name)
    uri = args.tracking_uri or tracker.default_uri(args.run_folder.parent)
    if args.follow:
        os.nice(10)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep; it closes the outbox when it stops
    left = tracker.ship_all(folder, open_store(args.run_folder.parent), uri, follow_pid=args.follow)
    print(f"{left} trials are left in the outbox" if left else f"all trials are in {uri}")
    return 5 if left else 0


def export_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.run_folder import open_store
    from ddgd_ray.engine.trace import tuned_model

    store = open_store(_run_dir(args))
    tuned = tuned_model(store, args.key)
    from ddgd_ray.stages.export import export_pipeline

    is_same = export_pipeline(
        args.to,
        backbone=tuned.backbone,
        adapter=tuned.adapter,
        autoencoder=tuned.autoencoder,
        weights=args.weights,
        labels=tuned.labels,
    )
    _echo(f"DiTPipeline.from_pretrained({str(args.to)!r})")
    if not is_same:
        _echo("its timesteps are those of DiT's own code: README.md in the folder says what to set after loading")
    return 0


def pretrain_command(args: argparse.Namespace) -> int:
    from ddgd_ray.engine.plan import shared_calls
    from ddgd_ray.engine.run_folder import BUNDLED, open_store
    from ddgd_ray.errors import SpecErrors
    from ddgd_ray.spec.preset import build_preset, read_preset
    from ddgd_ray.stages.base import Context, publish_call

    errors: list[SpecError] = []
    preset = build_preset(read_preset(args.preset), errors)
    if preset is None:
        raise SpecErrors(errors)
    store = open_store(_run_dir(args))
    store.prepare()

    def report(step: int, metrics: Any) -> None:
        if step % 200 == 0:
            _echo(f"  step {step} " + " ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    for call in shared_calls(preset):
        _echo(f"{call.stage} {call.key[:8]}")
        artifact, was_there = publish_call(call, store, Context(report=report, num_threads=os.cpu_count() or 1))
        _echo(f"  {'was there' if was_there else f'{artifact.seconds:.0f} s'}: {artifact.path}")
        if args.bundle and call.stage != "encode" and not artifact.path.is_relative_to(BUNDLED):
            shutil.rmtree(BUNDLED / call.stage, ignore_errors=True)
            shutil.copytree(artifact.path, BUNDLED / call.stage / call.key)
    return 0


def _echo(text: str) -> None:
    print(text, flush=True)


def _log_to(path: Path) -> None:
    """Everything that libraries log goes to the run's file; the terminal belongs to us."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ray = logging.getLogger("ray")
    ray.addHandler(handler)
    ray.propagate = False
    logging.captureWarnings(True)


if __name__ == "__main__":
    main()
