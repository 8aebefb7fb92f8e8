"""Models that others start from: `pretrain`."""

import argparse
import os
import shutil
from typing import Any

from ddgd_ray.commands.output import echo, run_dir_of
from ddgd_ray.errors import SpecError


def pretrain_command(args: argparse.Namespace) -> int:
    from ddgd_ray.errors import SpecErrors
    from ddgd_ray.plan.plan import common_calls
    from ddgd_ray.run.folder import BUNDLED, open_store
    from ddgd_ray.spec.preset import build_preset, read_preset
    from ddgd_ray.stages.base import Context
    from ddgd_ray.stages.publish import publish_call

    errors: list[SpecError] = []
    preset = build_preset(read_preset(args.preset), errors)
    if preset is None:
        raise SpecErrors(errors)
    store = open_store(run_dir_of(args))
    store.prepare()

    def report(step: int, metrics: Any) -> None:
        if step % 200 == 0:
            echo(f"  step {step} " + " ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    for call in common_calls(preset):
        echo(f"{call.stage} {call.key[:8]}")
        artifact, was_there = publish_call(call, store, Context(report=report, num_threads=os.cpu_count() or 1))
        echo(f"  {'was there' if was_there else f'{artifact.seconds:.0f} s'}: {artifact.path}")
        if args.bundle and call.stage != "encode" and not artifact.path.is_relative_to(BUNDLED):
            shutil.rmtree(BUNDLED / call.stage, ignore_errors=True)
            shutil.copytree(artifact.path, BUNDLED / call.stage / call.key)
    return 0
