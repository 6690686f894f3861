"""A run as one PNG, for a message or a slide: what report.html shows, without the values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convoy.run import charts
from convoy.run.charts import COLOURS
from convoy.run.story import Story
from convoy.run.timeline import timeline

PANELS = ("loss", "ade", "rate")
WAIT = "#b8bfc8"


def write(path: Path, runs: Sequence[Story]) -> Path:
    """Write timeline, loss, ADE and throughput. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    times = [timeline(run) for run in runs]
    drawn = {chart["id"]: chart for chart in charts.charts(runs, times, 1000)}
    shown = [drawn[name] for name in PANELS if name in drawn]
    figure = pyplot.figure(figsize=(10, 1.6 + 0.35 * len(runs) + (3 if shown else 0)))
    rows = figure.add_gridspec(2, 1, height_ratios=(1 + 0.35 * len(runs), 3 if shown else 0.01))
    _timeline(figure.add_subplot(rows[0]), drawn.get("timeline"))
    if shown:
        cells = rows[1].subgridspec(1, len(shown))
        for cell, chart in zip(range(len(shown)), shown, strict=True):
            _lines(figure.add_subplot(cells[0, cell]), chart)
    figure.suptitle(" and ".join(run.name for run in runs), fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _timeline(axis: Any, chart: dict[str, Any] | None) -> None:
    if chart is None:
        axis.axis("off")
        return
    for row, content in enumerate(chart["rows"]):
        for part in content["parts"]:
            queued = part["kind"] == "queue"
            colour = WAIT if queued else COLOURS[(part["start"] + 2) % len(COLOURS)]
            axis.barh(
                row, (part["to"] - part["from"]) / 3600, left=part["from"] / 3600, color=colour
            )
        for mark in content["marks"]:
            if mark["bad"]:
                axis.plot(mark["at"] / 3600, row - 0.48, "^", color=COLOURS[1], markersize=7)
    axis.set_yticks(range(len(chart["rows"])), [row["name"] for row in chart["rows"]], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("hours since it was submitted (grey: in the queue)", fontsize=8)
    axis.tick_params(labelsize=8)


def _lines(axis: Any, chart: dict[str, Any]) -> None:
    for index, series in enumerate(chart["series"]):
        colour = COLOURS[index % len(COLOURS)]
        part: list[list[float]] = []
        for point in [*series["points"], None]:
            if point is None or (part and point[0] <= part[-1][0]):
                steps, values = zip(*part, strict=True)
                axis.plot(
                    steps,
                    values,
                    color=colour,
                    linewidth=1.3,
                    marker="." if len(part) < 40 else None,
                )
                part = []
            if point is not None:
                part.append(point)
    for step, _ in chart["marks"]:
        axis.axvline(step, color="grey", linewidth=0.8, linestyle="--")
    if chart["zero"]:
        axis.set_ylim(bottom=0)
    axis.set_title(chart["title"], fontsize=9)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
