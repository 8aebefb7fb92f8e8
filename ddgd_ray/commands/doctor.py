"""Look for everything that a sweep needs before it starts: `doctor`."""

import argparse
import json
import os
from typing import TYPE_CHECKING

from ddgd_ray.commands.output import absolute, given_url, run_dir_of, sweep_file
from ddgd_ray.errors import SpecError, SpecErrors

if TYPE_CHECKING:
    from ddgd_ray.doctor.finding import Finding
    from ddgd_ray.spec.preset import Preset
    from ddgd_ray.spec.sweep import Sweep


def add_doctor(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "file", type=sweep_file, nargs="?", metavar="FILE", help="a sweep file: its preset and what its jobs ask for"
    )
    added.add_argument("--preset", help="whose images and weights to check")
    added.add_argument(
        "--images", type=lambda text: str(absolute(text)), metavar="FOLDER", help="images of your own, with FILE"
    )
    added.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override, e.g. images.root=FOLDER")
    added.add_argument("--address", help="a ray cluster, HOST:PORT or auto")
    added.add_argument("--tracking-uri", help="MLflow server or database (default: RUN_DIR/mlflow.db)")
    added.add_argument("--fast", action="store_true", help="do not decode the images")
    added.add_argument("--json", action="store_true")


def doctor_command(args: argparse.Namespace) -> int:
    from ddgd_ray.doctor.inputs import check_images, check_sets, check_weights
    from ddgd_ray.doctor.local_ray import check_local_ray
    from ddgd_ray.doctor.machine import check_cores, check_gpus, check_memory, check_packages
    from ddgd_ray.doctor.services import check_ray, check_tracking
    from ddgd_ray.doctor.storage import check_run_dir, check_token, check_url
    from ddgd_ray.tracking.tracker import uri_of

    preset, sweep = _asked(args)
    spec = sweep.spec if sweep is not None else None
    resources = spec.resources if spec is not None else None
    run_dir = run_dir_of(args)  # of a URL, the local folder with MLflow's database
    address = args.address or os.environ.get("RAY_ADDRESS") or None
    address = None if address == "local" else address
    found: list[Finding] = []

    def tell(findings: "list[Finding]") -> None:
        found.extend(findings)
        if not args.json:
            for finding in findings:
                print(finding.line(), flush=True)

    tell(check_packages())
    tell(check_cores(resources))
    tell(check_memory())
    tell(check_gpus(resources))
    url = given_url(args)
    if url:
        tell(check_url(url))
    else:
        keeps_tracking = not (args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        tell(check_run_dir(run_dir, is_on_cluster=address is not None, keeps_tracking=keeps_tracking))
    tell(check_token())
    if address is not None:
        tell(check_ray(address))
    else:
        tell(check_local_ray())
    source = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") and not args.tracking_uri else ""
    tell(check_tracking(uri_of(args.tracking_uri, run_dir), source=source))
    if sweep is not None:
        tell(_traps_of(sweep))
    if preset is not None:
        tell(check_images(preset.images, decodes=not args.fast))
        tell(check_weights(preset))
        tell(check_sets(spec.sets if spec is not None else {}, preset.images))
    counts = {level: sum(finding.level == level for finding in found) for level in ("PASS", "WARN", "FAIL")}
    if args.json:
        print(json.dumps({"ok": not counts["FAIL"], "counts": counts, "findings": [finding.as_json() for finding in found]}))
    else:
        print(", ".join(f"{count} {level}" for level, count in counts.items()))
    return 5 if counts["FAIL"] else 0


def _traps_of(sweep: "Sweep") -> "list[Finding]":
    """What the sweep would be refused for, or warned of, as findings."""
    from ddgd_ray.doctor.finding import Finding, passed
    from ddgd_ray.plan.traps import traps

    found = traps(sweep)
    if not found:
        return [passed("sweep", "it can give what it asks for")]
    return [
        Finding("sweep", "FAIL" if trap.level == "refuse" else "WARN", f"{trap.where}: {trap.what}", trap.fix) for trap in found
    ]


def _asked(args: argparse.Namespace) -> "tuple[Preset | None, Sweep | None]":
    """The preset to check, if one is named, and the sweep, if its file is given."""
    from ddgd_ray.commands.init import own_images
    from ddgd_ray.commands.sweeps import _overrides
    from ddgd_ray.spec.preset import build_preset, read_preset, with_overrides
    from ddgd_ray.spec.sweep import read_sweep

    overrides = _overrides(args)
    if args.file is not None:
        preset_name, overrides = own_images(args, overrides)
        sweep = read_sweep(args.file, overrides, preset_name)
        return sweep.preset_with({}), sweep
    if args.preset is None:
        if overrides:
            raise SpecError("of which preset?", where="--set", fix="add --preset NAME, or give a sweep file")
        return None, None
    errors: list[SpecError] = []
    placed = {path: (value, "--set") for path, value in overrides.items()}
    document = with_overrides(read_preset(args.preset, "--preset"), placed, errors)
    preset = build_preset(document, errors) if not errors else None
    if preset is None:
        raise SpecErrors(errors)
    return preset, None
