"""Run: `sweep`, `evaluate`."""

import argparse
import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ddgd_ray.commands.output import absolute, echo, run_dir_of
from ddgd_ray.errors import DdgdError, SpecError, StageError

if TYPE_CHECKING:
    from ddgd_ray.conduct.conductor import Conductor
    from ddgd_ray.conduct.sweep import Result
    from ddgd_ray.plan.trap import Trap
    from ddgd_ray.run.reading import Run
    from ddgd_ray.spec.sweep import Sweep
    from ddgd_ray.storage.store import Store

TRACKER_WAIT_S = 9.0
# how sets of images of one's own are judged unless told otherwise: as in the published tables
PUBLISHED = {
    "images.size": 256,
    "evaluate.protocol": "idc",
    "reference.network": "resnet18_bn",
    "reference.protocol": "teacher",
}
STOPPED = {
    "interrupted": "interrupted: everything finished is kept; run the same command again to continue",
    "failures": "stopped: too many jobs failed (resources.max_failed_share)",
    "budget": "stopped: the budget is spent; everything finished is kept. Raise it and run the same command again to continue",
}


def read(args: argparse.Namespace) -> "Sweep":
    from ddgd_ray.commands.init import own_images
    from ddgd_ray.spec.sweep import read_sweep

    preset, overrides = own_images(args, _overrides(args))
    return read_sweep(args.file, overrides, preset)


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


def run_sweep_command(args: argparse.Namespace) -> int:
    return _run(read(args), args)


def evaluate_command(args: argparse.Namespace) -> int:
    from ddgd_ray.inputs.setfolder import class_folders, set_files
    from ddgd_ray.spec.judging import common_ipc, sweep_of_sets
    from ddgd_ray.spec.preset import read_preset

    overrides = _overrides(args)
    paths = [str(absolute(path)) for path in args.paths]
    if not args.preset:
        if not args.real:
            fix = "--preset imagewoof, or --real FOLDER for images of your own"
            raise SpecError("what are the real images that the classifiers are tested on?", where="ddgd-ray evaluate", fix=fix)
        overrides.setdefault("images.classes", tuple(class_folders(Path(paths[0]))))
    if args.real:
        overrides["images.root"] = str(absolute(args.real))
    if args.protocol:
        overrides["evaluate.protocol"] = args.protocol
    preset = args.preset or "imagefolder"
    if not args.preset:
        for path, value in PUBLISHED.items():
            overrides.setdefault(path, value)
    ipc = args.ipc
    if not ipc:
        classes = overrides.get("images.classes") or read_preset(preset).data["images"]["classes"]
        counts = {common_ipc(set_files(Path(path), classes)) for path in paths}
        if len(counts) > 1 or 0 in counts:
            raise _unequal(paths, tuple(classes))
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
    args.amend = True  # another control or seed in the same command: what is done stays
    return _run(sweep, args)


def _unequal(paths: Sequence[str], classes: tuple[str, ...]) -> DdgdError:
    """The error of sets whose classes have different numbers of images. Files that are no images may be why: first."""
    from ddgd_ray.inputs.fingerprints import set_source
    from ddgd_ray.inputs.notes import set_notes
    from ddgd_ray.inputs.setfolder import set_files

    lines = []
    for path in paths:
        try:
            set_source(Path(path), classes)
        except DdgdError as err:
            return err
        counts = {name: len(files) for name, files in set_files(Path(path), classes).items()}
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        lines += [f"    {path}: {few} has {counts[few]}, {many} has {counts[many]}"]
        lines += [f"    {note.what}" for note in set_notes(Path(path), classes)]
    what = "\n".join(["the classes have different numbers of images:", *lines])
    return StageError(what, code="data-missing", where="ddgd-ray evaluate", fix="say how many to use: --ipc N")


def _run(sweep: "Sweep", args: argparse.Namespace) -> int:
    from rich.console import Console

    from ddgd_ray.conduct.sweep import run_sweep
    from ddgd_ray.conduct.work import run_in_process
    from ddgd_ray.redact import redact
    from ddgd_ray.run.folder import RunFolder, open_store
    from ddgd_ray.run.warned import write_warnings
    from ddgd_ray.tracking import tracker
    from ddgd_ray.watch.view import LiveView, PlainView, machine_busy_s

    if args.min_nodes > 1 and (args.address or os.environ.get("RAY_ADDRESS") or "local") == "local":
        raise SpecError("no node joins a ray of this machine alone", where="--min-nodes", fix="--address HOST:PORT, or auto")
    runtime_env = None
    if args.runtime_env is not None:
        from ddgd_ray.cluster.connect import read_runtime_env

        runtime_env = read_runtime_env(args.runtime_env)
    if not args.no_tracking:
        tracker.refuse_unfit(args.tracking_uri)
    if args.executor == "ray":
        from ddgd_ray.cluster.connect import look_ahead

        look_ahead(args.address, sweep.spec.resources)
    warnings = _look_ahead(sweep, args)  # before anything is written
    run_dir = run_dir_of(args)
    folder = RunFolder(run_dir, sweep.spec.name)
    folder.prepare()
    _log_to(folder.path / "sweep.log")
    write_warnings(folder.path, warnings)
    for trap in warnings:
        echo(trap.line())
        logging.getLogger(__name__).warning("%s: %s", trap.where, trap.what)
    console = Console()
    view: LiveView | PlainView = LiveView(console) if console.is_terminal else PlainView(echo)

    def execute(conductor: "Conductor", store: Any, resources: Any) -> None:
        if args.executor == "local":
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as Ray's workers have it; torch is not imported yet
            run_in_process(conductor, store, resources)
            return
        from ddgd_ray.cluster.tune import run_with_tune

        run_with_tune(conductor, store, resources, args.address, runtime_env, min_nodes=args.min_nodes)

    shipper = None
    uri = tracker.uri_of(args.tracking_uri, run_dir)

    def on_start(conductor: "Conductor") -> None:
        nonlocal shipper
        _drain_on_signal(conductor)
        if not args.no_tracking and (not conductor.is_finished or tracker.waiting(folder)):
            shipper = tracker.start_shipper(folder, uri)
        view.start(conductor)

    started, busy_before = time.monotonic(), machine_busy_s()
    try:
        result = run_sweep(
            sweep, run_dir, execute, amend=args.amend, force_unlock=args.force_unlock, emit=view.event, on_start=on_start
        )
    finally:
        view.stop()
    seconds = time.monotonic() - started
    _finish(result, open_store(run_dir), seconds, busy_share=(machine_busy_s() - busy_before) / seconds / (os.cpu_count() or 1))
    if shipper is not None:
        undelivered = tracker.close(folder, shipper, TRACKER_WAIT_S)
        if undelivered:
            echo(f"warning: {undelivered}\n  help: send what waits with: ddgd-ray mlflow sync {shlex.quote(str(folder.path))}")
            if args.tracking_required and result.exit_code in (0, 3):
                return 5
        else:
            echo(f"MLflow    {redact(uri)}")
    return result.exit_code


def _look_ahead(sweep: "Sweep", args: argparse.Namespace) -> "list[Trap]":
    """What the sweep is warned of. Raises SpecErrors for what cannot give a table, StageError for missing data or weights."""
    from ddgd_ray.doctor.machine import seen_gpus
    from ddgd_ray.inputs.notes import input_notes
    from ddgd_ray.plan.plan import plan_controls
    from ddgd_ray.plan.trap import Trap
    from ddgd_ray.plan.traps import refuse

    plan_controls(sweep)
    found = refuse(sweep)
    if args.executor == "local" and sweep.spec.resources.gpus and not seen_gpus():  # with Ray, the cluster's own check says it
        where = sweep.source.where(("resources", "gpus"))
        fix = "set resources.gpus: 0, or join a cluster with --address"
        raise StageError("jobs ask for a GPU, and this machine has none", code="no-gpu", where=where, fix=fix)
    notes = [Trap(note.code, "warn", note.where, note.what, note.fix) for note in input_notes(sweep)]
    return [*found, *notes]


def _finish(result: "Result", store: "Store", seconds: float, busy_share: float) -> None:
    from ddgd_ray.run.reading import read_run

    run = read_run(result.folder.path, store)
    for cause in result.causes:
        echo(cause)
    if run.rows:
        _tell_results(run, with_page=bool(result.num_ran))
    else:
        echo("no evaluation has finished: there is no table yet")
    busy = f", this machine's cores {busy_share:.0%} busy" if result.num_ran else ""
    echo(f"this run  {result.num_ran} jobs in {seconds:.0f} s{busy}")
    echo(f"store     {store}")
    result.folder.remote_copy.push()
    if result.note:
        echo(f"search    {result.note}")
    if result.failed:
        echo(f"failed    {', '.join(record.trial.name for record in result.failed)}")
    if result.stop_reason:
        echo(STOPPED[result.stop_reason])


def _tell_results(run: "Run", with_page: bool) -> None:
    from ddgd_ray.report.build import write_report
    from ddgd_ray.run.results import stage_costs

    report = write_report(run.path, run.store, with_page=with_page)
    echo("\n" + report.brief)
    costs = [f"{cost.stage} {cost.count} x {cost.seconds / cost.count:.1f} s" for cost in stage_costs(run.trials, run.store)]
    echo(f"stages    {', '.join(costs)}")
    echo(f"tables    {report.tables[0]} (.tex, .csv), with comparisons and quality\nresults   {report.results}")
    if report.page:
        echo(f"page      {report.page}")
    if report.pictures:
        echo(f"pictures  {run.path / 'report'}/grid-*.png ({len(report.pictures)})")


def _drain_on_signal(conductor: "Conductor") -> None:
    """Let the first SIGINT, SIGTERM or SIGHUP tell running jobs to keep what they have and stop, and after resources.grace_s
    those too that lose it, even while the sweep drains for its budget. A second one leaves at once, other than SIGHUP: of a
    terminal that is closed there may be several. The store is consistent either way.
    """
    is_second = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_second
        if is_second and number == signal.SIGHUP:
            return
        if is_second:
            os._exit(128 + number)
        is_second = True
        conductor.stop("interrupted")
        timer = threading.Timer(conductor.sweep.spec.resources.grace_s, conductor.folder.order_stop, kwargs={"now": True})
        timer.daemon = True
        timer.start()
        logging.getLogger(__name__).warning("signal %d: stopping once running jobs kept what they have; twice: at once", number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, handle)


def _log_to(path: Path) -> None:
    """Everything that libraries log goes to the run's file; the terminal belongs to us."""
    from ddgd_ray.redact import RedactingFormatter

    handler = logging.FileHandler(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ray = logging.getLogger("ray")
    ray.addHandler(handler)
    ray.propagate = False
    logging.captureWarnings(True)
