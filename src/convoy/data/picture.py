"""A picture sheet of some packed samples, whatever their builders called them: pictures, maps and
trajectories."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from convoy.data.packing import split_record, unpack
from convoy.data.shard import Shard
from convoy.data.shards import Manifest, shard_path
from convoy.errors import ConvoyError

matplotlib.use("Agg")

SMALLEST_SIDE = 16  # of what is drawn as a picture


def read_arrays(root: Path, shard: Shard, row: int) -> dict[str, np.ndarray]:
    """The tensors of one sample by name, unpacked.

    Raises ConvoyError when the shard cannot be read.
    """
    start, end = shard.span(row)
    path = shard_path(root, shard.name)
    try:
        with path.open("rb") as file:
            file.seek(start)
            record = file.read(end - start)
        arrays = split_record(shard.layout, record)
    except (OSError, ValueError) as error:
        raise ConvoyError(
            f"{path} cannot be read: {error}. `convoy data verify` lists what is damaged."
        ) from error
    return {
        entry.name: unpack(entry, values)
        for entry, values in zip(shard.layout.fields, arrays, strict=True)
    }


def draw_sheet(root: Path, manifest: Manifest, path: Path, samples: int) -> None:
    """Draw `samples` samples, spread over the data set, a row each: every tensor that looks like a
    picture or a map, and the trajectory (x ahead, y left, metres)."""
    where = [(shard, row) for shard in manifest.shards for row in range(len(shard.tokens))]
    chosen = where[:: max(1, len(where) // max(1, samples))][:samples]
    rows: list[tuple[str, dict[str, np.ndarray]]] = []
    for shard, row in chosen:
        arrays = read_arrays(root, shard, row)
        rows.append(
            (
                f"{shard.log}\n{shard.tokens[row]}",
                {n: v for n, v in arrays.items() if _is_drawn(n, v)},
            )
        )
    names = list(dict.fromkeys(name for _, drawn in rows for name in drawn))
    if not names:
        raise ConvoyError(
            f"{root} has no tensor that could be drawn: no picture, no map, no trajectory."
        )
    widths = [_aspect(next(drawn[name] for _, drawn in rows if name in drawn)) for name in names]
    figure, axes = plt.subplots(
        len(rows),
        len(names),
        squeeze=False,
        figsize=(2.2 * sum(widths), 2.4 * len(rows)),
        gridspec_kw={"width_ratios": widths},
        layout="constrained",
    )
    for line, (title, drawn) in zip(axes, rows, strict=True):
        for axis, name in zip(line, names, strict=True):
            axis.set_axis_off()
            if name in drawn:
                _draw(axis, name, drawn[name])
        line[0].set_title(title, fontsize=6, loc="left")
    for axis, name in zip(axes[0][1:], names[1:], strict=True):
        axis.set_title(name, fontsize=6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _is_drawn(name: str, values: np.ndarray) -> bool:
    return _is_picture(values) or _is_trajectory(name, values)


def _is_picture(values: np.ndarray) -> bool:
    flat = values.ndim == 2 or (values.ndim == 3 and values.shape[0] in (1, 3))
    return flat and min(values.shape[-2:]) >= SMALLEST_SIDE


def _is_trajectory(name: str, values: np.ndarray) -> bool:
    return "trajectory" in name and values.ndim == 2 and values.shape[1] >= 2


def _aspect(values: np.ndarray) -> float:
    if not _is_picture(values):
        return 1.0
    return float(np.clip(values.shape[-1] / values.shape[-2], 0.5, 4))


def _draw(axis: Any, name: str, values: np.ndarray) -> None:
    if _is_trajectory(name, values):
        axis.set_axis_on()
        axis.plot(
            np.append(0, -values[:, 1]), np.append(0, values[:, 0]), "o-", markersize=2, linewidth=1
        )
        axis.set_aspect("equal", adjustable="datalim")
        axis.tick_params(labelsize=5)
        axis.set_xlabel("to the right (m)", fontsize=5)
        axis.set_ylabel("ahead (m)", fontsize=5)
        return
    if values.ndim == 3 and values.shape[0] == 3:
        axis.imshow(_unit(values).transpose(1, 2, 0))
        return
    flat = values[0] if values.ndim == 3 else values
    classes = np.unique(flat).size <= 20 and np.array_equal(flat, np.rint(flat))
    colours = {"cmap": "tab20", "vmin": 0, "vmax": 19} if classes else {"cmap": "viridis"}
    axis.imshow(flat, interpolation="nearest", **colours)


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled to 0..1, unless it is that already."""
    values = values.astype(np.float32)
    low, high = values.min(), values.max()
    return values if 0 <= low and high <= 1 else (values - low) / max(high - low, 1e-6)
