"""Accuracy against what it costs and against how well the set covers the real images."""

from collections.abc import Sequence
from statistics import fmean

from ddgd_ray.report.compare import CEILING, by_arm
from ddgd_ray.report.figures import Dot, Drawing, scatter
from ddgd_ray.report.tables import METRIC_TITLES, at_ipc, common_metric
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, over_seeds


def tradeoff_figures(run: Run) -> list[Drawing]:
    """Against coverage for each feature space and number of images a class that quality was measured at; against seconds."""
    found = []
    for label in dict.fromkeys(label for record in run.records for _, _, label in record.get("quality", ())):
        drawing = _against_coverage(run, label)
        if drawing is not None:
            found.append(drawing)
    cost = _against_cost(run)
    return [*found, cost] if cost is not None else found


def measured(run: Run, arm: str, metric: str) -> float | None:
    """A metric that no classifier gives: seconds or gpu_hours of making the set, ipc, or a measure of its quality."""
    if metric in ("seconds", "gpu_hours", "hours"):
        seconds = build_seconds(run).get(arm)
        return seconds if seconds is None or metric == "seconds" else seconds / 3600
    if metric == "ipc":
        ipcs = [row.ipc for row in run.main_rows if row.arm == arm]
        return float(max(ipcs)) if ipcs else None
    for label in dict.fromkeys(label for record in run.records for _, _, label in record.get("quality", ())):
        value = _quality(run, label, metric)[1].get(arm)
        if value is not None:
            return value
    return None


def build_seconds(run: Run) -> dict[str, float]:
    """{arm: seconds of making one set, mean over seeds}: fine-tuning and sampling, or picking real images."""
    found: dict[str, list[float]] = {}
    for record in run.records:
        artifacts = [run.store.get(*ref) for ref in record["build"]]
        if artifacts and all(artifacts):
            found.setdefault(record["arm"], []).append(sum(artifact.seconds for artifact in artifacts if artifact))
    return {arm: fmean(seconds) for arm, seconds in found.items()}


def _quality(run: Run, label: str, metric: str) -> tuple[int, dict[str, float]]:
    """Images a class that it was measured at, 0 where the store does not tell; {arm: mean over seeds}."""
    found: dict[str, list[float]] = {}
    ipc = 0
    for record in run.records:
        for stage, key, of_label in record.get("quality", ()):
            artifact = run.store.get(stage, key) if of_label == label else None
            if artifact is None or metric not in artifact.metrics:
                continue
            found.setdefault(record["arm"], []).append(artifact.metrics[metric])
            features = run.store.get("features", artifact.manifest["inputs"]["set"])
            ipc = int(features.manifest["spec"]["ipc"]) if features else ipc
    return ipc, {arm: fmean(values) for arm, values in found.items()}


def _against_coverage(run: Run, label: str) -> Drawing | None:
    ipc, coverage = _quality(run, label, "coverage")
    rows = [row for row in at_ipc(run.main_rows, ipc) if row.arm != CEILING]
    metric = common_metric(rows)
    dots = _dots(rows, metric, coverage)
    if len(dots) < 2:
        return None
    return scatter(
        f"Accuracy against coverage, {label}",
        f"coverage ({label})",
        f"top-1, {METRIC_TITLES[metric]}",
        dots,
        caption="One dot an arm, means over seeds; coverage: share of real images with one of the set in their neighbourhood. "
        + GROUPS,
    )


def _against_cost(run: Run) -> Drawing | None:
    ipc = max(run.spec["evaluate"]["ipc"])
    rows = [row for row in at_ipc(run.main_rows, ipc) if row.arm != CEILING]
    metric = common_metric(rows)
    dots = _dots(rows, metric, build_seconds(run))
    if len(dots) < 2:
        return None
    return scatter(
        f"Accuracy against cost, {ipc} images per class",
        "seconds to make one set (fine-tune and sample, or select)",
        f"top-1, {METRIC_TITLES[metric]}",
        dots,
        caption="One dot an arm, means over seeds. What all arms share (latents, backbone) and classifiers are not counted. "
        + GROUPS,
    )


GROUPS = "Arms in the first colour, controls in the second."


def _dots(rows: Sequence[Row], metric: str, x: dict[str, float]) -> list[Dot]:
    dots = []
    for arm, found in by_arm(rows).items():
        stat = over_seeds(found, metric)
        if stat is not None and arm in x:
            dots.append(Dot(arm, x[arm], stat.mean, group=int(found[0].is_control)))
    return dots
