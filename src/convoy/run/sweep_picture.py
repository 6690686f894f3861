"""A sweep as one PNG: what each point reached, how it got there, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.run.charts import COLOURS
from convoy.run.story import Point

FAILED = "#b8bfc8"
MOST_LINES = 12  # learning curves that eyes can tell apart


@dataclass(frozen=True)
class Row:
    """One point: `figure` is None where there is none yet; `curve` has the figure over steps."""

    name: str
    figure: float | None
    curve: Sequence[Point]
    gpu_hours: float
    note: str = ""  # its state, where it is not finished


def write(path: Path, title: str, figure_name: str, rows: Sequence[Row]) -> Path:
    """Write the rows in their order, the best first. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1,
        3,
        figsize=(13, max(3.2, 1.4 + 0.34 * len(rows))),
        width_ratios=(3, 3, 2),
        layout="constrained",
    )
    places = range(len(rows))
    colours = [
        COLOURS[place % len(COLOURS)] if row.figure is not None else FAILED
        for place, row in zip(places, rows, strict=True)
    ]
    _bars(axes[0], figure_name, [row.figure or 0.0 for row in rows], colours)
    axes[0].set_yticks(places, [row.name for row in rows], fontsize=8)
    for place, row in zip(places, rows, strict=True):
        said = [f"{row.figure:.3f}" if row.figure is not None else "", row.note]
        axes[0].annotate(
            " ".join(filter(None, said)),
            (row.figure or 0.0, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes[0].margins(x=0.25)
    for row, colour in list(zip(rows, colours, strict=True))[:MOST_LINES]:
        if row.curve:
            axes[1].plot(
                [point.step for point in row.curve],
                [point.value for point in row.curve],
                color=colour,
                marker="." if len(row.curve) < 40 else None,
                linewidth=1.3,
            )
    axes[1].set_title(f"{figure_name} over optimiser steps", fontsize=9)
    axes[1].tick_params(labelsize=8)
    _bars(axes[2], "GPU-hours", [row.gpu_hours for row in rows], colours)
    axes[2].set_yticks(places, ["" for _ in rows])
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _bars(axis: Any, title: str, values: Sequence[float], colours: Sequence[str]) -> None:
    axis.barh(range(len(values)), values, color=colours, height=0.6)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
