"""The text of a sweep file for images of one's own: settings with their reasons as comments, in the order of the stages."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ddgd_ray.plan.own_images import ARMS, NETWORKS, Setting

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./~-]*")
NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off"}  # the last four are text here, and not in every YAML
TITLES = {
    "images": "the images: where they lie, and what is held out",
    "autoencoder": "from pixels to latents, trained here",
    "backbone": "the DiT, trained here",
    "finetune": "fine-tuning with the two memories",
    "sample": "drawing the set",
}


def sweep_text(
    name: str,
    preset: str,
    chosen: Sequence[Setting],
    *,
    heading: Sequence[str],
    ipc: int,
    networks: Sequence[str] = NETWORKS,
    resources: Mapping[str, Any],
) -> str:
    """A whole sweep file: three ways to forget against two controls, three seeds each."""
    lines = [f"# {line}".rstrip() for line in heading]
    lines += [f"name: {scalar(name)}", f"preset: {preset}", "set:"]
    section, order = "", list(TITLES)
    for setting in sorted(chosen, key=lambda setting: order.index(setting.path.partition(".")[0])):
        own, _, _ = setting.path.partition(".")
        if own != section:
            lines.append(f"  # {TITLES[own]}")
        section = own
        why = f"  # {setting.why}" if setting.why else ""
        lines.append(f"  {setting.path}: {scalar(setting.value)}{why}")
    lines += [
        "vary:  # the question: which latent leaves a full memory; every further line multiplies the arms",
        f"  finetune.memory_gen.pop: {scalar(ARMS)}",
        "seeds:",
        "  distill: [0, 1, 2]  # n of the table; more seeds later: --set 'seeds.distill=[0, 1, 2, 3, 4]' --amend",
        "  evaluate: [0]",
        "evaluate:",
        f"  networks: {scalar(tuple(networks))}  # trained from scratch on each set",
        f"  ipc: [{ipc}]  # images a class of a distilled set",
        "controls: [random_real, plain]  # real images, and fine-tuning without memories",
        "objective: {metric: val_top1}  # the held-out images; the test images are reported, never chosen by",
        f"resources: {scalar(resources)}",
    ]
    return "\n".join(lines) + "\n"


def scalar(value: Any) -> str:
    """A value as our YAML reads it back."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {scalar(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        is_plain = PLAIN.fullmatch(value) and value.lower() not in NOT_TEXT
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return str(value)
