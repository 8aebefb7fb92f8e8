"""Images of one's own: `init` writes a sweep file that suits a folder and this machine; `--images` does without a file."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddgd_ray.commands.arguments import Count, amount
from ddgd_ray.commands.output import absolute, echo, run_dir_of, time_words
from ddgd_ray.errors import SpecError, StageError

if TYPE_CHECKING:
    from ddgd_ray.inputs.survey import Survey
    from ddgd_ray.plan.forecast import Forecast
    from ddgd_ray.plan.own_images import Setting, Tier
    from ddgd_ray.spec.sweep import Sweep

PRESET, FULL_PRESET = "imagefolder", "imagewoof"
USED = 0.8
"""Share of the stated time that is planned for: a forecast is not a promise."""


def add_init(added: argparse.ArgumentParser) -> None:
    added.add_argument("folder", type=absolute, metavar="FOLDER", help="train/CLASS and val/CLASS, or CLASS folders alone")
    added.add_argument("--to", type=absolute, metavar="FILE", help="the sweep file to write (default: NAME.yaml here)")
    added.add_argument("--minutes", type=amount, default=15.0, metavar="M", help="what the first table may take (default: 15)")
    added.add_argument("--ipc", type=Count(0), default=0, metavar="N", help="images a class of a distilled set (default: 10)")


@dataclass(frozen=True)
class _Machine:
    cores: float
    gpus: tuple[tuple[str, int], ...]

    @property
    def words(self) -> str:
        names = ", ".join(f"{name} {memory / 2**30:.0f} GiB" for name, memory in self.gpus)
        return f"{self.cores:g} cores, {names or 'no GPU'}"


@dataclass(frozen=True)
class _Proposal:
    text: str
    sweep: "Sweep"
    forecast: "Forecast | None"
    words: str


def init_command(args: argparse.Namespace) -> int:
    from ddgd_ray.doctor.machine import seen_gpus, usable_cores
    from ddgd_ray.inputs.survey import survey
    from ddgd_ray.plan.own_images import ipc_for, num_train

    name = re.sub(r"[^A-Za-z0-9._-]", "-", args.folder.name).strip("-._")[:60] or "images"
    target = args.to or Path.cwd() / f"{name}.yaml"
    if target.exists():
        fix = "remove it, or name another file: --to FILE"
        raise SpecError("this file is there already", code="exists", where=str(target), fix=fix)
    found = survey(args.folder)
    if args.ipc > num_train(found):
        what = f"{args.ipc} images a class are more than the {num_train(found)} of the smallest class that are left to distill"
        raise SpecError(what, code="out-of-range", where="--ipc", fix=f"--ipc {ipc_for(found)}")
    _tell_images(found)
    machine = _Machine(usable_cores(), tuple(seen_gpus()))
    echo(f"machine   {machine.words}")
    writer = _Writer(name, target, found, machine, args.ipc or ipc_for(found), run_dir_of(args), args.minutes * 60)
    proposal = writer.full() or writer.fitted()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(proposal.text)
    echo(f"chosen    {proposal.words}")
    if proposal.forecast is not None:
        walls = proposal.forecast
        spread = f"{time_words(walls.wall_low_s)} to {time_words(walls.wall_high_s)}"
        size = f"{walls.size_bytes / 1e6:.0f} MB"
        echo(f"takes     about {time_words(walls.wall_s)} ({spread}), {size}, by what was measured just now")
        if walls.wall_s > args.minutes * 60:
            echo(f"warning: more than the {args.minutes:g} minutes asked for; fewer steps would teach the networks nothing")
    echo(f"written   {target}\nnext      ddgd-ray sweep {_shown(target)}")
    return 0


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _tell_images(found: "Survey") -> None:
    counts = sorted(found.train.values())
    each = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    kind = "colour" if found.channels == 3 else "grey"
    split = f"for testing {found.test_folder}/" if found.test else "no split of their own"
    echo(f"images    {len(found.classes)} classes of {each} in {found.root}, {split}")
    sides = f"shorter side {found.smallest_side} px and more, {found.side} px in the middle"
    echo(f"          {kind}, {sides} ({found.opened} opened)")
    if found.unreadable:
        some = ", ".join(found.unreadable[:3])
        echo(f"warning: {len(found.unreadable)} of {found.opened} cannot be decoded, e.g. {some}\n"
             "  help: ddgd-ray doctor FILE lists all; replace them, or set images.on_corrupt: skip")  # fmt: skip
    if found.left_out:
        echo(f"warning: no images in {', '.join(found.left_out[:10])}: left out")


class _Writer:
    """Writes the file's text for one tier after another, and asks this machine how long it takes."""

    def __init__(
        self, name: str, target: Path, found: "Survey", machine: _Machine, ipc: int, run_dir: Path, limit_s: float
    ) -> None:
        self.name, self.target, self.found, self.machine, self.ipc = name, target, found, machine, ipc
        self.run_dir, self.limit_s = run_dir, limit_s

    def full(self) -> _Proposal | None:
        """DiT-XL/2 at 256 px where there is a GPU, the weights are here and the classes are ImageNet's."""
        from ddgd_ray.inputs.weights import weights_source
        from ddgd_ray.plan.own_images import full_settings, has_imagenet_classes
        from ddgd_ray.spec.preset import WeightsSpec, build_preset, read_preset

        if not self.machine.gpus or not has_imagenet_classes(self.found):
            return None
        preset = build_preset(read_preset(FULL_PRESET), [])
        assert preset is not None
        try:
            for part in (preset.autoencoder, preset.backbone):
                assert isinstance(part, WeightsSpec)
                weights_source(part)
        except StageError as err:
            echo(f"note: the class folders are WordNet ids, and DiT-XL/2 would know them; {err.what}\n  help: {err.fix}")
            return None
        text = self.text(FULL_PRESET, full_settings(self.found), networks=("convnet6", "resnet_ap10", "resnet18"))
        words = "256 px, DiT-XL/2 and the recipe of the paper: a GPU, its weights and ImageNet's classes are here"
        return _Proposal(text, self.sweep(text), None, words)

    def fitted(self) -> _Proposal:
        """The largest tier that is worth its full steps within the limit; of the smallest, as many steps as fit."""
        from ddgd_ray.plan.own_images import LEAST_SHARE, MOST_SHARE, NETWORKS, tiers_for

        smallest, *larger = tiers_for(self.found)
        timed = _Timed(self, smallest)
        share = timed.share_within(USED * self.limit_s)
        if share < 1.0:  # half the classifiers leave more time for the networks that make the images
            timed.networks = NETWORKS[:1]
            share = timed.share_within(USED * self.limit_s)
        best = timed.proposal(min(MOST_SHARE, max(LEAST_SHARE, share)))
        for tier in larger:
            if share < MOST_SHARE:  # a larger tier takes several times as long
                break
            timed = _Timed(self, tier)
            share = timed.share_within(USED * self.limit_s)
            if share < 1.0:
                break
            best = timed.proposal(min(MOST_SHARE, share))
        return best

    def sweep(self, text: str) -> "Sweep":
        from ddgd_ray.spec.load import parse
        from ddgd_ray.spec.sweep import check_sweep

        return check_sweep(parse(text, str(self.target)), self.target.parent, {})

    def text(self, preset: str, chosen: "list[Setting]", **more: Any) -> str:
        from ddgd_ray.plan.own_images import resources_for
        from ddgd_ray.plan.sweep_text import sweep_text

        shown = _shown(self.target)
        heading = [
            f"Which latent should leave a full memory of generated latents? On the images in {self.found.root}.",
            "",
            f"  ddgd-ray plan {shown}     # what it will take",
            f"  ddgd-ray show {shown}     # every setting, and where it comes from; docs/fields.md says what each means",
            f"  ddgd-ray sweep {shown}    # run it; the same command continues it",
            "",
            f"Written by `ddgd-ray init` for {self.machine.words}. Everything here may be changed.",
        ]
        resources = resources_for(self.machine.cores, len(self.machine.gpus))
        return sweep_text(self.name, preset, chosen, heading=heading, ipc=self.ipc, resources=resources, **more)


class _Timed:
    """One tier on this machine."""

    def __init__(self, writer: _Writer, tier: "Tier") -> None:
        from ddgd_ray.conduct.measure import measure
        from ddgd_ray.conduct.sweep import planned_trials
        from ddgd_ray.plan.own_images import NETWORKS
        from ddgd_ray.run.folder import open_store

        self.networks = NETWORKS
        self.writer, self.tier = writer, tier
        self._store = open_store(writer.run_dir)
        self._plan = planned_trials
        echo(f"measuring a few steps of each stage at {tier.size} px ...")
        self._measured = measure(writer.sweep(self._text(1.0)), planned_trials, self._store, {}, _tell_end)

    def share_within(self, limit_s: float) -> float:
        """Of the tier's steps; the clock grows by the share of them, and by what does not depend on it."""
        from ddgd_ray.plan.own_images import LEAST_SHARE

        least, full = (self._forecast(self.writer.sweep(self._text(share))).wall_s for share in (LEAST_SHARE, 1.0))
        per_share = max(1e-9, (full - least) / (1.0 - LEAST_SHARE))
        return LEAST_SHARE + (limit_s - least) / per_share

    def proposal(self, share: float) -> _Proposal:
        from ddgd_ray.conduct.measure import rates_from
        from ddgd_ray.plan.costs import remember

        text = self._text(share)
        sweep = self.writer.sweep(text)
        remember(rates_from([call for trial in self._plan(sweep) for call in trial.calls()], self._measured))
        preset = sweep.preset_with({})
        tier = self.tier
        words = (
            f"{preset.images.size} px; a DiT of {tier.layers} layers, {tier.heads * tier.head_dim} wide, and its autoencoder "
        )
        words += f"are trained here, {share:.0%} of the steps that they are worth; judged by {' and '.join(self.networks)}"
        return _Proposal(text, sweep, self._forecast(sweep), words)

    def _text(self, share: float) -> str:
        from ddgd_ray.plan.own_images import settings

        return self.writer.text(PRESET, settings(self.writer.found, self.tier, share), networks=self.networks)

    def _forecast(self, sweep: "Sweep") -> "Forecast":
        from ddgd_ray.conduct.measure import rates_from
        from ddgd_ray.plan.forecast import forecast

        trials = self._plan(sweep)
        rates = rates_from([call for trial in trials for call in trial.calls()], self._measured)
        machine = self.writer.machine
        gpus = float(len(machine.gpus))
        return forecast(trials, None, rates, sweep.spec.resources, cores=machine.cores, gpus=gpus)


def _tell_end(text: str) -> None:
    if text.startswith("done; "):
        echo(f"note: {text.removeprefix('done; ')}")


def own_images(args: argparse.Namespace, overrides: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Preset and overrides of a sweep file over a folder that nobody has described: the folder says what is not said.

    The same folder gives the same settings on any machine, so that the same command continues its sweep. What the file, or
    --set, sets itself stays.
    """
    from ddgd_ray.inputs.survey import survey
    from ddgd_ray.plan.own_images import settings
    from ddgd_ray.spec.load import read

    given = dict(overrides)
    folder = getattr(args, "images", None)
    preset = args.preset or (PRESET if folder else None)
    if folder:
        if "images.root" in given or preset != PRESET:
            what = f"--images goes with preset {PRESET}, and without --set images.root"
            raise SpecError(what, where="--images", fix="leave out --preset, or give --set images.root in its place")
        given["images.root"] = folder
    if args.file is None:
        return preset, given
    document = read(args.file).data
    own = document.get("set")
    of_file = own if isinstance(own, Mapping) else {}
    said = {**of_file, **given}
    root = said.get("images.root")
    if (preset or document.get("preset")) != PRESET or not isinstance(root, str) or "images.classes" in said:
        return preset, given
    from ddgd_ray.inputs.fingerprints import resolve

    varied = document.get("vary")
    taken = {*said, *(varied if isinstance(varied, Mapping) else ())} - {"images.root"}
    chosen = settings(survey(resolve(root, "images.root")))
    return preset, given | {setting.path: setting.value for setting in chosen if setting.path not in taken}
