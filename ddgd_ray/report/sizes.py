"""What sets with stored soft labels weigh: labels beside images, since they can be the heavier ones."""

from collections.abc import Sequence

from ddgd_ray.report.render import Cell, Column, Table
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.run.results import stat_of
from ddgd_ray.storage.store import Store

NOTE = (
    "Means over seeds. Labels: the numbers that are stored for the images, without names; images: their PNG files. "
    "agreement: share of images that the network which answered takes for their own class."
)


def size_tables(trials: Sequence[TrialRecord], store: Store) -> list[Table]:
    """One table with a row for each arm and each kind of stored labels; none where no labels are stored."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for trial in trials:
        for ref in trial.labels:
            artifact = store.get(*ref)
            if artifact is not None:
                kept = artifact.spec["classes_kept"]
                kind = f"{kept or 'all'} classes, {artifact.spec['dtype']}"
                found.setdefault((trial.arm, kind), []).append(dict(artifact.metrics))
    if not found:
        return []
    names = ("num_images", "image_bytes", "label_bytes")
    rows = []
    for (arm, kind), metrics in found.items():
        means = {name: stat.mean for name in (*names, "agreement") if (stat := stat_of(one[name] for one in metrics))}
        images, labels = means["image_bytes"], means["label_bytes"]
        cells = [kind, f"{means['num_images']:.0f}", f"{images / 1000:.1f}", f"{labels / 1000:.1f}"]
        cells += [f"{labels / images:.2f}" if images else "-", f"{means['agreement']:.3f}"]
        rows.append((arm, [*map(Cell, cells)]))
    columns = ("arm", "stored", "images", "images, kB", "labels, kB", "labels / images", "agreement")
    return [Table("Bytes of sets with stored labels", [*map(Column, columns)], rows, NOTE)]
