"""The command line: the parser and the exit codes. Its commands are in commands/; these and nothing else print."""

import argparse
import errno
import sys
import traceback
from pathlib import Path
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.commands.ablations import ablations_command, add_ablations
from ddgd_ray.commands.arguments import Count, Parser, amount
from ddgd_ray.commands.display import is_full, safe_display
from ddgd_ray.commands.doctor import add_doctor, doctor_command
from ddgd_ray.commands.exports import export_command, export_model_command
from ddgd_ray.commands.init import add_init, init_command
from ddgd_ray.commands.models import pretrain_command
from ddgd_ray.commands.output import absolute, sweep_file
from ddgd_ray.commands.plans import plan_command
from ddgd_ray.commands.records import status_command, stop_command, sync_command
from ddgd_ray.commands.reports import compare_command, report_command
from ddgd_ray.commands.show import add_show, show_command
from ddgd_ray.commands.stores import store_command
from ddgd_ray.commands.submit import add_submit, split_options, submit_command
from ddgd_ray.commands.sweeps import evaluate_command, run_sweep_command
from ddgd_ray.commands.ui import add_ui, ui_command
from ddgd_ray.errors import DdgdError
from ddgd_ray.redact import redact

EPILOG = (
    "exit codes: 0 done, 2 wrong usage or configuration, 3 some trials failed, 4 too many failed, 5 data, weights or storage "
)
EPILOG += "missing, 6 store or run locked or damaged, 7 budget spent, 75 interrupted: run the same command again, "
EPILOG += "130, 143 left at once"

TRACKING_URI = "MLflow server or database; passwords go into $MLFLOW_TRACKING_URI, the default, else RUN_DIR/mlflow.db"


SEED = Count(0, 2**32 - 1)
WORKS = (run_sweep_command, evaluate_command, export_command, export_model_command, sync_command, pretrain_command)
"""Commands that do work besides showing something: a display that is full fails none of them."""


def main(argv: list[str] | None = None) -> None:
    words, options = split_options(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    with safe_display() as out:
        args = parser.parse_args(words)
        if args.run is submit_command:  # the sweep's own options are checked now, not when the job starts
            args.options, args.sweep = options, parser.parse_args(["sweep", str(args.file), *options])
        code = _run(args)
        out.flush()
        if is_full(out) and args.run not in WORKS and not code:  # showing it was all there was to do
            print(f"error[output]: standard output: {out.lost}\n  help: make room where it goes", file=sys.stderr)
            code = 5
    sys.exit(code)


def _run(args: argparse.Namespace) -> int:
    """The exit code of a command. What is printed of its errors, and of ours, holds no secret."""
    try:
        return int(args.run(args))
    except DdgdError as err:
        print(redact(str(err)), file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as err:
        if isinstance(err, OSError) and err.errno == errno.ENAMETOOLONG:  # whatever command was given such a path
            print(_too_long(redact(str(err.filename))), file=sys.stderr)
            return 2
        print(redact(traceback.format_exc()), file=sys.stderr)
        return 1


def _too_long(path: str) -> str:
    where = f"{path[:60]}...{path[-20:]}"
    return f"error[path]: {where}: a name is longer than the file system allows\n  help: give a shorter path"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ddgd-ray", description=__doc__, epilog=EPILOG)
    parser.description = "Ablation and hyperparameter engine for diversity-driven generative dataset distillation."
    parser.add_argument("--version", action="version", version=f"ddgd-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--run-dir", help="folder of runs, store and tracking database, or a URL s3://... (default: runs)")
        return added

    def takes_sweep(added: argparse.ArgumentParser, **options: Any) -> None:
        added.add_argument("file", type=sweep_file, **options, help="a sweep file, e.g. ablations/memory.yaml")
        added.add_argument("--preset", help="run the file on another data set")
        added.add_argument(
            "--images", type=lambda text: str(absolute(text)), metavar="FOLDER", help="run the file on images of your own"
        )
        added.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, e.g. finetune.steps=500"
        )

    def runs(added: argparse.ArgumentParser) -> None:
        added.add_argument("--address", help="a ray cluster, HOST:PORT or auto (default: this machine)")
        added.add_argument("--min-nodes", type=Count(0), default=0, metavar="N", help="begin when so many run jobs")
        added.add_argument(
            "--runtime-env", type=Path, metavar="FILE", help="of the workers, as Ray takes it: env_vars, pip, ..."
        )
        added.add_argument("--executor", choices=("ray", "local"), default="ray", help="local: one job at a time, without ray")
        added.add_argument("--amend", action="store_true", help="continue a run with more seeds, networks, values or trials")
        added.add_argument("--force-unlock", action="store_true", help="the driver on another host that held this run is gone")
        added.add_argument("--tracking-uri", help=TRACKING_URI)
        tracking = added.add_mutually_exclusive_group()
        tracking.add_argument("--no-tracking", action="store_true", help="do not write to MLflow")
        tracking.add_argument("--tracking-required", action="store_true", help="exit 5 when MLflow lacks something at the end")

    add_init(command("init", init_command, "look at a folder of images and write a sweep file that suits it and this machine"))
    sweep = command("sweep", run_sweep_command, "run a sweep, or continue it: finished stages are not repeated")
    takes_sweep(sweep)
    runs(sweep)
    evaluate = command("evaluate", evaluate_command, "train classifiers on a ready-made set, whoever made it, and test them")
    _takes_sets(evaluate)
    runs(evaluate)
    plan = command("plan", plan_command, "show trials, stages, keys, hits and misses, seconds and disk; runs nothing")
    takes_sweep(plan)
    plan.add_argument("--cores", type=amount, default=0, metavar="N", help="of the machine or cluster (default: this one's)")
    plan.add_argument("--gpus", type=amount, default=0, metavar="N", help="the same (default: what one job holds)")
    plan.add_argument("--measure", action="store_true", help="time a few steps of each missing stage on this machine first")
    plan.add_argument("--calibration", type=absolute, metavar="FILE", help="rates of another machine")
    plan.add_argument(
        "--write-calibration", type=absolute, metavar="FILE", help="write down the rates of this run folder's store"
    )
    plan.add_argument("--recipe-diff", action="store_true", help="print where the settings differ from the published scripts")
    plan.add_argument("--json", action="store_true")
    show = command("show", show_command, "every setting of a sweep file as it will be used, and where it comes from")
    takes_sweep(show, nargs="?")
    add_show(show)
    status = command("status", status_command, "what is done, running and left of a run")
    status.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    status.add_argument("--watch", action="store_true", help="draw it anew until the sweep ends")
    status.add_argument("--json", action="store_true")
    stop = command("stop", stop_command, "tell a running sweep to keep what it has and stop; the same command continues it")
    stop.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    stop.add_argument("--now", action="store_true", help="classifiers and the like do not run to their end either")
    report = command("report", report_command, "write tables, pictures and a page of a run from the store")
    report.add_argument("run_folder", type=absolute, metavar="RUN", nargs="+", help="runs/NAME")
    report.add_argument("--to", type=absolute, metavar="FOLDER", help="write here (default: RUN/report)")
    report.add_argument("--all-pictures", action="store_true", help="of every arm, not of the best dozen alone")
    report.add_argument(
        "--verify", action="store_true", help="write nothing: check every hash, key and number behind the report"
    )
    help_ = "decode what the best arms' memories held; takes torch, and a store that can be written, the first time"
    report.add_argument("--memories", action="store_true", help=help_)
    compare = command("compare", compare_command, "two sweeps side by side: arms by name, paired differences, settings")
    compare.add_argument("first", type=absolute, metavar="RUN_A")
    compare.add_argument("second", type=absolute, metavar="RUN_B")
    compare.add_argument("--html", type=absolute, metavar="FILE", help="write it as a page too")
    tracking = commands.add_parser("mlflow", help="send results to MLflow").add_subparsers(required=True, metavar="COMMAND")
    text = "send what waits in the outbox to MLflow, and what it refused before; sending twice changes nothing"
    sync = tracking.add_parser("sync", help=text, description=text)
    sync.set_defaults(run=sync_command)
    sync.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    sync.add_argument("--tracking-uri", help=TRACKING_URI)
    sync.add_argument("--follow", type=int, default=0, metavar="PID", help=argparse.SUPPRESS)
    store = command("store", store_command, "compare all artifacts with their manifests, or remove what nobody will use again")
    store.add_argument("action", choices=("verify", "gc"))
    store.add_argument("--damaged", action="store_true", help="gc: also what was set aside as damaged")
    _takes_export(
        command("export", export_command, "write a set of a run as a data set for others: the best arm's, or a named one's")
    )
    model = command("export-model", export_model_command, "write a fine-tuned model as a plain diffusers DiTPipeline folder")
    model.add_argument(
        "what", metavar="KEY_OR_RUN", help="runs/NAME, or a finetune key or its first digits, as `plan` shows them"
    )
    model.add_argument("to", type=absolute, metavar="FOLDER")
    _takes_arm(model)
    model.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged over the steps, or the last ones")
    add_submit(command("submit", submit_command, "write the files that give a sweep to Slurm, Kubernetes or ray up"))
    add_doctor(
        command("doctor", doctor_command, "is everything there that a sweep needs? one remedy for each thing that is not")
    )
    add_ablations(command("ablations", ablations_command, "list the sweep files that come with the package, or copy them"))
    add_ui(command("ui", ui_command, "show runs in MLflow's own pages, on this machine alone; Ctrl-C ends it"))
    pretrain = command("pretrain", pretrain_command, "train a preset's autoencoder and backbone")
    pretrain.add_argument("preset")
    pretrain.add_argument("--bundle", action="store_true", help="put them into the package (maintainers)")
    return parser


def _takes_export(added: argparse.ArgumentParser) -> None:
    added.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    text = "imagefolder: PNGs in class folders; hf: Parquet for `datasets`; webdataset: tar shards"
    added.add_argument("--format", choices=("imagefolder", "hf", "webdataset"), required=True, help=text)
    _takes_arm(added)
    added.add_argument("--ipc", type=Count(0), default=0, metavar="K", help="the first K images of each class (default: all)")
    added.add_argument(
        "--to", type=absolute, metavar="PATH", help="a new or empty folder, or a new file (default: in RUN/export)"
    )
    added.add_argument("--archive", action="store_true", help="one tar file, the same bytes whenever and wherever it is made")


def _takes_arm(added: argparse.ArgumentParser) -> None:
    added.add_argument("--arm", default="", metavar="NAME", help="default: the best arm by the run's objective")
    added.add_argument("--seed", type=SEED, metavar="N", help="distillation seed (default: the arm's first)")


def _takes_sets(added: argparse.ArgumentParser) -> None:
    added.add_argument("paths", nargs="+", metavar="PATH", help="a folder of class folders; several: seeds of one method")
    added.add_argument("--preset", default="", help="whose classes and real images; default: those of --real")
    added.add_argument("--real", default="", metavar="FOLDER", help="the real images: train/CLASS and val/CLASS")
    added.add_argument("--protocol", default="", help="idc, rded, ... (default: the preset's)")
    added.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="default: by the size of the images")
    added.add_argument("--ipc", nargs="+", type=Count(1), default=[], metavar="N", help="default: all images of a class")
    added.add_argument("--seeds", nargs="+", type=SEED, default=[0, 1, 2], metavar="N", help="of the classifiers")
    added.add_argument("--controls", nargs="+", default=[], metavar="NAME", help="random_real, herding, full_data, ...")
    added.add_argument("--quality", nargs="+", default=[], metavar="SPACE", help="latents, network")
    added.add_argument("--also", nargs="+", default=[], metavar="PROTOCOL", help="further protocols, e.g. noaug")
    added.add_argument("--name", default="", help="of the run folder and the table's line (default: the folder's name)")
    added.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")


if __name__ == "__main__":
    main()
