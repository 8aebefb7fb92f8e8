"""The command line: the parser and the exit codes. Its commands are in commands/; these and nothing else print."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ddgd_ray import __version__
from ddgd_ray.commands.models import export_command, pretrain_command
from ddgd_ray.commands.output import absolute
from ddgd_ray.commands.records import report_command, status_command, sync_command
from ddgd_ray.commands.sweeps import evaluate_command, plan_command, run_sweep_command
from ddgd_ray.errors import DdgdError

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
        added.add_argument(
            "--runtime-env", type=Path, metavar="FILE", help="of the workers, as Ray takes it: env_vars, pip, ..."
        )
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
    status.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    status.add_argument("--json", action="store_true")
    report = command("report", report_command, "write tables and pictures of a run again from the store")
    report.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    sync = command("sync", sync_command, "send what waits in the outbox to MLflow; sending twice changes nothing")
    sync.add_argument("run_folder", type=absolute, metavar="RUN", help="runs/NAME")
    sync.add_argument("--tracking-uri")
    sync.add_argument("--follow", type=int, default=0, metavar="PID", help=argparse.SUPPRESS)
    export = command("export", export_command, "write a fine-tuned model as a plain diffusers DiTPipeline folder")
    export.add_argument("key", metavar="KEY", help="of a finetune artifact, or its first digits; `ddgd-ray plan` shows them")
    export.add_argument("to", type=absolute, metavar="FOLDER")
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


if __name__ == "__main__":
    main()
