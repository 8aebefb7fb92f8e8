"""Hand results to others: `export` a set, `export-model` a model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddgd_ray.commands.output import absolute, echo, run_dir_of
from ddgd_ray.errors import SpecError

if TYPE_CHECKING:
    from ddgd_ray.exporting.choose import Choice


def export_command(args: argparse.Namespace) -> int:
    from ddgd_ray.exporting.export_set import export_set

    choice = _chosen(args.run_folder, args)
    exported = export_set(choice, args.format, args.to, ipc=args.ipc, is_archive=args.archive)
    _tell_choice(choice)
    lost, known = choice.run.unfinished()
    if lost:
        echo(f"warning: {lost} of {known} evaluators of this run have no result yet; README.md says so")
    echo(f"images    {exported.num_images} of {exported.num_classes} classes, {args.format}")
    echo(f"written   {exported.path}")
    echo(f"sha256    {exported.sha256}{'' if args.archive else ' of SHA256SUMS'}")
    return 0


def export_model_command(args: argparse.Namespace) -> int:
    from ddgd_ray.exporting.model_card import model_texts
    from ddgd_ray.run.folder import open_store
    from ddgd_ray.run.lineage import find_tuned, lineage, tuned_model

    asked = absolute(args.what)
    is_run = asked.is_dir()
    choice = _chosen(asked, args) if is_run else None
    if choice is None and (args.arm or args.seed is not None):
        what = "--arm and --seed choose a model of a run, and this is a key"
        raise SpecError(what, where=args.what, fix="give runs/NAME in its place, or leave them out")
    if not is_run and ("/" in args.what or not args.what):
        what = "expected a run folder or the first digits of a finetune key; there is no such folder"
        raise SpecError(what, code="missing-file", where=str(asked), fix="give runs/NAME; `ddgd-ray plan` shows keys")
    store = open_store(asked.parent if is_run else run_dir_of(args))
    artifact = find_tuned(store, args.what if choice is None else _finetune_key(choice))
    made_from = lineage(store, artifact)
    tuned = tuned_model(made_from)
    if choice is None:
        title, words = f"finetune {artifact.key[:12]}", artifact.key[:12]
    else:
        name = choice.run.spec.name
        title, words = f"{name}: {choice.arm}, seed {choice.seed}", f"runs/{name} --arm {choice.arm} --seed {choice.seed}"
    command = f"ddgd-ray export-model {words} --weights {args.weights}"
    texts = model_texts(title, choice, made_from, args.weights, tuned.labels, command)
    from ddgd_ray.stages.parts.pipeline import export_pipeline

    is_same = export_pipeline(
        args.to,
        backbone=tuned.backbone,
        adapter=tuned.adapter,
        autoencoder=tuned.autoencoder,
        weights=args.weights,
        labels=tuned.labels,
        texts=texts,
    )
    if choice is not None:
        _tell_choice(choice)
    echo(f"DiTPipeline.from_pretrained({str(args.to)!r})")
    if not is_same:
        echo("its timesteps are those of DiT's own code: README.md in the folder says what to set after loading")
    return 0


def _chosen(run_folder: Path, args: argparse.Namespace) -> "Choice":
    from ddgd_ray.exporting.choose import choose
    from ddgd_ray.run.folder import open_store
    from ddgd_ray.run.reading import read_run

    return choose(read_run(run_folder, open_store(run_folder.parent)), args.arm, args.seed)


def _tell_choice(choice: "Choice") -> None:
    run = choice.run
    why = f", best by {run.spec.objective.metric}: {run.ranking.told(choice.arm)}" if choice.is_best else ""
    echo(f"arm       {choice.arm}, seed {choice.seed}{why}")


def _finetune_key(choice: "Choice") -> str:
    """The key of the fine-tuning behind the chosen set. Raises SpecError where no model made it."""
    if choice.trial.finetune is None:
        tuned = list(dict.fromkeys(trial.arm for trial in choice.run.trials if trial.finetune is not None))
        raise SpecError(
            f"no model made the set of arm {choice.arm}; arms with a model: {', '.join(tuned) or 'none'}",
            code="no-model",
            where=str(choice.run.path),
            fix=f"--arm {tuned[0]}" if tuned else "export the set itself: ddgd-ray export",
        )
    return choice.trial.finetune.key
