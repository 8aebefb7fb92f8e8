"""Drawings of the memories during a fine-tuning: how much of the real latents they cover, how varied and how old they are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ddgd_ray.report.figures import Drawing, draw, series_colour
from ddgd_ray.report.published import points_of
from ddgd_ray.run.reading import Run
from ddgd_ray.spec.evaluation import PortraySpec
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.storage.manifest import Ref
from ddgd_ray.storage.store import Artifact, key_of

MAX_ARMS = 6
MEASURES = {
    "coverage": "coverage of the real latents",
    "effective_rank": "effective rank",
    "mean_cosine": "mean cosine of two rows",
    "mean_age": "mean age, insertions",
}


def memory_figures(run: Run, arms: Sequence[str]) -> list[Drawing]:
    """A drawing for each memory: its measures over the steps, a line an arm, the first seed."""
    curves = {arm: points for arm in arms[:MAX_ARMS] if (points := _curves(run, arm))}
    return [_figure(kind, curves) for kind in ("real", "gen") if _measures(kind, curves)]


def _curves(run: Run, arm: str) -> list[Mapping[str, float]]:
    """The points of an arm's fine-tuning at its first seed; none where nothing was fine-tuned, or is published."""
    trial = run.first_trials().get(arm)
    artifact = run.store.get(*trial.finetune) if trial is not None and trial.finetune is not None else None
    return points_of(artifact) if artifact is not None else []


def _measures(kind: str, curves: dict[str, list[Mapping[str, float]]]) -> list[str]:
    known = {name for points in curves.values() for point in points for name in point}
    return [name for name in MEASURES if f"memory_{kind}/{name}" in known]


def _figure(kind: str, curves: dict[str, list[Mapping[str, float]]]) -> Drawing:
    names = _measures(kind, curves)

    def paint(figure: Any) -> None:
        panels = figure.subplots(-(-len(names) // 2), 2, squeeze=False, sharex=True)
        for axes, name in zip(panels.flat, names, strict=False):
            for index, (arm, points) in enumerate(curves.items()):
                seen = [(point["step"], point[f"memory_{kind}/{name}"]) for point in points if f"memory_{kind}/{name}" in point]
                axes.plot([step for step, _ in seen], [value for _, value in seen], color=series_colour(index), label=arm,
                          marker="." if len(seen) < 8 else None)  # fmt: skip
            axes.set_title(MEASURES[name], fontsize=8)
            axes.grid(True)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("step")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=7)

    title = "The real memory over the steps" if kind == "real" else "The generated memory over the steps"
    last = "; ".join(
        f"{arm}: {points[-1].get(f'memory_{kind}/{names[0]}', float('nan')):.3f}" for arm, points in curves.items()
    )
    alt = f"{title}: {', '.join(MEASURES[name] for name in names)}. {MEASURES[names[0]]} at the end: {last}."
    return draw(title, paint, alt=alt, caption="Means over the classes, first seed of each arm.", width=7.4, height=4.2)


def portrait_inputs(run: Run, arm: str) -> tuple[PortraySpec, dict[str, Ref]] | None:
    """The call of stage portray for the first seed of an arm; None where it was not fine-tuned, or nothing is published."""
    trial = run.first_trials().get(arm)
    if trial is None or trial.finetune is None or trial.sample is None:
        return None
    tuned, sample = run.store.get(*trial.finetune), run.store.get(*trial.sample)
    if tuned is None or sample is None or not any(name.startswith("memories/") for name in tuned.files):
        return None
    decoder = sample.inputs["autoencoder"]
    stage = next((stage for stage in ("autoencoder", "adopt") if run.store.has(stage, decoder)), None)
    if stage is None:
        return None
    images = ImagesSpec.model_validate_json(json.dumps(sample.spec["images"]))
    return PortraySpec(images=images), {"adapter": tuned.ref, "autoencoder": Ref(stage, decoder)}


def portrait_of(run: Run, arm: str) -> Artifact | None:
    """The memories of an arm in pictures, where somebody asked for them before."""
    found = portrait_inputs(run, arm)
    if found is None:
        return None
    spec, inputs = found
    return run.store.get(spec.stage, key_of(spec, {name: key for name, (_, key) in inputs.items()}))
