"""Look after a store: `store verify`, `store gc`."""

import argparse

from ddgd_ray.commands.output import echo, run_dir_of


def store_command(args: argparse.Namespace) -> int:
    from ddgd_ray.run.folder import open_store
    from ddgd_ray.storage.upkeep import collect_garbage, verify_all

    store = open_store(run_dir_of(args))
    store.prepare()
    if args.action == "gc":
        removed = collect_garbage(store, damaged=args.damaged)
        echo(f"{store}: removed {', '.join(f'{what} {number}' for what, number in removed.items())}")
        return 0
    num_checked = num_damaged = 0
    for checked in verify_all(store):
        num_checked += 1
        if checked.problem:
            num_damaged += 1
            echo(f"{checked.stage} {checked.key[:8]} damaged, set aside: {checked.problem}")
    echo(f"{store}: {num_checked} artifacts, {num_damaged} damaged")
    return 6 if num_damaged else 0
