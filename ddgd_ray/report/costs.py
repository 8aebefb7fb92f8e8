"""The table of what a run cost, stage by stage, and of what sharing saved."""

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import stage_costs


def cost_table(run: Run) -> Table | None:
    """A line a stage and their sum; None while nothing is published."""
    costs = stage_costs(run.trials, run.store)
    if not costs:
        return None
    lines = []
    for cost in costs:
        hits = cost.num_uses - cost.count
        cells = [str(cost.num_uses), str(cost.count), str(hits), str(cost.num_missing)]
        cells += [f"{cost.seconds / cost.count:.1f}", f"{cost.seconds:.0f}", f"{cost.saved_s:.0f}"]
        lines.append((cost.stage, [Cell(text) for text in cells]))
    sums = [sum(cost.num_uses for cost in costs), sum(cost.count for cost in costs)]
    spent, saved = sum(cost.seconds for cost in costs), sum(cost.saved_s for cost in costs)
    missing = sum(cost.num_missing for cost in costs)
    total = [str(sums[0]), str(sums[1]), str(sums[0] - sums[1]), str(missing), "", f"{spent:.0f}", f"{saved:.0f}"]
    lines.append(("all", [Cell(text) for text in total]))
    heads = ["stage", "needed by trials", "made (misses)", "shared (hits)", "not made yet", "s each", "s in all", "s saved"]
    note = (
        "Seconds of the process that made each artifact, whichever run it was; equal artifacts once. Needed: what each trial "
        "needs, summed over trials; saved: that, less what was made."
    )
    if spent > 0:
        whole = spent + saved
        note += f" Without sharing this run would have taken {whole:.0f} s of work, {whole / spent:.1f} times as much."
    return Table("Cost and sharing", [Column(head) for head in heads], lines, note)
