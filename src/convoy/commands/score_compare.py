"""`convoy score --compare A B`: which of two is better, scene by scene."""

import argparse
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from convoy.commands.console import console

if TYPE_CHECKING:
    from convoy.scoring.compare import Difference


def show(args: argparse.Namespace) -> None:
    """The table, or JSON. Raises ConvoyError where the two cannot be compared."""
    from convoy.scoring.compare import compare, scoring_of

    first, second = (scoring_of(path.absolute(), args.split) for path in args.compare)
    found = compare(first, second)
    if args.json:
        content = {"first": str(first.root), "second": str(second.root), **asdict(found)}
        print(json.dumps(content, indent=1))
        return
    from rich.table import Table

    table = Table("", title=f"{found.split}: {found.scenes} scenes that both have")
    for name in ("first", "second", "second - first", "better", "worse"):
        table.add_column(name, justify="right")
    for row in sorted(found.differences, key=lambda row: row.column != "score"):
        table.add_row(
            row.column,
            _per_cent(row.first),
            _per_cent(row.second),
            _difference(row),
            str(row.better),
            str(row.worse),
        )
    out = console()
    out.print(table)
    out.print(f"first   {first.root}\nsecond  {second.root}", highlight=False, soft_wrap=True)
    out.print(
        "In per cent. In brackets: 95 % confidence of the paired difference, from drawing logs "
        "again; an interval without 0 is a difference.",
        highlight=False,
        soft_wrap=True,
    )
    if found.left_out:
        out.print(f"{found.left_out} scenes failed in one of them.", highlight=False)


def _per_cent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _difference(row: "Difference") -> str:
    if math.isnan(row.mean):
        return "–"
    mean = f"{100 * row.mean:+.2f}"
    if row.low is None or row.high is None:
        return mean
    return f"{mean} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
