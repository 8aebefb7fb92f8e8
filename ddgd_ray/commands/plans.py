"""Look ahead: `plan`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from ddgd_ray.commands.output import run_dir_of, time_words
from ddgd_ray.commands.sweeps import read
from ddgd_ray.spec.sweep_spec import StageName

if TYPE_CHECKING:
    from ddgd_ray.plan.forecast import Forecast
    from ddgd_ray.plan.plan import Trial
    from ddgd_ray.plan.trap import Trap
    from ddgd_ray.search.forecast import SearchForecast
    from ddgd_ray.spec.sweep import Sweep

MAX_LISTED = 60


def plan_command(args: argparse.Namespace) -> int:
    from ddgd_ray.conduct.sweep import planned_trials
    from ddgd_ray.inputs.notes import input_notes
    from ddgd_ray.plan.costs import known_rates, rates_of, remember, write_calibration
    from ddgd_ray.plan.forecast import forecast
    from ddgd_ray.plan.settings import resolved
    from ddgd_ray.run.folder import RunFolder, open_store
    from ddgd_ray.search.forecast import search_forecast, tried

    sweep = read(args)
    if args.recipe_diff:
        _print_recipe_diff(sweep)
        return 0
    store = open_store(run_dir_of(args))
    if args.write_calibration:
        write_calibration(rates_of(store), args.write_calibration)
        print(f"rates of {store.root} written to {args.write_calibration}")
        return 0
    trials = planned_trials(sweep)
    warnings = _warnings(sweep, args)
    rates = known_rates(store, args.calibration)
    if args.measure:
        from ddgd_ray.conduct.measure import measured_rates

        remember(measured_rates(sweep, store, rates_of(store), tell=lambda text: print(f"measuring {text}", file=sys.stderr)))
        rates = known_rates(store, args.calibration)
    resources = sweep.spec.resources
    cores = args.cores or float(os.cpu_count() or 1)
    gpus = args.gpus or max(resources.of(stage).held["gpus"] for stage in get_args(StageName))
    search = None
    if sweep.spec.search:
        folder = RunFolder(run_dir_of(args), sweep.spec.name)
        folder.remote_copy.pull()
        num_tried = len(tried(sweep, folder.readable_trials(), store))
        search = search_forecast(sweep, trials, store, rates, num_tried, cores=cores, gpus=gpus)
    certain = search.certain if search else forecast(trials, store, rates, resources, cores=cores, gpus=gpus)
    total = search.total if search else certain
    if args.json:
        found: dict[str, Any] = {"name": sweep.spec.name, "trials": len(trials), "cores": cores, "gpus": gpus}
        found |= asdict(certain)
        found["settings"] = {one.path: {"value": one.value, "source": one.source} for one in resolved(sweep)}
        found["keys"] = [_keys(trial, store) for trial in trials]
        found["warnings"] = [trap.as_json() for trap in warnings]
        if search:
            found["search"] = {"configurations": search.configurations, "left": search.left}
            found["search"] |= {"core_s": search.one.core_s, "gpu_s": search.one.gpu_s, "total": asdict(total)}
        print(json.dumps(found))
        return 0
    of_recipe = f", recipe {sweep.spec.recipe}" if sweep.spec.recipe else ""
    print(f"{sweep.spec.name}: preset {sweep.spec.preset}{of_recipe}, {len(trials)} trials")
    _print_emulation(sweep)
    if search:
        _print_search(sweep, search)
    if sweep.spec.race:
        whom = "arms without a verdict" if sweep.spec.race.goal == "verdicts" else "configurations that may win"
        print(f"race: at most these; seeds after the first {sweep.spec.race.first_seeds} go to {whom}")
    if sweep.spec.rungs:
        print(f"rungs: {len(sweep.spec.rungs.settings)}; the first is planned for certain, the results decide the others")
    _print_stages(certain)
    _print_total(total, cores, gpus, search)
    _print_budget(sweep, total)
    _print_trials(trials, store)
    print()
    for note in input_notes(sweep):
        print(note.line())
    for trap in warnings:
        print(trap.line())
    return 0


def _keys(trial: "Trial", store: Any) -> dict[str, Any]:
    """A trial's calls in the order in which they are made, each with its key, and whether it is published."""
    calls = [{"stage": call.stage, "key": call.key, "is_published": store.has(*call.ref)} for call in trial.calls()]
    return {"trial": trial.name, "arm": trial.arm, "seed": trial.seed, "params": dict(trial.params), "calls": calls}


def _print_emulation(sweep: "Sweep") -> None:
    """A line for each stage that would compute in bfloat16 on this processor, which has none."""
    from ddgd_ray.inputs.processor import emulates_bfloat16

    preset, resources = sweep.preset_with({}), sweep.spec.resources
    for stage, spec in (("finetune", preset.finetune), ("sample", preset.sample), ("evaluate", preset.evaluate)):
        if spec.dtype == "bfloat16" and not resources.of(stage).gpus and emulates_bfloat16():
            print(
                f"{stage}.dtype is bfloat16, which this processor emulates: --set {stage}.dtype=float32 is several times faster"
            )


def _print_recipe_diff(sweep: "Sweep") -> None:
    """Where each recipe of the sweep differs from the scripts of its authors."""
    from ddgd_ray.spec.published import differences, published_recipe

    varied = [str(name) for name in sweep.spec.vary.get("recipe", ())]
    for recipe in varied or [sweep.spec.recipe]:
        found = differences(sweep.preset_with({"recipe": recipe} if varied else {}), recipe)
        about = f"recipe {recipe}" if recipe else f"preset {sweep.spec.preset}"
        print(f"{about}: {len(found)} fields differ from the published scripts (recipe {published_recipe(recipe)})")
        for one in found:
            print(f"  {one.field:34} here {_short(one.here)}; published {_short(one.published)}")


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return (text if len(text) <= 60 else f"{text[:57]}...") or "none"


def _warnings(sweep: "Sweep", args: argparse.Namespace) -> "list[Trap]":
    """What the sweep is warned of, and what this machine, or the one that is planned for, has not got."""
    from ddgd_ray.doctor.machine import memory_gb, seen_gpus, usable_cores
    from ddgd_ray.plan.traps import machine_traps, refuse

    asks_gpus = any(sweep.spec.resources.of(stage).gpus for stage in get_args(StageName))
    gpus = args.gpus or (len(seen_gpus()) if asks_gpus else 0)
    return refuse(sweep) + machine_traps(sweep, cores=args.cores or usable_cores(), gpus=gpus, memory_gb=memory_gb())


def _print_search(sweep: "Sweep", search: "SearchForecast") -> None:
    asked = sweep.spec.search
    assert asked is not None
    print(f"search: up to {search.configurations} configurations by {asked.algorithm} over {', '.join(sweep.space)},")
    print(f"each at {len(sweep.spec.seeds.distill)} seeds, {asked.parallel} at once; which ones, the results decide.")
    done = f"{search.configurations - search.left} are done. " if search.left < search.configurations else ""
    gpus = f" and {time_words(search.one.gpu_s)} of GPUs" if search.one.gpu_s else ""
    print(f"{done}One at the preset's values takes {time_words(search.one.core_s)} of cores{gpus}. Planned for certain:")


def _print_stages(certain: "Forecast") -> None:
    print(f"\n{'stage':12} {'hits':>7} {'to run':>7} {'seconds':>10}  {'range':>17} {'MB':>9}")
    for line in certain.stages:
        seconds = f"{line.seconds:10.0f}" if line.seconds or not line.misses else f"{'?':>10}"
        spread = f"{line.low_s:.0f} - {line.high_s:.0f}" if line.seconds else ""
        note = "" if line.is_known else "  guessed from other sizes"
        note += f"  {line.unknown} never measured" if line.unknown else ""
        print(f"{line.stage:12} {line.hits:7} {line.misses:7} {seconds}  {spread:>17} {line.size_bytes / 1e6:9.1f}{note}")


def _print_total(total: "Forecast", cores: float, gpus: float, search: "SearchForecast | None") -> None:
    if not total.wall_s:
        print("\neverything is published: nothing to run")
        return
    on = f"{cores:g} cores" + (f" and {gpus:g} GPUs" if gpus else "")
    print(f"\nwith {search.left} configurations to come:" if search else "")
    print(f"{total.core_s / 3600:.2f} core-hours, {total.gpu_s / 3600:.2f} GPU-hours, {total.size_bytes / 1e6:.0f} MB on disk;")
    spread = f"{time_words(total.wall_low_s)} to {time_words(total.wall_high_s)}"
    print(f"about {time_words(total.wall_s)} on the clock ({spread}) with {on}")
    num_unknown = search.certain.num_unknown + search.left * search.one.num_unknown if search else total.num_unknown
    if num_unknown:
        print(f"without {num_unknown} calls of stages that were never measured here: a minute of --measure times them")


def _print_budget(sweep: "Sweep", total: "Forecast") -> None:
    budget = sweep.spec.budget
    pairs = [
        ("gpu_hours", total.gpu_s / 3600, budget.gpu_hours),
        ("core_hours", total.core_s / 3600, budget.core_hours),
        ("hours", total.wall_s / 3600, budget.hours),
    ]
    for name, needed, limit in pairs:
        if limit:
            verdict = "enough" if needed <= limit else "not enough: the run will stop with exit code 7 and can be continued"
            print(f"budget.{name} {limit:g}: about {needed:.2f} needed, {verdict}")


def _print_trials(trials: Sequence["Trial"], store: Any) -> None:
    print(f"\n{'trial':28} stage key (* published)")
    for trial in trials[:MAX_LISTED]:
        keys = [f"{call.stage} {call.key[:8]}{'*' if store.has(*call.ref) else ''}" for call in trial.build]
        done = sum(store.has(*item.call.ref) for item in trial.evaluators)
        print(f"{trial.name:28} {'  '.join(keys)}  evaluators {done}/{len(trial.evaluators)}")
    if len(trials) > MAX_LISTED:
        print(f"... and {len(trials) - MAX_LISTED} more")
