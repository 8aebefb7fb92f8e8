"""Sentences under the tables: what was selected on which images, how often the test images were read, what is missing."""

from collections.abc import Sequence

from ddgd_ray.report.compare import claim, tested_pairs
from ddgd_ray.run.objective import Ranking
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, by_arm, over_seeds
from ddgd_ray.spec.search_spec import ACCURACIES, COSTS, ConstraintSpec


def selection_note(run: Run) -> str:
    """The sentences on which arm the objective chose, what it was measured on, and what so many seeds allow to claim."""
    ranking, metric = run.ranking, run.spec.objective.metric
    best = ranking.best
    if not best:
        return _nothing(run)
    rows = [row for row in run.main_rows if row.arm == best]
    sizes = " and ".join(map(str, sorted({row.ipc for row in rows})))
    at = f" at {sizes} images per class" if metric in ACCURACIES else ""
    test = over_seeds(rows, "top1_last")
    parts = [
        f"Best by {metric}{at}: **{best}**, {ranking.told(best)}, {measured_on(metric)}.",
        place_note(ranking),
        f"Its test accuracy after the last step: {test if test else 'not measured'}.",
        claim(tested_pairs(_differences(ranking, best)), best, metric),
    ]
    return " ".join(part for part in parts if part)


def _nothing(run: Run) -> str:
    is_done = any(trial.state == "done" and not trial.is_control and trial.rung is None for trial in run.trials)
    if not is_done:
        return "No arm has finished."
    return f"No arm has a value of {', '.join(dict.fromkeys(run.spec.objective.all_metrics))}."


def measured_on(metric: str) -> str:
    """What the values of a metric were measured on, and whether the test images had a part in that."""
    if metric == "val_top1":
        return "measured on held-out training images; the test images chose nothing"
    if metric in ACCURACIES:
        return "measured on the TEST images: an oracle"
    if metric in COSTS:
        return "what making and judging the sets of one seed took; no image chose"
    space = metric.partition("/")[0]
    return f"measured against the training images by features {space}; the test images chose nothing"


def place_note(ranking: Ranking) -> str:
    """The place of the best among several objectives, and whether it keeps the constraints; "" with neither."""
    said = []
    if ranking.objective.also:
        front = len(ranking.front)
        said.append(f"It is the best of the {front} arms on the Pareto front by its first objective." if front > 1 else "")
    if ranking.objective.constraints:
        bounds = ", ".join(map(_bound, ranking.objective.constraints))
        kept = ranking.worths[ranking.best].is_feasible
        said.append(f"It keeps {bounds}." if kept else f"NO arm keeps {bounds}: it is the best of those that do not.")
    return " ".join(part for part in said if part)


def _bound(bound: ConstraintSpec) -> str:
    return f"{bound.metric} ≤ {bound.max:g}" if bound.max is not None else f"{bound.metric} ≥ {bound.min:g}"


def _differences(ranking: Ranking, best: str) -> dict[str, list[float]]:
    """{arm: its values of the first objective less those of the best, over the seeds that both have}."""
    reference = ranking.seed_values[best]
    differences = {
        arm: [values[seed] - reference[seed] for seed in values if seed in reference]
        for arm, values in ranking.seed_values.items()
        if arm != best
    }
    return {arm: found for arm, found in differences.items() if found}


def readings_note(rows: Sequence[Row]) -> str:
    """The sentence on how many trained classifiers read the test images, and whether only the finalists' did."""
    readers = {row.tested_by: row for row in rows if row.tested_by is not None}
    num_trained = len({row.key for row in rows})
    if not readers:
        return f"Test images were read by none of the {num_trained} trained classifiers."
    num = len(readers)
    if all(reader.key != row.key for reader, row in readers.items()):
        arms = ", ".join(by_arm([row for row in rows if row.tested_by is not None]))
        return f"The test set was touched by the finalists alone: {num} of {num_trained} trained classifiers ({arms})."
    of = "" if num == num_trained else f" of {num_trained}"
    return f"Test images were read by {num}{of} trained classifier{'s' if num_trained > 1 else ''}."


def missing_note(run: Run) -> str:
    """The sentence on how many evaluators have no result; "" when all of the records have one."""
    missing, known = run.unfinished()
    return f"{missing} of {known} evaluators have no result; means are over the others." if missing else ""
