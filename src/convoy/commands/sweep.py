"""`convoy sweep`: the points of a sweep in one table and one picture."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convoy.commands.console import console
from convoy.errors import ConvoyError, ExitCode
from convoy.host import locate, site, sweep
from convoy.host.sweep import Sweep
from convoy.host.sweep_state import Standing, standings
from convoy.run import sweep_picture

COLUMNS = {
    "epdms": ("EPDMS", "{:.2%}"),
    "ade": ("ADE, m", "{:.3f}"),
    "fde": ("FDE, m", "{:.3f}"),
    "loss": ("val loss", "{:.4g}"),
}
TITLES = {"ade": "ADE on held-out logs, m", "loss": "Validation loss"}
COLOURS = {"finished": "green", "running": "green", "failed": "red", "stopped": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dir", nargs="?", type=Path, help="the sweep's folder (default: your newest sweep)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, and no picture")
    parser.add_argument("--out", type=Path, help="picture to write (default: sweep.png in DIR)")


def run(args: argparse.Namespace) -> int:
    whole = sweep.load(args.dir.absolute() if args.dir else _newest())
    queue, problem = locate.own_jobs()
    name, rows = ranked(standings(whole, queue, problem))
    if args.json:
        print(
            json.dumps({"sweep": str(whole.root), "points": [_as_json(r) for r in rows]}, indent=1)
        )
        return ExitCode.FINISHED
    _show(whole, rows, problem)
    console().print(
        f"picture  {_picture(args.out or whole.files.picture, whole, name, rows)}",
        highlight=False,
        soft_wrap=True,
    )
    return ExitCode.FINISHED


def _newest() -> Path:
    experiments = site.load(site.find_checkout()).experiments.absolute()
    roots = sweep.find(experiments)
    if not roots:
        raise ConvoyError(
            f"There is no sweep below {experiments}: convoy submit --multirun … makes one, and "
            "convoy sweep DIR shows one elsewhere."
        )
    return roots[0]


def ranked(points: Sequence[Standing]) -> tuple[str, list[Standing]]:
    """The figure that they are compared by, and the points, the best first; those without it come
    last, in their own order."""
    name = "ade" if any("ade" in point.figures for point in points) else "loss"
    return name, sorted(points, key=lambda point: point.figures.get(name, math.inf))


def _show(whole: Sweep, rows: Sequence[Standing], problem: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    if problem:
        out.print(f"The runs' files only: {problem}", style="yellow", highlight=False)
    keys = list(dict.fromkeys(key for row in rows for key in row.point.values))
    figures = [name for name in COLUMNS if any(name in row.figures for row in rows)]
    table = Table(title=str(whole.root), box=box.SIMPLE_HEAD, pad_edge=False)
    for label in _short(keys):
        table.add_column(label)
    table.add_column("state")
    table.add_column("job")
    for label in [*(COLUMNS[name][0] for name in figures), "hours", "GPU-h", "starts"]:
        table.add_column(label, justify="right")
    for row in rows:
        found = row.figures
        table.add_row(
            *(row.point.values.get(key, "") for key in keys),
            Text(row.state, style=COLOURS.get(row.state, "yellow")),
            row.job or "",
            *(COLUMNS[n][1].format(found[n]) if n in found else "" for n in figures),
            f"{row.hours:.2f}",
            f"{row.gpu_hours:.2f}",
            str(row.starts),
        )
    out.print(table)
    total = sum(row.gpu_hours for row in rows)
    done = sum(row.state == "finished" for row in rows)
    out.print(f"{done} of {len(rows)} points are finished; {total:.2f} GPU-hours.", highlight=False)
    for row in rows:
        if row.reason:
            first = row.reason.splitlines()[0]
            out.print(
                f"{row.point.name} {row.state}: {first}",
                style="red",
                highlight=False,
                soft_wrap=True,
            )
    if any(row.is_open for row in rows):
        out.print(
            f"convoy submit --sweep {whole.root} submits what is not finished.",
            highlight=False,
            soft_wrap=True,
        )


def _short(keys: Sequence[str]) -> list[str]:
    """Last parts of dotted names, whole where two end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for end, key in zip(ends, keys, strict=True)]


def _as_json(row: Standing) -> dict[str, Any]:
    return {
        "name": row.point.name,
        "values": row.point.values,
        "run_dir": str(row.run.root),
        "state": row.state,
        "job": row.job,
        "reason": row.reason,
        **{name: row.figures.get(name) for name in COLUMNS},
        "step": row.run.progress.get("step"),
        "steps": row.run.progress.get("steps"),
        "hours": row.hours,
        "gpu_hours": row.gpu_hours,
        "starts": row.starts,
    }


def _picture(path: Path, whole: Sweep, name: str, rows: Sequence[Standing]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row.point.values))
    labels = dict(zip(keys, _short(keys), strict=True))
    drawn = [
        sweep_picture.Row(
            ", ".join(f"{labels[key]}={value}" for key, value in row.point.values.items()),
            row.figures.get(name),
            row.run.metrics.get(f"val/{name}", ()),
            row.gpu_hours,
            "" if row.state == "finished" else row.state,
        )
        for row in rows
    ]
    try:
        return str(sweep_picture.write(path, whole.root.name, TITLES[name], drawn))
    except ImportError:
        return "none: matplotlib is not installed here (make venv, or run it in the image)"
    except OSError as error:
        raise ConvoyError(
            f"{path} cannot be written: {error.strerror}. Name another with --out."
        ) from error
