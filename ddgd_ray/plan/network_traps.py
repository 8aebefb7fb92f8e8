"""Classifiers that cannot take the images: known before any of them is built for a trial."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator

from ddgd_ray.plan.trap import Trap
from ddgd_ray.spec.preset import Preset
from ddgd_ray.spec.sweep import Sweep

TIMM = "timm/"
# the least pixels a side of the networks that have a least; method/classifiers.py refuses to build them below it
LEAST_SIDE = {"convnet": 8, "convnet3": 8, "convnet6": 64, "resnet_ap10": 16, "resnet_ap18": 16, "resnet18": 9}
SMALLER = ("convnet3_slim", "resnet_slim", "convnet3")
BUILD_S = 120.0
# builds each network and shows it two images; in a process of its own, for planning imports no torch
TRY_NETWORKS = """
import json, sys, warnings
import torch
from ddgd_ray.method.classifiers import build_network
warnings.simplefilter("ignore")
found = {}
asked = json.loads(sys.argv[1])
for name in asked["names"]:
    try:
        network = build_network(name, num_classes=asked["classes"], channels=asked["channels"], size=asked["size"])
        with torch.inference_mode():
            network.eval()(torch.zeros(2, asked["channels"], asked["size"], asked["size"]))
    except Exception as err:
        found[name] = f"{type(err).__name__}: {err}"[:300]
print(json.dumps(found))
"""


def network_traps(sweep: Sweep, preset: Preset) -> Iterator[Trap]:
    """Traps of the classifiers that `evaluate.networks` names."""
    side = preset.evaluate.protocol.size or preset.images.size
    where = sweep.source.where(("evaluate", "networks"))
    small = [name for name in sweep.spec.evaluate.networks if side < LEAST_SIDE.get(name, 0)]
    for name in small:
        what = f"network {name} takes images of {LEAST_SIDE[name]} px and more, and these are {side} px"
        fits = next(other for other in SMALLER if side >= LEAST_SIDE.get(other, 0))
        yield Trap("network-too-large", "refuse", where, what, f"use {fits}, or larger images (images.size)")
    of_timm = [name for name in sweep.spec.evaluate.networks if name.startswith(TIMM)]
    for name, why in _refusals(tuple(of_timm), len(preset.images.classes), preset.images.channels, side).items():
        what = f"network {name} does not take images of {side} px with {preset.images.channels} channels: {why}"
        yield Trap("network-too-large", "refuse", where, what, "choose another network, or a protocol.size that it is made for")


@functools.cache
def _refusals(names: tuple[str, ...], classes: int, channels: int, size: int) -> dict[str, str]:
    """{name: why} of the networks of timm that cannot be built for such images, or cannot look at them."""
    if not names:
        return {}
    asked = json.dumps({"names": names, "classes": classes, "channels": channels, "size": size})
    try:
        ran = subprocess.run(
            [sys.executable, "-c", TRY_NETWORKS, asked], capture_output=True, text=True, timeout=BUILD_S, check=False
        )
        found: dict[str, str] = json.loads(ran.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # what cannot be found out here, the stage says
        return {}
    return found
