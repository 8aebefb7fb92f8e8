"""The Run object: what a notebook asks of a run folder and its store."""

import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ddgd_ray.api import frames, plots
from ddgd_ray.errors import SpecError
from ddgd_ray.exporting.choose import choose
from ddgd_ray.exporting.export_set import export_set
from ddgd_ray.exporting.images import read_images
from ddgd_ray.report.notes import selection_note
from ddgd_ray.report.tables import METRIC_TITLES
from ddgd_ray.run import reading
from ddgd_ray.run.folder import open_store
from ddgd_ray.spec.load import nearest
from ddgd_ray.spec.sweep_spec import SweepSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def open_run(path: str | Path) -> "Run":
    """The run in a folder runs/NAME, finished or not, as it is now. Its store is read beside it, at runs/store.

    Raises ArtifactError when there is no run.
    """
    folder = Path(path).expanduser().absolute()
    return Run(reading.read_run(folder, open_store(folder.parent)))


class Run:
    """A run as it was when it was opened. Frames are new objects at each call: change them as you like."""

    def __init__(self, data: reading.Run) -> None:
        self.data = data

    @property
    def name(self) -> str:
        return self.data.spec.name

    @property
    def path(self) -> Path:
        return self.data.path

    @property
    def spec(self) -> SweepSpec:
        """The sweep file with its defaults filled in."""
        return self.data.spec

    @property
    def arms(self) -> list[str]:
        return self.data.arms

    @property
    def best(self) -> str | None:
        """The arm that the objective prefers, controls aside; None while nothing is measured."""
        return self.data.ranking.best or None

    @property
    def front(self) -> list[str]:
        """The arms that no other beats in all objectives, the best by the first one first; of one objective, its best."""
        return self.data.ranking.front

    @property
    def selection(self) -> str:
        """A note on what was selected, by what it was measured, and what may be claimed of it."""
        return selection_note(self.data)

    @property
    def trials(self) -> "pd.DataFrame":
        """A line a trial: arm, seed, state, what varied, the objective's value, keys, seconds of its own stages."""
        return frames.trials(self.data)

    @property
    def evaluations(self) -> "pd.DataFrame":
        """A line a trained classifier, nothing averaged."""
        return frames.evaluations(self.data)

    @property
    def quality(self) -> "pd.DataFrame":
        """A line a set and feature space; empty when the sweep file asks for none."""
        return frames.quality(self.data)

    @property
    def costs(self) -> "pd.DataFrame":
        """A line an artifact behind the run: stage, key, seconds when it was made, trials that use it."""
        return frames.costs(self.data)

    def curves(self, trial: str, stage: str = "") -> "pd.DataFrame":
        """The points that the stages of a trial reported, such as losses by step; `stage` keeps one of them alone.

        trial: its name, ARM-sSEED. Raises SpecError for a name that is none.
        """
        return frames.curves(self.data, trial, stage)

    def table(self, metric: str = "", *, ipc: int = 0, protocol: str = "") -> "pd.DataFrame":
        """A line an arm: mean, std, n (distillation seeds) and the ends of the 95 % interval; std and ends are NaN without.

        Defaults: test accuracy after the last step where it was measured, the largest sets, the main protocol. attrs say
        which. Raises SpecError for a metric, ipc or protocol that the run has not got.
        """
        return frames.table(self.data, metric, ipc, protocol)

    def plot(
        self, x: str, metric: str = "", *, ipc: int = 0, protocol: str = "", controls: bool = False, ax: "Axes | None" = None
    ) -> "Axes":
        """A metric over a varied field: line through the means, a dot a seed; a line for each value of the other fields.

        x: its dotted path or the end of it, such as lambda_g. controls: as dashed lines, far off as they may be.
        """
        return plots.plot(self.data, x, metric, ipc, protocol, ax, controls)

    def figure(self, name: str) -> "Figure":
        """One of api.plots.FIGURES: `arms`, `sensitivity`, `costs`. Raises SpecError for another name."""
        if name not in plots.FIGURES:
            what = f"there is no figure {name!r}; known: {', '.join(plots.FIGURES)}"
            raise SpecError(
                what, code="unknown-figure", where=str(self.path), fix=f"did you mean {nearest(name, plots.FIGURES)}?"
            )
        return plots.FIGURES[name](self.data)

    def images(self, arm: str = "", seed: int | None = None, ipc: int = 0) -> dict[str, list[Image.Image]]:
        """{class: its images}: of the best arm and its first seed unless others are named; ipc: the first ones of each class.

        Raises SpecError for an arm or seed that is none, StageError while the set is not made.
        """
        found = read_images(choose(self.data, arm, seed), ipc)
        pictures: dict[str, list[Image.Image]] = {name: [] for name in found.classes}
        for one in found.images:
            with Image.open(io.BytesIO(one.content())) as opened:
                pictures[found.classes[one.label]].append(opened.copy())
        return pictures

    def export(
        self,
        layout: str,
        to: str | Path | None = None,
        *,
        arm: str = "",
        seed: int | None = None,
        ipc: int = 0,
        archive: bool = False,
    ) -> Path:
        """The folder or archive of an exported set, as `ddgd-ray export` writes it. layout: imagefolder, hf or webdataset."""
        target = Path(to).expanduser().absolute() if to is not None else None
        return export_set(choose(self.data, arm, seed), layout, target, ipc=ipc, is_archive=archive).path

    def refresh(self) -> "Run":
        """The same run as it is now."""
        return Run(reading.read_run(self.path, self.data.store))

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in _states(self.data).items())
        return f"<Run {self.name}: {len(self.arms)} arms, trials {counts or 'none'}, best {self.best or 'unknown'}>"

    def _repr_html_(self) -> str:
        frame = self.table()
        metric = str(frame.attrs["metric"])
        head = f"{self.name}: preset {self.data.spec.preset}"
        under = (
            f"{METRIC_TITLES.get(metric, metric)}, {frame.attrs['ipc']} images per class, protocol {frame.attrs['protocol']}"
        )
        counts = ", ".join(f"{count} {state}" for state, count in _states(self.data).items())
        shown = (
            frame.drop(columns="is_control").to_html(float_format="{:.3f}".format, na_rep="-", border=0) if len(frame) else ""
        )
        texts = [f"<b>{html.escape(head)}</b>", f"<div>trials: {html.escape(counts or 'none')}</div>"]
        texts += [f"<div>{html.escape(under)}</div>", shown] if shown else []
        return "\n".join([*texts, f"<div>{html.escape(self.selection.replace('**', ''))}</div>"])


def _states(data: reading.Run) -> Mapping[str, int]:
    states = [trial.state for trial in data.trials]
    return {state: states.count(state) for state in ("done", "failed", "planned") if state in states}
