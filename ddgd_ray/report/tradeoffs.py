"""Drawings of accuracy against what it costs, and against how well the set covers the real images."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from ddgd_ray.report.figures import Dot, Drawing, scatter
from ddgd_ray.report.pareto import front_figures
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, common_metric
from ddgd_ray.run.reading import Run
from ddgd_ray.run.records import QualityRecord
from ddgd_ray.run.results import CEILING, Row, by_arm, over_seeds

GROUPS = "Arms in the first colour, controls in the second."


def tradeoff_figures(run: Run) -> list[Drawing]:
    """The front of several objectives; accuracy against coverage, for each measure of the sets; accuracy against seconds."""
    measures = {measure.label: measure for trial in run.trials for measure in trial.quality}
    found = [_against_coverage(run, measure) for measure in measures.values()]
    return [*front_figures(run), *(drawing for drawing in [*found, _against_cost(run)] if drawing is not None)]


def build_seconds(run: Run) -> dict[str, float]:
    """{arm: seconds of making one set, mean over seeds}: fine-tuning and sampling, or picking real images."""
    found: dict[str, list[float]] = {}
    for trial in run.trials:
        artifacts = [run.store.get(*ref) for ref in trial.build]
        if artifacts and all(artifacts):
            found.setdefault(trial.arm, []).append(sum(artifact.seconds for artifact in artifacts if artifact))
    return {arm: fmean(seconds) for arm, seconds in found.items()}


def _coverage(run: Run, label: str) -> dict[str, float]:
    """{arm: coverage of its sets by the measure of this label, mean over seeds}."""
    found: dict[str, list[float]] = {}
    for trial in run.trials:
        for measure in trial.quality:
            artifact = run.store.get(*measure.ref) if measure.label == label else None
            if artifact is not None and "coverage" in artifact.metrics:
                found.setdefault(trial.arm, []).append(artifact.metrics["coverage"])
    return {arm: fmean(values) for arm, values in found.items()}


def _against_coverage(run: Run, measure: QualityRecord) -> Drawing | None:
    return _against(
        at_ipc(run.main_rows, measure.ipc),
        _coverage(run, measure.label),
        title=f"Accuracy against coverage, {measure.label}",
        label=f"coverage ({measure.label})",
        caption="Coverage: share of real images with one of the set in their neighbourhood.",
    )


def _against_cost(run: Run) -> Drawing | None:
    return _against(
        at_ipc(run.main_rows, run.ipc),
        build_seconds(run),
        title=f"Accuracy against cost, {run.ipc} images per class",
        label="seconds to make one set (fine-tune and sample, or select)",
        caption="What all arms share (latents, backbone) and classifiers are not counted.",
    )


def _against(rows: Sequence[Row], x: Mapping[str, float], *, title: str, label: str, caption: str) -> Drawing | None:
    """A drawing of the arms' accuracy over x, {arm: number}; None with fewer than two dots."""
    rows = [row for row in rows if row.arm != CEILING]
    metric = common_metric(rows)
    stats = {arm: over_seeds(found, metric) for arm, found in by_arm(rows).items() if arm in x}
    controls = {row.arm for row in rows if row.is_control}
    dots = [Dot(arm, x[arm], stat.mean, group=int(arm in controls)) for arm, stat in stats.items() if stat is not None]
    if len(dots) < 2:
        return None
    caption = f"One dot an arm, means over seeds. {caption} {GROUPS}"
    return scatter(title, label, f"top-1, {METRIC_TITLES[metric]}", dots, caption=caption)
