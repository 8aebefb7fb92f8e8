"""What a sweep file comes to: `show`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ddgd_ray.commands.sweeps import read
from ddgd_ray.errors import SpecError

WIDTH = 64


def add_show(added: argparse.ArgumentParser) -> None:
    """Its own arguments; the sweep's are those of `plan`, with FILE left out for --fields."""
    added.add_argument("--diff", metavar="PRESET", help="only what differs from this preset, both values side by side")
    added.add_argument("--changed", action="store_true", help="only what is no default")
    added.add_argument("--fields", action="store_true", help="every field that there is, as in docs/fields.md; needs no file")
    added.add_argument("--json", action="store_true")


def show_command(args: argparse.Namespace) -> int:
    from ddgd_ray.plan.settings import of_preset, resolved

    if args.fields:
        from ddgd_ray.spec.reference import field_reference

        print(field_reference(), end="")
        return 0
    if args.file is None:
        raise SpecError("of which sweep file?", where="show", fix="give its path, or --fields for all fields that there are")
    sweep = read(args)
    settings = resolved(sweep)
    other = of_preset(args.diff) if args.diff else {}
    if args.diff:
        settings = [one for one in settings if one.path in other and other[one.path] != one.value and one.source != "sweep"]
    if args.changed:
        settings = [one for one in settings if one.source not in ("default", "sweep")]
    if args.json:
        found = [vars(one) | ({"other": other[one.path]} if args.diff else {}) for one in settings]
        print(
            json.dumps({"name": sweep.spec.name, "preset": sweep.spec.preset, "recipe": sweep.spec.recipe, "settings": found})
        )
        return 0
    of_recipe = f", recipe {sweep.spec.recipe}" if sweep.spec.recipe else ""
    against = f"; {len(settings)} fields differ from preset {args.diff}" if args.diff else ""
    print(f"{sweep.spec.name}: preset {sweep.spec.preset}{of_recipe}{against}")
    for one in settings:
        there = f"; {args.diff}: {_short(other[one.path])}" if args.diff else ""
        place = _place(one.where) if one.where else ""
        print(f"{one.path:38} {_short(one.value) + there:{WIDTH}} {one.source}{f' {place}' if place else ''}".rstrip())
    return 0


def _short(value: Any) -> str:
    from ddgd_ray.plan.sweep_text import scalar

    text = scalar(value) if value not in ("", (), None) else "none"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _place(where: str) -> str:
    """A place without the folders that lead to it; "" where the source says it all."""
    file, colon, line = where.rpartition(":")
    return f"{Path(file).name}{colon}{line}" if file else ("" if where.startswith("--") else where)
